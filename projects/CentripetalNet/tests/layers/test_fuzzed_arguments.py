"""Fuzz tests of the compiled operators and their Python functions.

A call returns the result of the reference, or raises an error that names the operator or the cause.
An operator that reads or writes outside its tensors may crash the test run; `make sanitize` locates
it. Hypothesis statistics (--hypothesis-show-statistics) count the cases.
"""

import importlib
import re

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from operator_arguments import loss_arguments, pooling_arguments, suppression_arguments

from centripetalnet.layers import (
    batched_soft_nms,
    corner_pool,
    corner_pool_reference,
    gaussian_focal_loss,
    gaussian_focal_loss_reference,
    render_bumps,
    soft_nms_reference,
)

OPERATORS = torch.ops.centripetalnet
DIRECTIONS = ("top", "bottom", "left", "right")
REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError)
# An error must name the operator, or be about memory.
CLEAR = re.compile(
    "corner_pool|gaussian_focal_loss|soft_nms|soft-NMS|render_bumps|not implemented for|"
    "can't allocate|Storage size calculation overflowed|overflow",
    re.IGNORECASE,
)


def outcome(what, call, *arguments):
    """The result, or None if the call raises a clear error."""
    try:
        result = call(*arguments)
    except REFUSALS as error:
        assert CLEAR.search(str(error)), f"{type(error).__name__}: {error}"
        event(f"{what}: {type(error).__name__}")
        return None
    event(f"{what}: result")
    return result


def is_plain(*tensors):
    """Whether the reference supports the tensors."""
    return all(x.device.type == "cpu" and x.layout == torch.strided for x in tensors)


def assert_agrees(actual, expected, rtol=0.0, atol=0.0):
    torch.testing.assert_close(
        actual.detach().double(), expected.detach().double(), rtol=rtol, atol=atol, equal_nan=True
    )


def without_kernels(patch):
    for name in ("corner_pool", "gaussian_focal_loss", "soft_nms"):
        module = importlib.import_module(f"centripetalnet.layers.{name}")
        patch.setattr(module, "has_kernel", lambda *args: False)


FEW = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
MANY = settings(deadline=None, max_examples=800, suppress_health_check=list(HealthCheck))


def check_pooling(arguments):
    grad_output, input, direction = arguments.values()

    output = outcome("corner_pool", OPERATORS.corner_pool, input, direction)
    grad_input = outcome(
        "corner_pool_backward", OPERATORS.corner_pool_backward, grad_output, input, direction
    )

    for result in (output, grad_input):
        if result is not None:
            assert (result.shape, result.dtype) == (input.shape, input.dtype)
            assert result.device == input.device
    if output is not None and is_plain(output):
        expected = corner_pool_reference(input.double(), DIRECTIONS[direction])
        assert_agrees(output, expected.to(input.dtype))
    if grad_input is not None and is_plain(grad_input) and adds_up(grad_output):
        start = input.detach().double().requires_grad_()
        pooled = corner_pool_reference(start, DIRECTIONS[direction])
        pooled.backward(grad_output.detach().double())
        assert_agrees(grad_input, start.grad.to(input.dtype))
    if output is not None and output.requires_grad:
        output.sum().backward()
        assert input.grad.shape == input.shape
    for direction_name in (*DIRECTIONS[:1], DIRECTIONS[direction % 4], "up", direction, None):
        outcome("corner_pool in Python", corner_pool, input, direction_name)


def adds_up(numbers):
    """Whether sums of the numbers are independent of the order."""
    numbers = numbers.detach().double()
    return not (numbers.isfinite() & (numbers.abs() > 1e30)).any()


def loss_and_gradient_expected(logits, bumps, alpha, beta, grad_loss):
    """In double precision, but with a float32 target unless the logits are float64."""
    precision = torch.double if logits.dtype == torch.double else torch.float
    targets = render_bumps(bumps, tuple(logits.shape), precision).double()
    logits = logits.detach().double().requires_grad_()
    loss = gaussian_focal_loss_reference(logits, targets, alpha, beta)
    (loss * grad_loss.double()).backward()
    return loss, logits.grad


def check_loss(arguments):
    grad_loss, logits, bumps, plane_start, alpha, beta = arguments.values()
    common = (logits, bumps, plane_start, alpha, beta)

    loss = outcome("gaussian_focal_loss", OPERATORS.gaussian_focal_loss, *common)
    gradient = outcome(
        "gaussian_focal_loss_backward",
        OPERATORS.gaussian_focal_loss_backward,
        grad_loss,
        *common,
    )
    outcome("gaussian_focal_loss in Python", gaussian_focal_loss, *common)

    if loss is not None:
        assert loss.shape == () and loss.device == logits.device
        is_double = logits.dtype == torch.float64
        assert loss.dtype == (torch.float64 if is_double else torch.float32)
    if gradient is not None:
        assert (gradient.shape, gradient.dtype) == (logits.shape, logits.dtype)
        assert gradient.device == logits.device
    if loss is None or not is_plain(loss, logits):
        return
    if not logits.isfinite().all():
        assert loss.isnan() or not logits.isnan().any()
        return
    if logits.numel() == 0:
        assert loss == 0
        return
    finite_grad = grad_loss if gradient is not None and is_plain(grad_loss) else torch.ones(())
    expected = loss_and_gradient_expected(logits, bumps, alpha, beta, finite_grad)
    assert_agrees(loss, expected[0].to(loss.dtype), rtol=1e-4, atol=1e-5)
    if gradient is not None and grad_loss.isfinite():
        eps = torch.finfo(logits.dtype).eps
        assert_agrees(
            gradient,
            expected[1].to(logits.dtype),
            rtol=2 * eps + 1e-4,
            atol=1e-6 + 2 * torch.finfo(logits.dtype).tiny,
        )
    if loss.requires_grad:
        loss.backward()
        assert logits.grad.shape == logits.shape


def check_suppression(arguments):
    boxes, scores, classes, limit, method, *options = arguments.values()

    result = outcome(
        "soft_nms",
        OPERATORS.soft_nms,
        *(boxes, scores, classes, limit, method == "gaussian", *options),
    )
    in_python = outcome(
        "batched_soft_nms", batched_soft_nms, boxes, scores, classes, limit, method, *options
    )

    if result is not None:
        keep, lowered = result
        images, count = scores.shape
        assert keep.shape == lowered.shape == (images, min(limit, count))
        assert (keep.dtype, lowered.dtype) == (torch.int64, scores.dtype)
        assert in_python is not None
        if not is_plain(keep):
            return
        assert ((keep >= 0) & (keep < max(count, 1))).all()
        _, expected = soft_nms_reference(boxes, scores, classes, limit, method, *options)
        if is_distinct(scores):
            # One bit, where both round a half.
            rtol = max(1e-5, torch.finfo(scores.dtype).eps)
            assert_agrees(lowered, expected, rtol=rtol, atol=1e-7)


def is_distinct(scores):
    return all(len(row[row >= 0].unique()) == int((row >= 0).sum()) for row in scores)


CHECKS = {
    "corner pooling": (pooling_arguments(), check_pooling),
    "heatmap loss": (loss_arguments(), check_loss),
    "soft-NMS": (suppression_arguments(), check_suppression),
}


def check(operator, data):
    arguments, check_operator = CHECKS[operator]
    check_operator(data.draw(arguments))


@pytest.mark.parametrize("operator", list(CHECKS))
@FEW
@given(data=st.data())
def test_a_call_gives_the_right_result_or_a_clear_error(operator, data):
    check(operator, data)


@pytest.mark.slow
@pytest.mark.parametrize("operator", list(CHECKS))
@MANY
@given(data=st.data())
def test_many_more_calls_give_the_right_result_or_a_clear_error(operator, data):
    check(operator, data)


@FEW
@given(pooling_arguments(), loss_arguments(), suppression_arguments())
def test_without_kernels_errors_are_of_the_same_kinds(pooling, loss, suppression):
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(patch)
        calls = (
            (corner_pool, pooling["input"], DIRECTIONS[pooling["direction"] % 4]),
            (gaussian_focal_loss, *list(loss.values())[1:]),
            (batched_soft_nms, *suppression.values()),
        )
        for call, *arguments in calls:
            try:
                call(*arguments)
            except REFUSALS as error:
                assert str(error)
                event(f"{call.__name__} without a kernel: {type(error).__name__}")
            else:
                event(f"{call.__name__} without a kernel: result")


def test_many_images_without_boxes_take_no_time():
    scores = torch.zeros(1, 0).expand(2**40, 0)

    keep, lowered = batched_soft_nms(
        scores[..., None].expand(2**40, 0, 4), scores, scores.long(), 100
    )

    assert keep.shape == lowered.shape == (2**40, 0)


def test_a_heatmap_beyond_memory_is_a_clear_error():
    arguments = (torch.zeros(0, 4, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), 2.0, 4.0)
    logits = torch.zeros(()).expand(1, 2, 2**40, 2**18)

    for call in (gaussian_focal_loss, OPERATORS.gaussian_focal_loss):
        with pytest.raises(RuntimeError, match="can't allocate"):
            call(logits, *arguments)
