"""What train_net.py runs in each process."""

import argparse
import os
from collections import OrderedDict
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import CentripetalNetCheckpointer
from ..config import check_values, find_config
from ..data import load_config
from .trainer import Trainer


def setup(args) -> CfgNode:
    """The config that the command line describes, frozen, with logging and seeds set up.

    Args:
        args: parsed by ``detectron2.engine.default_argument_parser``.
    """
    # Detectron2 copies the file into the log and needs its path for that.
    args = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
    cfg = load_config(args.config_file, args.opts)
    check_values(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="centripetalnet")
    return cfg


def share_cores(cfg: CfgNode, num_processes: int) -> None:
    """Divides the cores among processes on the CPU; each would use all otherwise."""
    if cfg.MODEL.DEVICE == "cpu" and num_processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))


def main(args) -> Optional[OrderedDict]:
    """Trains, or with ``--eval-only`` evaluates; what ``train_net.py`` runs in each process.

    Args:
        args: parsed by ``detectron2.engine.default_argument_parser``.

    Returns:
        Of ``--eval-only`` the results by task, ``bbox`` and with ``TEST.AUG.ENABLED`` ``bbox_TTA``;
        of a training what ``DefaultTrainer.train`` returns.
    """
    cfg = setup(args)
    share_cores(cfg, args.num_gpus)
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("--eval-only needs a checkpoint: add MODEL.WEIGHTS path/to/model.pth")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        CentripetalNetCheckpointer(
            model, save_dir=cfg.OUTPUT_DIR, averaged=cfg.MODEL.EMA.ENABLED
        ).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
