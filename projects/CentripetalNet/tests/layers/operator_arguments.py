"""Arguments for the operators, valid and invalid, as hypothesis strategies."""

import math
import re
import warnings

import torch
from hypothesis import event
from hypothesis import strategies as st

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
    return torch.cat((x.new_zeros(7), x.flatten()))[7:].view(x.shape)


def expanded(x):
    return x[(slice(1),) * (x.dim() - 1)].expand(x.shape)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def sliced_channels_last(x):
    return channels_last(torch.cat((x, x), dim=1))[:, : x.shape[1]] if x.dim() == 4 else x


# Memory layouts that kernels must support; `expanded` repeats values.
ARRANGEMENTS = (torch.Tensor.contiguous, transposed, sliced, with_offset, expanded, channels_last)
ARRANGEMENTS += (sliced_channels_last,)


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
