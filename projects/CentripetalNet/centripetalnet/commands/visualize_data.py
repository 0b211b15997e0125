"""Draws the annotations of the training datasets, or augmented samples with their targets.

    %(prog)s --source annotation --config-file FILE --output-dir FOLDER [KEY VALUE ...]
    %(prog)s --source dataloader --config-file FILE --output-dir FOLDER [KEY VALUE ...]

The options are those of Detectron2's tool of this name, and --num-images.
"""

import argparse
import itertools
import os
from collections.abc import Iterator

import cv2
import numpy as np
import torch
import tqdm
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb, read_image

from centripetalnet.commands.common import command, config_parser
from centripetalnet.commands.demo import WINDOW_NAME, open_window
from centripetalnet.data import CentripetalNetDatasetMapper, build_training_loader, load_config
from centripetalnet.data.check.datasets import check_datasets
from centripetalnet.explain import targets_figure
from centripetalnet.modeling.corner_targets import corner_targets
from centripetalnet.modeling.hourglass import STRIDE
from centripetalnet.visualization import draw_ground_truth, rendered

# The training loader is infinite.
SAMPLES = 20


def get_parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__, weights=False)
    parser.add_argument(
        "--source",
        choices=["annotation", "dataloader"],
        required=True,
        help="annotations of DATASETS.TRAIN, or samples of the training loader",
    )
    parser.add_argument("--output-dir", default="./", metavar="FOLDER", help="where to write")
    parser.add_argument("--show", action="store_true", help="show them in a window instead")
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help=f"limit of the images (default: all annotated images, or {SAMPLES} samples)",
    )
    return parser


def annotated_images(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """File name and drawing of each image of the training datasets."""
    for dataset in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(dataset)
        for i, record in enumerate(DatasetCatalog.get(dataset)):
            image = read_image(record["file_name"], "RGB")
            name = os.path.splitext(os.path.basename(record["file_name"]))[0]
            drawn = draw_ground_truth(image, record, metadata, cfg.MODEL.MASK_ON)
            yield f"{dataset}_{i:06d}_{name}.png", drawn


def draw_sample(sample: dict, cfg: CfgNode, title: str = "") -> np.ndarray:
    """Draws an augmented sample with its targets.

    Args:
        sample: ``image`` and ``instances``, from the mapper.
        cfg: see ``add_centripetalnet_config``.
        title: of the figure.

    Returns:
        (height, width, 3) RGB uint8.
    """
    instances, canvas_size = sample["instances"], tuple(sample["image"].shape[-2:])
    map_size = tuple(-(-side // STRIDE) for side in canvas_size)
    boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
    targets = corner_targets(
        boxes,
        classes,
        torch.zeros_like(classes),
        num_images=1,
        num_classes=cfg.MODEL.CENTRIPETALNET.NUM_CLASSES,
        canvas_size=canvas_size,
        map_size=map_size,
        min_overlap=cfg.MODEL.CENTRIPETALNET.GAUSSIAN_MIN_OVERLAP,
    )
    figure = targets_figure(
        convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT),
        boxes,
        classes,
        targets,
        map_size,
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes"),
        title,
    )
    return rendered(figure)


def training_samples(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """File name and drawing of each training sample, in the order of the training; infinite."""
    loader = build_training_loader(cfg, CentripetalNetDatasetMapper(cfg, is_train=True))
    for i, sample in enumerate(itertools.chain.from_iterable(loader)):
        picture = os.path.splitext(os.path.basename(sample["file_name"]))[0]
        yield f"{i:06d}_{picture}.png", draw_sample(sample, cfg, f"sample {i}, {picture}")


def run(args: argparse.Namespace) -> None:
    """Draws the images.

    Args:
        args: of :func:`get_parser`.
    """
    if args.num_images is not None and args.num_images < 1:
        raise ValueError(f"--num-images is {args.num_images}; expected 1 or more")
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty, expected the name of a dataset")
    check_datasets(cfg.DATASETS.TRAIN, cfg.MODEL.CENTRIPETALNET.NUM_CLASSES)
    if args.source == "annotation":
        pictures, count = annotated_images(cfg), args.num_images
    else:
        pictures, count = training_samples(cfg), args.num_images or SAMPLES
    if args.show:
        open_window("Leave out --show to write files to --output-dir.")
    else:
        os.makedirs(args.output_dir, exist_ok=True)
    for name, picture in tqdm.tqdm(
        itertools.islice(pictures, count), total=count, unit="image", disable=args.show
    ):
        if args.show:
            cv2.imshow(WINDOW_NAME, picture[:, :, ::-1])
            if cv2.waitKey() == 27:
                break
        elif not cv2.imwrite(os.path.join(args.output_dir, name), picture[:, :, ::-1]):
            raise OSError(f"cannot write {os.path.join(args.output_dir, name)}")


main = command(get_parser, run)
