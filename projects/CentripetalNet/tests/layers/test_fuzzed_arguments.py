"""Fuzz tests of the compiled operators and their Python functions.

A call returns the result of the reference, or raises an error that names the operator or the cause.
An operator that reads or writes outside its tensors may crash the test run; `make sanitize` locates
it. Hypothesis statistics (--hypothesis-show-statistics) count the cases.
"""

import importlib
import math
import re
import warnings

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

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

NAMES_OF_DTYPES = (
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 "
    "complex32 complex64 complex128 float8_e4m3fn float8_e5m2"
).split()
DTYPES = [getattr(torch, name) for name in NAMES_OF_DTYPES if hasattr(torch, name)]
# PyTorch itself supports only some copies and joins of these.
RARE_DTYPES = [x for x in DTYPES if re.search("float8|complex32|uint(16|32|64)", str(x))]
WITH_KERNEL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SPECIAL_FLOATS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, -0.0)
# Values of an exponent, a sigma or a threshold.
OPTIONS = st.sampled_from(
    (0.0, 0.5, 1.0, 2.0, 3.5, 4.0, 1e3, 1e-300, 1e300, -1.0, math.nan, math.inf, -math.inf)
)
EXTREME_INTS = (-(2**31), -1, 0, 1, 2, 5, 2**31 - 1)
# Shapes of 0 to 6 dimensions with more bytes than any machine can address.
HUGE = {
    0: (),
    1: (2**50,),
    2: (1, 2**50),
    3: (1, 2**50, 4),
    4: (1, 2, 2**40, 2**18),
    5: (2, 1, 2, 2**40, 2**18),
    6: (1, 2, 1, 2, 2**40, 2**18),
}


def filled(shape, dtype, seed, special=False):
    """Small numbers of any dtype, optionally with special floats among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-4, 5, shape, generator=generator).double()
    if special:
        choice = torch.randint(0, 4 * len(SPECIAL_FLOATS), shape, generator=generator)
        palette = torch.tensor(SPECIAL_FLOATS, dtype=torch.double)
        chosen = palette[choice.clamp(max=len(SPECIAL_FLOATS) - 1)]
        values = torch.where(choice < len(SPECIAL_FLOATS), chosen, values)
    if not dtype.is_floating_point and not dtype.is_complex:
        values = values.nan_to_num(0).clamp(-100, 100)
        if dtype in (torch.bool, torch.uint8) or "uint" in str(dtype):
            values = values.abs()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ComplexHalf support is experimental")
        return values.to(dtype)


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x


def sliced(x):
    return torch.stack((x, x), dim=-1)[..., 0]


def with_offset(x):
    return torch.cat((torch.zeros(7, dtype=x.dtype), x.flatten()))[7:].view(x.shape)


def expanded(x):
    return x[:1].expand(x.shape) if x.dim() else x


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


# Memory layouts that kernels must support; `expanded` repeats values.
ARRANGEMENTS = (torch.Tensor.contiguous, transposed, sliced, with_offset, expanded, channels_last)


def negated_view(x):
    return torch._neg_view(x)


def with_gradient(x):
    return x.detach().requires_grad_() if x.is_floating_point() or x.is_complex() else x


def huge(x):
    return torch.zeros((), dtype=x.dtype).expand(HUGE[min(x.dim(), 6)])


def quantized(x):
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


# Tensors that kernels may refuse.
ODDITIES = {
    "negated": negated_view,
    "with gradient": with_gradient,
    "huge": huge,
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "quantized": quantized,
    "MKL-DNN": lambda x: x.float().to_mkldnn(),
}


@st.composite
def odd_tensors(draw, near):
    """A tensor like ``near`` with another dtype, shape or layout."""
    kind = draw(st.sampled_from(("dtype", "shape", "any", "arranged", *ODDITIES)))
    event(f"argument: {kind}")
    seed = draw(st.integers(0, 2**16))
    if kind in ODDITIES:
        try:
            return ODDITIES[kind](near)
        # Not every dtype has every kind.
        except (RuntimeError, NotImplementedError):
            return near
    if kind == "arranged":
        return draw(st.sampled_from(ARRANGEMENTS))(near)
    dtype = draw(st.sampled_from(DTYPES)) if kind != "shape" else near.dtype
    shape = tuple(near.shape)
    if kind != "dtype":
        shape = draw(st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 9)), max_size=6))
    values = filled(shape, dtype, seed, special=True)
    return values if dtype in RARE_DTYPES else draw(st.sampled_from(ARRANGEMENTS))(values)


def odd(draw, arguments):
    """The arguments, up to two of the tensors replaced by odd ones."""
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    for name in draw(st.sets(st.sampled_from(names), max_size=2)):
        arguments[name] = draw(odd_tensors(arguments[name]))
    return arguments


@st.composite
def pooling_arguments(draw):
    shape = draw(st.tuples(*[st.sampled_from((0, 1, 2, 3, 5, 9, 17))] * 4))
    dtype = draw(st.sampled_from(WITH_KERNEL))
    seed = draw(st.integers(0, 2**16))
    arguments = {
        "grad_output": draw(st.sampled_from(ARRANGEMENTS))(filled(shape, dtype, seed + 1)),
        "input": draw(st.sampled_from(ARRANGEMENTS))(filled(shape, dtype, seed, special=True)),
    }
    arguments = odd(draw, arguments)
    direction = draw(st.sampled_from((0, 1, 2, 3, 0, 1, 2, 3, 4, -1, 2**62)))
    return {**arguments, "direction": direction}


@st.composite
def loss_arguments(draw):
    size = draw(st.tuples(*[st.sampled_from((1, 1, 2, 3, 5, 9, 17))] * 4))
    images, classes, height, width = size
    if draw(st.integers(0, 9)) == 9:
        size = size[:2] + (0, width)
    planes = images * classes
    radii = st.sampled_from((-(2**31), -1, 0, 1, 2, 3, 20, 10**7))
    cells = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1), radii)
    bumps = sorted(
        (plane, *draw(cells)) for plane in draw(st.lists(st.integers(0, planes - 1), max_size=9))
    )
    start = [sum(bump[0] < plane for bump in bumps) for plane in range(planes + 1)]
    arguments = {
        "grad_loss": torch.tensor(draw(st.sampled_from((1.0, -2.5, 0.0)))),
        "logits": draw(st.sampled_from(ARRANGEMENTS))(
            filled(size, draw(st.sampled_from(WITH_KERNEL)), draw(st.integers(0, 2**16)))
        ),
        "bumps": torch.tensor(bumps, dtype=torch.int32).view(-1, 4),
        "plane_start": torch.tensor(start, dtype=torch.int32),
    }
    if arguments["logits"].dtype == torch.double:
        arguments["grad_loss"] = arguments["grad_loss"].double()
    for name in draw(st.sets(st.sampled_from(("bumps", "plane_start")), max_size=2)):
        integers = arguments[name].flatten()
        if len(integers) and draw(st.booleans()):
            event(f"argument: wrong numbers in {name}")
            where = draw(st.integers(0, len(integers) - 1))
            integers[where] = draw(st.sampled_from(EXTREME_INTS))
    if draw(st.booleans()):
        arguments = odd(draw, arguments)
    exponents = {"alpha": 2.0, "beta": 4.0}
    if draw(st.booleans()):
        exponents = {"alpha": draw(OPTIONS), "beta": draw(OPTIONS)}
    return {**arguments, **exponents}


@st.composite
def suppression_arguments(draw):
    images, count = draw(st.sampled_from((0, 1, 2, 3))), draw(st.integers(0, 12))
    dtype = draw(st.sampled_from(WITH_KERNEL))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    boxes = torch.rand(images, count, 4, generator=generator) * 20
    boxes[..., 2:] += boxes[..., :2] * draw(st.sampled_from((0, 1)))
    # All different, as the order of equal scores is undefined.
    order = torch.rand(images, count, generator=generator).argsort(dim=1)
    scores = (order + 1) / (count + 1)
    special = draw(st.sampled_from(SPECIAL_FLOATS))
    if draw(st.booleans()):
        boxes[torch.rand(boxes.shape, generator=generator) < 0.05] = special
    if draw(st.booleans()):
        padding = draw(st.sampled_from((-1.0, -math.inf, math.nan)))
        scores[torch.rand(scores.shape, generator=generator) < 0.2] = padding
    arguments = {
        "boxes": boxes.to(dtype),
        "scores": scores.to(dtype),
        "classes": torch.randint(0, 3, (images, count), generator=generator) - 1,
    }
    if draw(st.booleans()):
        arguments = odd(draw, arguments)
    is_meta = any(x.is_meta for x in arguments.values())
    # On meta tensors the number of rounds is the limit itself, so it has to be small.
    limits = (0, 1, 3, 100) if is_meta else (0, 1, 3, 100, 2**62, -1)
    options = {"sigma": 0.5, "iou_threshold": 0.5, "min_score": 0.001}
    if draw(st.booleans()):
        options = {name: draw(OPTIONS) for name in options}
    return {
        **arguments,
        "max_detections": draw(st.sampled_from(limits)),
        "method": draw(st.sampled_from(("gaussian", "linear"))),
        **options,
    }


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
        assert loss.dtype == torch.promote_types(logits.dtype, torch.float32)
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


@FEW
@given(pooling_arguments())
def test_corner_pooling_gives_the_right_result_or_a_clear_error(arguments):
    check_pooling(arguments)


@FEW
@given(loss_arguments())
def test_heatmap_loss_gives_the_right_result_or_a_clear_error(arguments):
    check_loss(arguments)


@FEW
@given(suppression_arguments())
def test_soft_nms_gives_the_right_result_or_a_clear_error(arguments):
    check_suppression(arguments)


@pytest.mark.slow
@MANY
@given(pooling_arguments())
def test_corner_pooling_with_many_more_arguments(arguments):
    check_pooling(arguments)


@pytest.mark.slow
@MANY
@given(loss_arguments())
def test_heatmap_loss_with_many_more_arguments(arguments):
    check_loss(arguments)


@pytest.mark.slow
@MANY
@given(suppression_arguments())
def test_soft_nms_with_many_more_arguments(arguments):
    check_suppression(arguments)


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
