"""Exports a detector to an ONNX file or a PyTorch program, which run without this project.

    centripetalnet-export --config-file FILE --output model.onnx --opts MODEL.WEIGHTS model.pth

Input: `image` (1, 3, height, width) of any size, float32 in [0, 255], channels as in INPUT.FORMAT.
Outputs: the best candidates as `boxes` (P, 4) in pixels of that image, not clipped to it, `scores`
(P,), best first, -1 for no box, and `classes` (P,). The file contains normalisation, canvas and
corner matching. tools/run_onnx.py does the rest with the settings in the file's metadata: resizing
by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, and soft-NMS. Masks are not exported. The file is compared
with the model before it is written.
"""

import argparse
import os
import time

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from centripetalnet import export
from centripetalnet.checkpoint import CentripetalNetCheckpointer
from centripetalnet.commands.common import command, config_parser
from centripetalnet.data import (
    build_augmentations,
    load_config,
    metadata_of_tests,
    model_input,
)
from centripetalnet.io.files import atomic_path
from centripetalnet.io.pictures import read_picture

# Height and width of the random images for the comparison; their canvases differ.
CHECKED_SIZES = ((97, 130), (300, 200))


def get_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__)
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch"),
        default="onnx",
        help="onnx: ONNX with standard operators; torch: a program for torch.export.load, for "
        "images from 2 x 2 pixels",
    )
    parser.add_argument("--opset", type=int, default=17, help="version of the ONNX operators")
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images to compare file and model on (default: random images of two sizes)",
    )
    return parser


def class_names(cfg: CfgNode) -> list[str]:
    """The class names of the test dataset, empty if they are unknown."""
    names = list(metadata_of_tests(cfg).get("thing_classes", []))
    return names if len(names) == cfg.MODEL.CENTRIPETALNET.NUM_CLASSES else []


def checked_pictures(paths: list[str], cfg: CfgNode) -> dict[str, torch.Tensor]:
    """Names and (3, h, w) images to compare on. Files are resized as in evaluation."""
    augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))
    if not paths:
        return {f"noise, {h} x {w}": export.noise((h, w))[0] for h, w in CHECKED_SIZES}
    inputs = {x: model_input(read_picture(x), augmentations, cfg.INPUT.FORMAT) for x in paths}
    return {path: x["image"].float() for path, x in inputs.items()}


def run(args: argparse.Namespace) -> None:
    """Exports a detector, compares it with the model and prints the differences.

    Args:
        args: of :func:`get_parser`.

    Raises:
        ModuleNotFoundError: if onnx or onnxruntime is needed and not installed.
        OSError, ValueError: if a file cannot be read or written, or the export differs from the
            model. No file is written then.
    """
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty, add --opts MODEL.WEIGHTS path/to/model.pth")
    pictures = checked_pictures(args.check, cfg)
    if args.format == "onnx":
        # Fails early if they are not installed.
        export.import_optional("onnx")
        export.import_optional("onnxruntime")
    model = build_model(cfg).eval()
    CentripetalNetCheckpointer(model, averaged=cfg.MODEL.EMA.ENABLED).load(cfg.MODEL.WEIGHTS)
    metadata = export.metadata_of(
        model, class_names(cfg), cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )

    start = time.perf_counter()
    # PyTorch expects the extension .pt2.
    with atomic_path(args.output, ending=os.path.splitext(args.output)[1]) as unfinished:
        if args.format == "onnx":
            export.export_onnx(model, unfinished, metadata, args.opset)
            call = export.load_onnx(unfinished)
        else:
            export.export_program(model, unfinished, metadata)
            call = export.load_program(unfinished)
        seconds = time.perf_counter() - start
        agreements = export.check_agreement(model, call, list(pictures.values()))
        for name, agreement in zip(pictures, agreements):
            print(
                f"{name}: {agreement.candidates} candidates, boxes differ by up to "
                f"{agreement.boxes:.1e} pixels, scores by {agreement.scores:.1e}; "
                f"{agreement.unpaired} candidates in only one of the two"
            )
        if not all(x.within_tolerance() for x in agreements):
            raise ValueError(
                f"the export differs from the model by more than {export.BOX_TOLERANCE} pixels, "
                f"{export.SCORE_TOLERANCE} in score or 5% of the candidates, {args.output} was not "
                "written. Try another --opset or version of PyTorch or onnxruntime."
            )
    if not any(x.candidates for x in agreements):
        print("No candidates to compare. Use --check with images of objects of the classes.")
    if model.mask_head is not None:
        print("The model's masks are not exported.")
    size = os.path.getsize(args.output) / 1e6
    print(f"{args.output}: {size:.1f} MB, exported and loaded in {seconds:.1f} s")


main = command(get_parser, run)
