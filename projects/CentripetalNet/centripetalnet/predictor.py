"""From a picture to its objects in one call."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from .checkpoint import CentripetalNetCheckpointer
from .modeling import CentripetalNetWithTTA, optimize_for_inference


class Predictor:
    """A model with its weights, for one picture at a time; Detectron2's DefaultPredictor, stricter.

    Weights that do not fit are an error, and ``TEST.AUG.ENABLED`` and ``TEST.PRECISION`` are
    followed.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: ``MODEL.WEIGHTS`` names the weights; see ``centripetalnet.config.load_config``.

        Raises:
            FileNotFoundError, ValueError: if the weights are not there or do not fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("a checkpoint is needed: set MODEL.WEIGHTS to path/to/model.pth")
        self.input_format = cfg.INPUT.FORMAT
        model = build_model(cfg)
        CentripetalNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        self.model = optimize_for_inference(model, cfg.TEST.PRECISION)
        if cfg.TEST.AUG.ENABLED:
            self.model = CentripetalNetWithTTA(cfg, self.model)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict:
        """
        Args:
            image: (h0, w0, 3) uint8 in BGR order, as OpenCV reads it.

        Returns:
            ``{"instances": Instances}`` with ``pred_boxes``, ``scores`` and ``pred_classes``.
        """
        height, width = image.shape[:2]
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return self.model([{"image": image, "height": height, "width": width}])[0]
