"""Detects objects in images with a file of export_model.py; needs numpy, Pillow and onnxruntime.

    %(prog)s MODEL.onnx IMAGE... [--output FOLDER] [--confidence-threshold 0.5]

prints a line of JSON for each object: picture (the file), class, score, box (x0, y0, x1, y1 in
pixels). This file needs neither PyTorch nor this project: copy it with the model.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, ImageDraw, ImageOps

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


class Detections(NamedTuple):
    """The objects of one image, best first."""

    boxes: np.ndarray
    """(D, 4) float32 x0, y0, x1, y1 in pixels of the image."""
    scores: np.ndarray
    """(D,) float32 in [0, 1]."""
    classes: np.ndarray
    """(D,) int64."""


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    max_detections: int,
    method: str,
    sigma: float,
    iou_threshold: float,
    min_score: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS: repeatedly takes the best box and lowers the scores of the others of its class.

    Args:
        boxes: (P, 4) float32 x0, y0, x1, y1.
        scores: (P,) float32; negative for no box.
        classes: (P,) integers.
        max_detections: limit of the boxes that are taken.
        method: "gaussian" multiplies scores by exp(-IoU^2 / sigma) with the box that was taken,
            "linear" by 1 - IoU where the IoU exceeds ``iou_threshold``.
        sigma, iou_threshold: see ``method``.
        min_score: boxes whose lowered score is less are dropped.

    Returns:
        (D,) indices of the boxes in the order of taking, and their (D,) lowered scores.

    Raises:
        ValueError: if there is no such method.

    Source: arXiv 1704.04503, figure 2.
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"method is {method!r}, expected 'gaussian' or 'linear'")
    # If sigma underflows to 0, boxes that do not overlap give 0 / 0.
    sigma = max(np.float32(sigma), np.finfo(np.float32).tiny)
    left = np.flatnonzero(scores >= 0)
    scores = scores.astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    taken: list[int] = []
    while len(left) and len(taken) < max_detections:
        best = left[scores[left].argmax()]
        taken.append(int(best))
        left = left[left != best]
        same = left[classes[left] == classes[best]]
        corner0 = np.maximum(boxes[same, :2], boxes[best, :2])
        corner1 = np.minimum(boxes[same, 2:], boxes[best, 2:])
        intersection = np.maximum(corner1 - corner0, 0).prod(axis=1)
        union = areas[same] + areas[best] - intersection
        iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        if method == "gaussian":
            scores[same] *= np.exp(-iou * iou / sigma)
        else:
            scores[same] *= np.where(iou > np.float32(iou_threshold), 1 - iou, np.float32(1))
        left = left[scores[left] >= np.float32(min_score)]
    return np.array(taken, dtype=np.int64), scores[taken]


def resized(picture: Image.Image, short_edge: int, longest: int) -> Image.Image:
    """Resizes an image to a shorter edge, with the rounding of Detectron2's ResizeShortestEdge.

    Args:
        picture: the image.
        short_edge: pixels of the shorter edge; 0 keeps the size.
        longest: limit of the longer edge in pixels, which takes precedence.
    """
    if short_edge == 0:
        return picture
    scale = short_edge / min(picture.size)
    # The product for the shorter edge may have a rounding error.
    size = [short_edge if x == min(picture.size) else scale * x for x in picture.size]
    if max(size) > longest:
        scale = longest / max(size)
        size = [x * scale for x in size]
    return picture.resize([int(x + 0.5) for x in size], Image.BILINEAR)


class Detector:
    """An exported detector with the settings in the metadata of its file."""

    def __init__(self, path: str):
        """
        Args:
            path: of a file of ``export_model.py --format onnx``.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it is not such a file.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no model {path!r} (relative to {os.getcwd()})")
        # Here, as the other functions need only numpy and Pillow.
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        # onnxruntime's exceptions have no other common base class.
        except Exception as error:
            raise ValueError(f"{path} cannot be loaded by onnxruntime: {error}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.input_format = metadata["input_format"]
            self.min_size = int(metadata["min_size_test"])
            self.max_size = int(metadata["max_size_test"])
            self.class_names = json.loads(metadata["class_names"])
            options = json.loads(metadata["soft_nms"])
            # Already applied in the graph.
            options.pop("max_candidates")
        except KeyError as error:
            raise ValueError(
                f"{path} lacks the metadata {error}; use a file of export_model.py --format onnx"
            ) from error
        self.soft_nms_options = options

    def __call__(self, picture: Image.Image) -> Detections:
        """
        Args:
            picture: RGB.

        Returns:
            The objects, clipped to the image.
        """
        seen = resized(picture, self.min_size, self.max_size)
        pixels = np.asarray(seen, dtype=np.float32)
        if self.input_format == "BGR":
            pixels = pixels[:, :, ::-1]
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        boxes, scores, classes = self.session.run(["boxes", "scores", "classes"], {"image": image})
        kept, scores = soft_nms(boxes, scores, classes, **self.soft_nms_options)
        limit = np.array(picture.size * 2, dtype=np.float32)
        scale = limit / np.array(seen.size * 2, dtype=np.float32)
        boxes = np.clip(boxes[kept] * scale, 0, limit)
        not_empty = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
        return Detections(boxes[not_empty], scores[not_empty], classes[kept][not_empty])

    def name_of(self, cls: int) -> str:
        """The name of a class, or its index if the file has no names."""
        return self.class_names[cls] if self.class_names else str(cls)


def read_picture(path: str) -> Image.Image:
    """Reads an image in RGB.

    Raises:
        OSError: if it cannot be read; names the file.
    """
    try:
        with Image.open(path) as file:
            # Cameras store the rotation of an image in its EXIF data.
            return ImageOps.exif_transpose(file).convert("RGB")
    # Pillow raises exceptions of many types for damaged files.
    except Exception as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def draw(picture: Image.Image, found: Detections, detector: Detector) -> None:
    """Draws boxes, names and scores onto an image."""
    canvas = ImageDraw.Draw(picture)
    for (x0, y0, x1, y1), score, cls in zip(*(x.tolist() for x in found)):
        color = COLORS[cls % len(COLORS)]
        canvas.rectangle((x0, y0, x1, y1), outline=color, width=max(1, min(picture.size) // 200))
        label = f"{detector.name_of(cls)} {score:.0%}"
        try:
            canvas.textbbox((x0, y0), label)
        except UnicodeEncodeError:
            # The font of Pillow before 10.1 supports Latin-1 only.
            label = label.encode("latin-1", "replace").decode("latin-1")
        canvas.rectangle(canvas.textbbox((x0, y0), label), fill=color)
        canvas.text((x0, y0), label, fill="white")


def run(argv: Optional[Sequence[str]] = None) -> None:
    """Detects and prints; the arguments are by default those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="written by export_model.py")
    parser.add_argument("pictures", metavar="IMAGE", nargs="+")
    parser.add_argument("--output", metavar="FOLDER", help="folder for the drawn images")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="lowest score of an object that is printed and drawn (default 0.5)",
    )
    args = parser.parse_args(argv)
    targets = [os.path.join(args.output or "", os.path.basename(x)) for x in args.pictures]
    if args.output and len(set(targets)) < len(targets):
        raise ValueError("--output: several images have one file name. Use a call for each.")
    detector = Detector(args.model)
    for path, target in zip(args.pictures, targets):
        picture = read_picture(path)
        found = detector(picture)
        found = Detections(*(x[found.scores >= args.confidence_threshold] for x in found))
        for box, score, cls in zip(*(x.tolist() for x in found)):
            line = {"picture": path, "class": detector.name_of(cls), "score": round(score, 4)}
            print(json.dumps({**line, "box": [round(x, 2) for x in box]}))
        if args.output:
            if os.path.realpath(target) == os.path.realpath(path):
                raise ValueError(f"--output would overwrite {path}; name another folder")
            os.makedirs(args.output, exist_ok=True)
            draw(picture, found, detector)
            picture.save(target)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command ``centripetalnet-run-onnx``, also ``tools/run_onnx.py``.

    Args:
        argv: the arguments, by default those of the command line.

    Returns:
        The exit status: 0, or 1 after an error.
    """
    try:
        run(argv)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
