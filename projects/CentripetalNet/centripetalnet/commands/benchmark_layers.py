"""What `make bench` measures of the machine, the operators and the decoding."""

from collections.abc import Iterator
from typing import Callable

import torch
import torch.nn.functional as F

from centripetalnet.commands.measuring import (
    DTYPES,
    FORMATS,
    Row,
    in_own_process,
    judged,
    median_seconds,
)
from centripetalnet.layers import corner_pool, gaussian_focal_loss, render_bumps
from centripetalnet.modeling.centripetal_shift import CentripetalShiftMatching, CornerShifts
from centripetalnet.modeling.corner_matching import find_peaks, locate_corners, match_corners
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.modeling.selection import SelectionOptions, best_candidates, select_detections

NUM_IMAGES, NUM_CLASSES = 6, 80
IMAGE_SIZE, MAP_SIZE = (511, 511), (128, 128)


def memory_of(case: str) -> float:
    """Peak megabytes of one of ``benchmark.MEMORY_CASES``, measured in a separate process."""
    threads = str(torch.get_num_threads())
    return in_own_process("benchmark", "--threads", threads, "--memory-of", case)


def plain_convolutions(dtype: torch.dtype, memory_format: torch.memory_format) -> dict:
    """A 3x3 convolution of 256 channels and its two gradients, to be called."""
    x, grad = (
        torch.randn(1, 256, *MAP_SIZE).to(dtype, memory_format=memory_format) for _ in range(2)
    )
    weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=memory_format)
    ones, zeros = [1, 1], [0, 0]

    def gradient(of_input: bool) -> Callable:
        outputs = [of_input, not of_input, False]
        options = (None, ones, ones, ones, False, zeros, 1, outputs)
        return lambda: torch.ops.aten.convolution_backward(grad, x, weight, *options)

    return {
        "forward": lambda: F.conv2d(x, weight, padding=1),
        "input gradient": gradient(True),
        "weight gradient": gradient(False),
    }


CONVOLUTION_FLOPS = 2 * 9 * 256 * 256 * MAP_SIZE[0] * MAP_SIZE[1]


@torch.no_grad()
def machine() -> Iterator[Row]:
    """Rates of plain operations on this machine."""
    for name, dtype in DTYPES.items():
        a, b = torch.randn(2, 2048, 2048).to(dtype)
        seconds = median_seconds(9, product=lambda a=a, b=b: a @ b)["product"]
        yield Row(f"matrix product, {name}", 2 * 2048**3 / seconds / 1e9, "GFLOP/s")
    x = torch.randn(NUM_IMAGES, 128, *MAP_SIZE)
    y = torch.empty_like(x)
    seconds = median_seconds(15, clone=x.clone, copy=lambda: y.copy_(x))
    for name in ("copy", "clone"):
        rate = x.numel() * x.element_size() / seconds[name] / 1e9
        yield Row(f"{name} of 50 MB, float32", rate, "GB/s")
    for name, dtype in DTYPES.items():
        for layout, memory_format in FORMATS.items():
            convolutions = plain_convolutions(dtype, memory_format)
            for kind, seconds in median_seconds(9, **convolutions).items():
                part = f"convolution 3x3, 256 channels, {name}, {layout}, {kind}"
                yield Row(part, CONVOLUTION_FLOPS / seconds / 1e9, "GFLOP/s")


@torch.no_grad()
def pooling() -> Iterator[Row]:
    """Corner pooling against copies of the same tensor."""
    for name, dtype in DTYPES.items():
        for layout, memory_format in FORMATS.items():
            x, grad = (
                torch.randn(NUM_IMAGES, 128, *MAP_SIZE).to(dtype, memory_format=memory_format)
                for _ in range(2)
            )
            warm = torch.empty_like(x)
            for index, direction in enumerate(("top", "bottom", "left", "right")):
                seconds = median_seconds(
                    15,
                    clone=x.clone,
                    copy=lambda warm=warm, x=x: warm.copy_(x),
                    forward=lambda x=x, direction=direction: corner_pool(x, direction),
                    backward=lambda grad=grad, x=x, index=index: (
                        torch.ops.centripetalnet.corner_pool_backward(grad, x, index)
                    ),
                )
                for step, limit in (("forward", 2.0), ("backward", 4.0)):
                    ratio = seconds[step] / seconds["clone"]
                    to_copy = seconds[step] / seconds["copy"]
                    part = f"corner pooling {step}, {direction}, {name}, {layout}"
                    unit = f"x clone ({to_copy:.1f} x copy)"
                    yield judged(part, ratio, unit, f"<= {limit}")


class HeatmapLossCase:
    """Targets and heatmap losses of two stacks, with this project's operator and dense maps."""

    def __init__(self, boxes_per_image: int = 8, num_images: int = NUM_IMAGES, device: str = "cpu"):
        generator = torch.Generator().manual_seed(0)
        self.num_images = num_images
        count = num_images * boxes_per_image
        corner = torch.rand(count, 2, generator=generator) * 300
        size = torch.rand(count, 2, generator=generator) * 200 + 8
        self.boxes = torch.cat((corner, corner + size), dim=1).to(device)
        self.classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator).to(device)
        self.image_index = torch.arange(num_images, device=device).repeat_interleave(
            boxes_per_image
        )
        shape = (num_images, NUM_CLASSES, *MAP_SIZE)
        # Two corners times two stacks.
        self.logits = [
            (torch.randn(shape, generator=generator) - 2.19).to(device).requires_grad_()
            for _ in range(4)
        ]

    def targets(self):
        numbers = (self.num_images, NUM_CLASSES, IMAGE_SIZE, MAP_SIZE)
        targets = corner_targets(self.boxes, self.classes, self.image_index, *numbers)
        return [targets.tl.heatmap, targets.br.heatmap] * 2

    def _backward(self, losses) -> None:
        for logits in self.logits:
            logits.grad = None
        sum(losses).backward()

    def ours(self) -> None:
        self._backward(
            gaussian_focal_loss(logits, target.bumps, target.plane_start)
            / target.num_positive.clamp(min=1)
            for logits, target in zip(self.logits, self.targets())
        )

    def plain(self) -> None:
        tl, br = (render_bumps(x.bumps, tuple(self.logits[0].shape)) for x in self.targets()[:2])
        losses = []
        for logits, target in zip(self.logits, (tl, br, tl, br)):
            p, positive = logits.sigmoid().clamp(1e-12, 1 - 1e-7), target.eq(1)
            loss = -p.log() * (1 - p).square() * positive
            loss = loss - (1 - p).log() * p.square() * (1 - target).pow(4) * ~positive
            losses.append(loss.sum() / positive.sum().clamp(min=1))
        self._backward(losses)

    def megabytes(self) -> float:
        return sum(x.numel() * x.element_size() for x in self.logits) / 2**20


def heatmap_loss() -> Iterator[Row]:
    """Targets and heatmap loss, forward and backward."""
    case = HeatmapLossCase()
    seconds = median_seconds(5, ours=case.ours, plain=case.plain)
    part = "targets and heatmap loss, forward and backward"
    yield Row(part, seconds["ours"] * 1e3, "ms")
    ratio = seconds["plain"] / seconds["ours"]
    yield judged(part, ratio, "x as fast as dense targets", ">= 10")
    ratio = memory_of("heatmap_loss") / case.megabytes()
    yield judged(f"{part}, memory", ratio, "x the logits", "<= 1.5")


def decoding_case(device: str = "cpu") -> Callable:
    """A call that decodes the maps of one image, with 1,000 candidates for soft-NMS.

    Args:
        device: of the maps.

    Returns:
        A function that returns the candidates and the detections.
    """
    matching, selection = CentripetalShiftMatching(), SelectionOptions()
    center, corners = 60, {"tl": (20, +1), "br": (80, -1)}
    logits = torch.randn(2, 1, NUM_CLASSES, *MAP_SIZE, generator=torch.Generator().manual_seed(0))
    # The memory format of the inference model.
    logits = [(x - 12).to(device, memory_format=torch.channels_last) for x in logits]
    border = torch.zeros(1, 2, device=device)
    for heatmap, (first, _) in zip(logits, corners.values()):
        # A hundred corners of one class that point to one centre.
        heatmap[0, 0, first : first + 20 : 2, first : first + 20 : 2] += 12

    @torch.no_grad()
    def decode():
        found = []
        for heatmap, (_, inwards) in zip(logits, corners.values()):
            peaks = find_peaks(heatmap, matching)
            cell = torch.stack((peaks.cell % MAP_SIZE[1], peaks.cell // MAP_SIZE[1]), dim=-1)
            shift = (inwards * (center - cell)).clamp(min=1).float().log()
            predictions = CornerShifts(None, None, shift)
            sizes = MAP_SIZE, IMAGE_SIZE
            found.append(locate_corners(peaks, shift * 0, predictions, matching, inwards, *sizes))
        candidates = match_corners(*found, border, matching)
        candidates = best_candidates(candidates, selection.max_candidates)
        return candidates, select_detections(candidates, selection)

    candidates, _ = decode()
    count = int((candidates.scores >= 0).sum())
    if count != selection.max_candidates:
        raise RuntimeError(f"the case has {count} candidates, not {selection.max_candidates}")
    return decode


DECODING = "decoding and soft-NMS, 80 classes, 1,000 candidates"


def decoding() -> Iterator[Row]:
    """Decoding the heatmaps and shifts of one image."""
    milliseconds = median_seconds(21, decode=decoding_case())["decode"] * 1e3
    yield judged(DECODING, milliseconds, "ms", "<= 8")
