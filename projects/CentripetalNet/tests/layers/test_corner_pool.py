import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from centripetalnet.layers import corner_pool, corner_pool_reference

DIRECTIONS = ("top", "bottom", "left", "right")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
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
    torch.testing.assert_close(grad_input.cpu(), expected["grad_input"], rtol=1e-5, atol=1e-6)


def arrange(values, layout):
    """The same values in another memory layout."""
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.stack([values, torch.full_like(values, 9)], dim=-1)[..., 0]
    if layout == "sliced channels_last":
        wide = torch.cat([values, torch.full_like(values, 9)], dim=1)
        return wide.contiguous(memory_format=torch.channels_last)[:, : values.shape[1]]
    if layout == "transposed":
        return values.mT.contiguous().mT
    if layout == "expanded":
        return values[:1, :, :1].expand_as(values)
    return values.contiguous()


LAYOUTS = (
    "contiguous",
    "channels_last",
    "sliced",
    "sliced channels_last",
    "transposed",
    "expanded",
)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    direction=st.sampled_from(DIRECTIONS),
    input_layout=st.sampled_from(LAYOUTS),
    grad_layout=st.sampled_from(LAYOUTS),
    spread=st.integers(1, 1000),
    specials=st.sampled_from([0, 0.05, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
# Lines longer than a CUDA thread block's tile.
@example((1, 3, 2, 300), torch.float32, "left", "contiguous", "contiguous", 9, 0.05, 0)
@example((1, 3, 300, 2), torch.float64, "top", "contiguous", "contiguous", 9, 0.05, 1)
@example((1, 3, 300, 2), torch.bfloat16, "bottom", "channels_last", "contiguous", 9, 0.05, 2)
@example((1, 100, 3, 25), torch.bfloat16, "top", "channels_last", "channels_last", 9, 0.05, 3)
def test_agrees_with_cummax_in_value_and_gradient(
    device, shape, dtype, direction, input_layout, grad_layout, spread, specials, seed
):
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high):
        return torch.randint(low, high + 1, shape, generator=generator).double()

    # Small integers give ties, and sums that are exact in any order.
    values = integers(-spread, spread).to(dtype).double()
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0]).double()
    chosen = torch.rand(shape, generator=generator) < specials
    values = torch.where(chosen, special[integers(0, 4).long()], values)
    if seed % 2:
        values = values.copysign(-torch.ones(()))  # also NaN with the sign bit
    input = arrange(values, input_layout)
    grad_output = arrange(integers(-8, 8), grad_layout)
    expected = pool_with_grad(corner_pool_reference, input, direction, grad_output)

    output, grad_input = pool_with_grad(
        corner_pool,
        arrange(values.to(device, dtype), input_layout),
        direction,
        arrange(grad_output.to(device, dtype), grad_layout),
    )

    assert_equal(output.cpu(), expected[0].to(dtype))
    assert_equal(grad_input.cpu(), expected[1].to(dtype))


@pytest.fixture(scope="module")
def cases_for_vectors():
    """Inputs of both operators with expected outputs, in sizes around those of vectors."""
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), -0.0, 0.0])

    def integers(shape, specials):
        values = torch.randint(-8, 9, shape, generator=generator).float()
        chosen = torch.rand(shape, generator=generator) < specials
        return torch.where(chosen, special[values.long() % len(special)], values)

    cases = []
    for shape in (
        (1, 1, 1, 1),
        (3, 1, 4, 31),
        (2, 3, 5, 37),
        (1, 2, 70, 33),
        (1, 33, 3, 66),
        (1, 1, 131, 7),
        (1, 130, 2, 121),  # more lanes than a block
    ):
        for number, direction in enumerate(DIRECTIONS):
            input = integers(shape, specials=0.05)
            grad_output = integers(shape, specials=0.01)
            expected = pool_with_grad(
                corner_pool_reference, input.double(), direction, grad_output.double()
            )
            for dtype in DTYPES:
                for layout in ("contiguous", "channels_last"):
                    arguments = [
                        arrange(values.to(dtype), layout) for values in (grad_output, input)
                    ]
                    cases.append(((*arguments, number), [x.to(dtype) for x in expected]))
    return cases


def run_with_capability(capability, arguments, folder):
    """Outputs of the operators in a new process that is limited to an instruction set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("kernels are compiled for several instruction sets on x86 only")
    library = importlib.import_module("centripetalnet._C").__file__
    torch.save(arguments, folder / "arguments.pt")
    code = f"""
import torch
torch.ops.load_library({library!r})
operators = torch.ops.centripetalnet
outputs = [
    (operators.corner_pool(input, direction),
     operators.corner_pool_backward(grad_output, input, direction))
    for grad_output, input, direction in torch.load("arguments.pt")
]
torch.save(outputs, "outputs.pt")
"""
    environment = {**os.environ, "CENTRIPETALNET_CPU_CAPABILITY": capability}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stderr)
    return torch.load(folder / "outputs.pt")


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_kernels_for_every_instruction_set_agree_with_cummax(
    capability, cases_for_vectors, tmp_path
):
    lower = {"AVX512": ("baseline", "avx2", "avx512"), "AVX2": ("baseline", "avx2")}
    if capability not in lower.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        pytest.skip(f"this machine has no {capability}")

    outputs = run_with_capability(capability, [case for case, _ in cases_for_vectors], tmp_path)

    for actual, (_, expected) in zip(outputs, cases_for_vectors):
        for a, e in zip(actual, expected):
            assert_equal(a, e)


def test_unknown_instruction_set_is_an_error(tmp_path):
    case = (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0)

    with pytest.raises(RuntimeError, match="ValueError: .*_CPU_CAPABILITY must be .* got 'sse9'"):
        run_with_capability("sse9", [case], tmp_path)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_reference_takes_the_maximum_up_to_the_named_border(direction):
    input = torch.randn(2, 3, 5, 4)
    expected = torch.empty_like(input)
    for i in range(5):
        for j in range(4):
            seen = {
                "top": input[:, :, i:, j],
                "bottom": input[:, :, : i + 1, j],
                "left": input[:, :, i, j:],
                "right": input[:, :, i, : j + 1],
            }[direction]
            expected[:, :, i, j] = seen.amax(-1)

    assert_equal(corner_pool_reference(input, direction), expected)


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


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_operators_pass_opcheck(layout, opcheck, device):
    input = arrange(torch.randn(2, 3, 5, 4, device=device), layout)
    operators = torch.ops.centripetalnet

    opcheck(operators.corner_pool.default, (input.clone().requires_grad_(), 2))
    opcheck(operators.corner_pool_backward.default, (torch.randn_like(input), input, 2))


def test_second_derivative_is_an_error():
    input = torch.randn(1, 2, 3, 4, requires_grad=True)
    output = corner_pool(input, "top")
    (grad_input,) = torch.autograd.grad((output**2).sum(), input, create_graph=True)

    with pytest.raises(RuntimeError, match="not implemented"):
        grad_input.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_keeps_only_the_input(layout):
    input = arrange(torch.randn(2, 3, 5, 4), layout).requires_grad_()
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_is_kept_also_on_meta_tensors(layout, device):
    input = arrange(torch.randn(2, 3, 5, 4, device=device), layout).requires_grad_()
    meta = torch.empty_strided(input.shape, input.stride(), device="meta").requires_grad_()

    output, foreseen = corner_pool(input, "left"), corner_pool(meta, "left")
    output.sum().backward()
    foreseen.sum().backward()

    memory_format = torch.channels_last if "channels" in layout else torch.contiguous_format
    assert output.is_contiguous(memory_format=memory_format)
    assert (foreseen.shape, foreseen.stride()) == (output.shape, output.stride())
    assert (meta.grad.shape, meta.grad.stride()) == (input.grad.shape, input.grad.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_dtype(dtype, device):
    input = torch.randn(1, 2, 3, 4, dtype=dtype, device=device)

    with torch.autocast(device, dtype=torch.bfloat16):
        assert corner_pool(input, "top").dtype == dtype


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("empty_axis", range(4))
def test_empty_input_gives_empty_output_and_gradient(empty_axis, direction, device):
    shape = [2, 3, 5, 4]
    shape[empty_axis] = 0
    input = torch.empty(shape, device=device)

    output, grad_input = pool_with_grad(corner_pool, input, direction, torch.empty_like(input))

    assert list(output.shape) == list(grad_input.shape) == shape


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
