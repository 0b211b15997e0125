"""What only a GPU can show of the operators: large maps, streams, CUDA graphs."""

import pytest
import torch
from conftest import needs_gpu, rounding

from centripetalnet.layers import batched_soft_nms, corner_pool, gaussian_focal_loss

pytestmark = needs_gpu

DIRECTIONS = ("top", "bottom", "left", "right")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BUMPS_PER_PLANE = 3
each_format = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels-last"]
)


def pooling(direction):
    """Output of corner pooling and its gradient for the output gradient x."""

    def pool(x):
        x = x.detach().requires_grad_()
        output = corner_pool(x, direction)
        return output.detach(), *torch.autograd.grad(output, x, x.detach())

    return pool


def heatmap_loss(shape, device):
    """The loss and its gradient. All images have the same bumps."""
    num_images, num_classes, height, width = shape
    generator = torch.Generator().manual_seed(0)
    count = num_classes * BUMPS_PER_PLANE
    plane = torch.arange(num_images * num_classes).repeat_interleave(BUMPS_PER_PLANE)
    bumps = [
        torch.randint(limit, (count,), generator=generator).repeat(num_images)
        for limit in (height, width, 9)
    ]
    bumps = torch.stack([plane, *bumps], dim=1).int().to(device)
    start = torch.arange(num_images * num_classes + 1, device=device).int() * BUMPS_PER_PLANE

    def loss_of(x):
        x = x.detach().requires_grad_()
        loss = gaussian_focal_loss(x, bumps, start)
        return loss.detach(), *torch.autograd.grad(loss, x)

    return loss_of


def soft_nms(x):
    """Order and scores of boxes made of (N, M, 5) numbers."""
    boxes = torch.cat((x[..., :2], x[..., :2] + x[..., 2:4].abs() + 1), dim=-1)
    classes = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    return batched_soft_nms(boxes, x[..., 4].sigmoid(), classes, 100)


# Of two images at the network's sizes.
MAP, HEATMAP, BOXES = (2, 128, 128, 128), (2, 80, 128, 128), (2, 1000, 5)
# Shape of the input, and a function that makes the operator.
KERNELS = {
    "pooling along columns": (MAP, lambda: pooling("top")),
    "pooling along rows": (MAP, lambda: pooling("left")),
    "heatmap loss": (HEATMAP, lambda: heatmap_loss(HEATMAP, "cuda")),
}
OPERATORS = {**KERNELS, "soft-NMS": (BOXES, lambda: soft_nms)}
each_kernel, each_operator = (
    pytest.mark.parametrize("shape, make", list(x.values()), ids=list(x))
    for x in (KERNELS, OPERATORS)
)


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected))


@each_format
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pooling_at_the_size_of_the_network_equals_the_cpus(direction, dtype, memory_format):
    # Integers give ties, and sums that are exact in any order.
    x = torch.randint(-4, 5, MAP, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype, memory_format=memory_format)

    found = pooling(direction)(x.cuda())

    assert all(y.is_contiguous(memory_format=memory_format) for y in found)
    assert_equal([y.cpu() for y in found], pooling(direction)(x))


@each_format
@pytest.mark.parametrize("dtype", DTYPES)
def test_heatmap_loss_at_the_size_of_the_network_equals_the_cpus(dtype, memory_format):
    x = torch.randn(HEATMAP, generator=torch.Generator().manual_seed(0)) * 4
    x = x.to(dtype, memory_format=memory_format)

    loss, gradient = heatmap_loss(HEATMAP, "cuda")(x.cuda())

    expected_loss, expected_gradient = heatmap_loss(HEATMAP, "cpu")(x)
    torch.testing.assert_close(loss.cpu(), expected_loss, rtol=1e-5, atol=0)
    # A hundred roundings of both, one of them to the dtype, and the smallest number of float16.
    tolerance = rounding(1, dtype) + rounding(100, torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=tolerance, atol=1e-7)


@each_format
@pytest.mark.parametrize("name", [*DIRECTIONS, "heatmap loss"])
def test_images_of_more_than_2_to_the_31_elements_equal_single_images(name, memory_format):
    shape, gigabytes = (3, 43, 4096, 4096), 25
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory")
    together, alone = (
        heatmap_loss((n, *shape[1:]), "cuda") if name == "heatmap loss" else pooling(name)
        for n in (3, 1)
    )
    x = torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=memory_format)
    assert x.normal_().numel() > 2**31

    value, gradient = together(x)

    total = 0
    for i in range(3):
        value_alone, gradient_alone = alone(x[i : i + 1])
        assert torch.equal(gradient[i : i + 1], gradient_alone)
        if name == "heatmap loss":
            total += value_alone
        else:
            assert torch.equal(value[i : i + 1], value_alone)
    if name == "heatmap loss":
        torch.testing.assert_close(value, total, rtol=1e-6, atol=0)


@each_operator
def test_results_are_the_same_in_each_run(shape, make):
    function = make()
    x = torch.randn(shape, device="cuda")

    first = function(x)

    for _ in range(5):
        assert_equal(function(x), first)


@each_operator
def test_operators_run_on_the_current_stream(shape, make):
    function = make()
    values, busy = torch.randn(shape, device="cuda"), torch.randn(4096, 4096, device="cuda")
    expected = function(values)
    x = torch.zeros_like(values)
    torch.cuda.synchronize()

    with torch.cuda.stream(torch.cuda.Stream()):
        # The values arrive late: a kernel on another stream would read the zeros.
        for _ in range(20):
            busy = busy @ busy
        x.copy_(values)
        found = function(x)
    torch.cuda.synchronize()

    assert_equal(found, expected)


# Soft-NMS copies the boxes to the CPU, which a graph cannot contain.
@each_kernel
def test_kernels_are_captured_in_a_cuda_graph(shape, make):
    function = make()
    x, other = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function(x)

    x.copy_(other)
    graph.replay()

    torch.cuda.synchronize()
    assert_equal(found, function(other))
