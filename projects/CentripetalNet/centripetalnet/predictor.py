"""Detection in images from Python."""

import os
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances

from .checkpoint import CentripetalNetCheckpointer
from .config import check_values
from .data import build_augmentations, load_config, metadata_of_tests, model_input
from .io.pictures import read_picture
from .modeling import CentripetalNetWithTTA, optimize_for_inference

Path = Union[str, "os.PathLike[str]"]


class Predictor:
    """A model with its weights, like Detectron2's DefaultPredictor.

    In contrast to it, weights that do not fit are an error, ``TEST.AUG.ENABLED`` and
    ``TEST.PRECISION`` are respected, and a call also takes a list of images. Images are resized as
    in evaluation. Images of a list with the same canvas size are one batch, with test-time
    augmentation the views of each image; so memory grows with the list. The results are those of
    the images one by one up to rounding: 1e-6 in scores and 1e-5 pixels in float32.

    Attributes:
        metadata: of the first of ``DATASETS.TEST``, with the class names ``thing_classes``.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: ``MODEL.WEIGHTS`` names the weights; see ``centripetalnet.config.load_config``.

        Raises:
            FileNotFoundError, ValueError: if the weights are missing or do not fit.
            ValueError: if ``MODEL.DEVICE`` is a GPU and there is none, or a size of ``INPUT`` is
                invalid.
        """
        check_values(cfg)
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty: set MODEL.WEIGHTS to path/to/model.pth")
        self.input_format = cfg.INPUT.FORMAT
        self.augmentations = T.AugmentationList(build_augmentations(cfg, is_train=False))
        self.metadata = metadata_of_tests(cfg)
        model = build_model(cfg)
        CentripetalNetCheckpointer(model, averaged=cfg.MODEL.EMA.ENABLED).load(cfg.MODEL.WEIGHTS)
        self.model = optimize_for_inference(model, cfg.TEST.PRECISION)
        if cfg.TEST.AUG.ENABLED:
            self.model = CentripetalNetWithTTA(cfg, self.model)

    @torch.no_grad()
    def __call__(self, image: Union[np.ndarray, list[np.ndarray]]) -> Union[dict, list[dict]]:
        """
        Args:
            image: (h0, w0, 3) uint8 in BGR order, as OpenCV reads it, or a list of such images.

        Returns:
            ``{"instances": Instances}`` with ``pred_boxes``, ``scores`` and ``pred_classes``; for a
            list one for each image.

        Raises:
            ValueError: if an image has another shape or type; names its index in a list.
        """
        if not isinstance(image, list):
            return self.model([self.model_input(image)])[0]
        inputs = []
        for index, item in enumerate(image):
            try:
                inputs.append(self.model_input(item))
            except ValueError as error:
                raise ValueError(f"index {index} of the list: {error}") from error
        return self.model(inputs) if inputs else []

    def model_input(self, image: np.ndarray) -> dict:
        """Converts an image to the model's input.

        Args:
            image: (h0, w0, 3) uint8 in BGR order, as OpenCV reads it.

        Returns:
            ``image`` (3, h, w) uint8, resized as in evaluation, with channels in the order of
            ``INPUT.FORMAT``; ``height`` h0 and ``width`` w0, which the model's boxes refer to.

        Raises:
            ValueError: if the image has another shape or type.
        """
        _check_image(image)
        return model_input(image, self.augmentations, self.input_format)

    def detect(
        self,
        picture: Union[np.ndarray, Path, list[Union[np.ndarray, Path]]],
        min_score: float = 0.0,
    ) -> Union[Instances, list[Instances]]:
        """Detects the objects in one image, or in each image of a list.

        Args:
            picture: path of a file, or (h0, w0, 3) uint8 in BGR order, as OpenCV reads it, or a
                list of these.
            min_score: objects with lower scores are dropped.

        Returns:
            R objects on the CPU: ``pred_boxes`` (R, 4) x0, y0, x1, y1 in pixels of the image,
            ``scores`` (R,) in [0, 1], best first, ``pred_classes`` (R,) indices into
            ``metadata.thing_classes``, and with a mask head ``pred_masks`` (R, h0, w0) bool. For a
            list one ``Instances`` for each image.

        Raises:
            OSError: if a file cannot be read as an image; names it.
            ValueError: if an array has another shape or type; names its index in a list.
        """
        if not isinstance(picture, list):
            return _best(self(_pixels(picture)), min_score)
        return [_best(x, min_score) for x in self([_pixels(x) for x in picture])]


def _pixels(picture: Union[np.ndarray, Path]) -> np.ndarray:
    if isinstance(picture, (str, os.PathLike)):
        return read_picture(os.fspath(picture))
    return picture


def _best(result: dict, min_score: float) -> Instances:
    instances = result["instances"]
    return instances[instances.scores >= min_score].to("cpu")


def load_predictor(
    config: Path,
    weights: Optional[Path],
    *,
    device: Optional[str] = None,
    precision: Optional[str] = None,
    tta: bool = False,
    opts: Sequence = (),
) -> Predictor:
    """Loads a detector with its weights.

    Args:
        config: path of a config file, or the name of a config of the package, such as
            "centripetal_hg104" or "centripetal_tiny".
        weights: path or URL of a checkpoint that fits the config, by default ``MODEL.WEIGHTS`` of
            the config or ``opts``.
        device: "cpu", "cuda" or "cuda:N", by default that of the config.
        precision: of the convolutions, "float32", "bfloat16" or "float16", by default that of the
            config.
        tta: whether to use test-time augmentation, with the mirror images and scales of
            ``TEST.AUG``. It takes several times as long.
        opts: alternating keys and values of the config. They override the other arguments.

    Raises:
        FileNotFoundError: if the config or the checkpoint does not exist.
        ValueError: if the weights do not fit the config, or another argument is invalid.
    """
    changes = ["TEST.AUG.ENABLED", tta]
    if weights is not None:
        changes += ["MODEL.WEIGHTS", os.fspath(weights)]
    if device is not None:
        changes += ["MODEL.DEVICE", _checked_device(device)]
    if precision is not None:
        changes += ["TEST.PRECISION", precision]
    cfg = load_config(os.fspath(config), [*changes, *opts])
    cfg.freeze()
    return Predictor(cfg)


def _checked_device(device: str) -> str:
    try:
        return str(torch.device(device))
    except RuntimeError as error:
        raise ValueError(
            f"the device is {device!r}, expected 'cpu', 'cuda' or 'cuda:N' with the index of a GPU"
        ) from error


def _check_image(image: np.ndarray) -> None:
    expected = "expected an array (height, width, 3) of uint8 in BGR order, as from cv2.imread"
    if not isinstance(image, np.ndarray):
        hint = ". cv2.imread returns None for a file that it cannot read" if image is None else ""
        raise ValueError(f"the image is of type {type(image).__name__}, {expected}{hint}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"the image is {image.shape} of {image.dtype}, {expected}")
