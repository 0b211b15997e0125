"""Evaluator, checked test datasets, and equal norm statistics in all processes."""

import logging
import os
from collections import OrderedDict

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from torch import nn

from ..data.check.datasets import check_datasets, usable_datasets

logger = logging.getLogger(__name__)


class Evaluator(COCOEvaluator):
    """Detectron2's COCO evaluator, which for a dataset without annotations logs what to submit."""

    def evaluate(self, img_ids=None):
        results = super().evaluate(img_ids)
        if comm.is_main_process() and not self._do_evaluation:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info("The dataset has no annotations: %s holds the detections to submit.", path)
        return results


def with_usable_tests(cfg: CfgNode) -> CfgNode:
    """The config with checked test datasets, see :func:`usable_datasets`."""
    check_datasets(cfg.DATASETS.TEST, cfg.MODEL.CENTRIPETALNET.NUM_CLASSES)
    names = usable_datasets(cfg.DATASETS.TEST, cfg.OUTPUT_DIR, cfg.DATALOADER.SKIP_UNUSABLE)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = tuple(names)
    cfg.freeze()
    return cfg


def with_names_of(cfg: CfgNode, usable: CfgNode, results: OrderedDict) -> OrderedDict:
    """Results under the dataset names of the config, not those of copies without errors."""
    names = dict(zip(usable.DATASETS.TEST, cfg.DATASETS.TEST))
    return OrderedDict((names.get(name, name), value) for name, value in results.items())


def share_norm_statistics(model: nn.Module) -> None:
    """Gives all processes those of the main process, which a checkpoint has."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
