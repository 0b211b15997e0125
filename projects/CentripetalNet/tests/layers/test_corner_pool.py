import math
from pathlib import Path

import pytest
import torch
from conftest import rounding
from hypothesis import example, given, settings
from hypothesis import strategies as st
from operator_arguments import ARRANGEMENTS, channels_last

from centripetalnet.layers import corner_pool, corner_pool_reference

DIRECTIONS = ("top", "bottom", "left", "right")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
contiguous = torch.Tensor.contiguous
GOLDEN = Path(__file__).parents[1] / "data" / "corner_pool.pt"


def pool_with_grad(pool, input, direction, grad_output):
    input = input.detach().requires_grad_()
    output = pool(input, direction)
    output.backward(grad_output)
    return output.detach(), input.grad


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", ["random", "ties"])
def test_matches_the_reference_implementation(case, direction, device):
    golden = torch.load(GOLDEN, weights_only=True)
    expected = golden[direction] if case == "random" else golden["ties"][direction]
    input = golden["input"] if case == "random" else golden["ties"]["input"]

    output, grad_input = pool_with_grad(
        corner_pool, input.to(device), direction, golden["grad_output"].to(device)
    )

    assert_equal(output.cpu(), expected["output"])
    # A cell gets the sum of at most a line's gradients, in another order.
    line = max(input.shape[2:])
    largest = line * float(golden["grad_output"].abs().max())
    torch.testing.assert_close(
        grad_input.cpu(), expected["grad_input"], rtol=0, atol=rounding(line) * largest
    )


SPECIAL = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 0.0]).double()


def random_numbers(shape, generator, spread, specials):
    """Small integers, which give ties and sums that are exact in any order, and special numbers."""
    values = torch.randint(-spread, spread + 1, shape, generator=generator).double()
    special = SPECIAL[torch.randint(0, len(SPECIAL), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < specials, special, values)


def assert_agrees_with_cummax(values, grad_output, dtype, direction, layouts, device):
    values, grad_output = values.to(dtype).double(), grad_output.to(dtype).double()
    input, gradient = (layout(x) for x, layout in zip((values, grad_output), layouts))
    expected = pool_with_grad(corner_pool_reference, input, direction, gradient)

    input, gradient = (
        layout(x.to(device, dtype)) for x, layout in zip((values, grad_output), layouts)
    )
    found = pool_with_grad(corner_pool, input, direction, gradient)

    for x, y in zip(found, expected):
        assert_equal(x.cpu(), y.to(dtype))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
    dtype=st.sampled_from(DTYPES),
    direction=st.sampled_from(DIRECTIONS),
    layouts=st.tuples(*[st.sampled_from(ARRANGEMENTS)] * 2),
    spread=st.integers(1, 1000),
    specials=st.sampled_from([0, 0.05, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
# Lines longer than a CUDA thread block's tile.
@example((1, 3, 2, 300), torch.float32, "left", [contiguous] * 2, 9, 0.05, 0)
@example((1, 3, 300, 2), torch.float64, "top", [contiguous] * 2, 9, 0.05, 1)
@example((1, 3, 300, 2), torch.bfloat16, "bottom", (channels_last, contiguous), 9, 0.05, 2)
@example((1, 100, 3, 25), torch.bfloat16, "top", [channels_last] * 2, 9, 0.05, 3)
# Lines without cells, and no lines.
@example((2, 3, 0, 4), torch.float32, "top", [contiguous] * 2, 9, 0, 4)
@example((2, 3, 5, 0), torch.float32, "left", [contiguous] * 2, 9, 0, 5)
@example((0, 3, 5, 4), torch.float32, "right", [contiguous] * 2, 9, 0, 6)
@example((2, 0, 5, 4), torch.float32, "bottom", [channels_last] * 2, 9, 0, 7)
def test_agrees_with_cummax_in_value_and_gradient(
    device, shape, dtype, direction, layouts, spread, specials, seed
):
    generator = torch.Generator().manual_seed(seed)
    values = random_numbers(shape, generator, spread, specials)
    grad_output = random_numbers(shape, generator, 8, specials=0)

    assert_agrees_with_cummax(values, grad_output, dtype, direction, layouts, device)


# Around the sizes of vectors. The last has more lanes than a block.
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "shape",
    [
        *((1, 1, 1, 1), (3, 1, 4, 31), (2, 3, 5, 37), (1, 2, 70, 33)),
        *((1, 33, 3, 66), (1, 1, 131, 7), (1, 130, 2, 121)),
    ],
)
def test_lines_of_any_length_agree_with_cummax(shape, direction, device):
    generator = torch.Generator().manual_seed(0)
    values = random_numbers(shape, generator, 8, specials=0.05)
    grad_output = random_numbers(shape, generator, 8, specials=0.01)

    for dtype in DTYPES:
        for layout in (contiguous, channels_last):
            assert_agrees_with_cummax(values, grad_output, dtype, direction, [layout] * 2, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_gradients_in_16_bit_are_rounded_once(dtype, device):
    # One element gets all gradients. In bfloat16 a running sum of ones stops at 256.
    input = torch.zeros(1, 1, 8, 1000, dtype=dtype, device=device)
    input[..., -1] = 1

    _, grad_input = pool_with_grad(corner_pool, input, "left", torch.ones_like(input))

    assert_equal(grad_input[..., -1], torch.full_like(grad_input[..., -1], 1000))
    assert not grad_input[..., :-1].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction, device):
    # Values differ by more than gradcheck's step.
    input = torch.randperm(2 * 3 * 5 * 4).double().view(2, 3, 5, 4).to(device).requires_grad_()

    assert torch.autograd.gradcheck(lambda x: corner_pool(x, direction), input)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_operators_pass_opcheck(layout, opcheck, device):
    input = layout(torch.randn(2, 3, 5, 4, device=device))
    operators = torch.ops.centripetalnet

    opcheck(operators.corner_pool.default, (input.clone().requires_grad_(), 2))
    opcheck(operators.corner_pool_backward.default, (torch.randn_like(input), input, 2))


def test_second_derivative_is_an_error():
    input = torch.randn(1, 2, 3, 4, requires_grad=True)
    output = corner_pool(input, "top")
    (grad_input,) = torch.autograd.grad((output**2).sum(), input, create_graph=True)

    with pytest.raises(RuntimeError, match="not implemented"):
        grad_input.sum().backward()


@pytest.mark.parametrize("layout", ARRANGEMENTS)
def test_backward_keeps_only_the_input(layout):
    input = layout(torch.randn(2, 3, 5, 4)).requires_grad_()
    saved = []

    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        corner_pool(input, "top")

    assert [x.data_ptr() for x in saved] == [input.data_ptr()]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic, device):
    input = torch.randn(2, 3, 5, 4, device=device)
    grad_output = torch.randn_like(input)
    torch._dynamo.reset()
    compiled = torch.compile(corner_pool, backend="aot_eager", fullgraph=True, dynamic=dynamic)

    actual = pool_with_grad(compiled, input, "right", grad_output)

    for a, e in zip(actual, pool_with_grad(corner_pool, input, "right", grad_output)):
        assert_equal(a, e)


@pytest.mark.parametrize("layout", ARRANGEMENTS)
def test_memory_format_is_kept_also_on_meta_tensors(layout, device):
    input = layout(torch.randn(2, 3, 5, 4, device=device)).requires_grad_()
    meta = torch.empty_strided(input.shape, input.stride(), device="meta").requires_grad_()

    output, foreseen = corner_pool(input, "left"), corner_pool(meta, "left")
    output.sum().backward()
    foreseen.sum().backward()

    memory_format = (
        torch.channels_last if "channels" in layout.__name__ else torch.contiguous_format
    )
    assert output.is_contiguous(memory_format=memory_format)
    assert (foreseen.shape, foreseen.stride()) == (output.shape, output.stride())
    assert (meta.grad.shape, meta.grad.stride()) == (input.grad.shape, input.grad.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_dtype(dtype, device):
    input = torch.randn(1, 2, 3, 4, dtype=dtype, device=device)

    with torch.autocast(device, dtype=torch.bfloat16):
        assert corner_pool(input, "top").dtype == dtype


@pytest.mark.parametrize("pool", [corner_pool, corner_pool_reference])
@pytest.mark.parametrize(
    "input, direction, error, message",
    [
        (torch.zeros(1, 1, 2, 2), "up", ValueError, "'top', 'bottom', 'left', 'right'.* got 'up'"),
        (torch.zeros(1, 1, 2, 2), 0, ValueError, "got 0"),
        (torch.zeros(1, 2, 3), "top", ValueError, r"\(N, C, H, W\), got \(1, 2, 3\)"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "top", TypeError, "got torch.int64"),
        ([[1.0]], "top", TypeError, "got list"),
    ],
)
def test_invalid_arguments_are_errors(pool, input, direction, error, message):
    with pytest.raises(error, match=message):
        pool(input, direction)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "input, direction, error, message",
    [
        (torch.zeros(1, 2, 3), 0, ValueError, "got 3 dimensions"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), 0, TypeError, "floating point"),
        (torch.zeros(1, 1, 2, 2), 4, ValueError, "got 4"),
    ],
)
def test_operator_checks_its_own_arguments(input, direction, error, message, device):
    with pytest.raises(error, match=message):
        torch.ops.centripetalnet.corner_pool(input.to(device), direction)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "grad_output, error, message",
    [
        (torch.zeros(1, 1, 2, 3), ValueError, "one shape"),
        (torch.zeros(1, 1, 2, 2).double(), TypeError, "one dtype"),
    ],
)
def test_backward_operator_refuses_a_gradient_unlike_the_input(grad_output, error, message, device):
    input = torch.zeros(1, 1, 2, 2, device=device)

    with pytest.raises(error, match=message):
        torch.ops.centripetalnet.corner_pool_backward(grad_output.to(device), input, 0)
