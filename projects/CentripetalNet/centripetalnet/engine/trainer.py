"""Trains, resumes and evaluates: Detectron2's DefaultTrainer on GPUs and CPUs."""

import gc
import logging
import os
import re
import weakref
from collections import OrderedDict
from typing import Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import (
    DefaultTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import CentripetalNetCheckpointer
from ..data import CentripetalNetDatasetMapper, build_training_loader
from ..data.check.datasets import check_datasets
from ..modeling import CentripetalNetWithTTA, optimize_for_inference
from ..modeling.hourglass import StackedHourglass
from ..modeling.precision import amp_dtype, dtype_of
from .evaluation import Evaluator, share_norm_statistics, with_names_of, with_usable_tests
from .hooks import BestCheckpointer, EarlyStopping, TrainingPlotter, TrainingStopped
from .solver import (
    build_optimizer,
    gradient_clipping,
    hyperparameters,
    restore_hyperparameters,
)
from .step import StepTrainer
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """DefaultTrainer with this project's data, optimizer and evaluation, on GPUs and CPUs."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: see :func:`setup`.
        """
        # DefaultTrainer's constructor needs CUDA for several processes and for AMP.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        self.given = cfg
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SEED < 0:
            # Drawn once and saved in checkpoints, so that a resume uses the same.
            cfg = _with_seed(cfg, comm.shared_random_seed())
        device = torch.device(cfg.MODEL.DEVICE)
        on_cpu = device.type == "cpu"

        if on_cpu and comm.get_world_size() > 1:
            _check_norms(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.average = WeightAverage(model, cfg.MODEL.EMA.DECAY) if cfg.MODEL.EMA.ENABLED else None
        bare_model = model
        ddp = {
            "broadcast_buffers": False,
            # Parts of a backbone may be behind feature maps that no head and no FPN reads.
            "find_unused_parameters": not isinstance(model.backbone, StackedHourglass)
            or model.feature_names != list(model.backbone.output_shape()),
        }
        if on_cpu and comm.get_world_size() > 1:
            model = DistributedDataParallel(model, **ddp)
        else:
            model = create_ddp_model(model, **ddp)
        amp = cfg.SOLVER.AMP
        max_gradient_norm, norm_type = gradient_clipping(cfg)
        self._trainer = StepTrainer(
            model,
            data_loader,
            optimizer,
            amp_dtype=amp_dtype(amp.PRECISION, device) if amp.ENABLED else None,
            max_gradient_norm=max_gradient_norm,
            norm_type=norm_type,
            untrained=bare_model.untrained_parameters,
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
            seed=cfg.SEED,
            accumulate=cfg.SOLVER.ACCUMULATE,
            step_counts=bare_model.step_counts,
            average=self.average,
        )

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        checkpointables = {"trainer": weakref.proxy(self)}
        if self.average is not None:
            checkpointables["ema"] = self.average
        self.checkpointer = CentripetalNetCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            strict=False,
            averaged=cfg.MODEL.EMA.ENABLED,
            **checkpointables,
        )
        self.start_iter = 0
        self._evaluated_at: Optional[int] = None
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        # Errors of the evaluation come before the training, not after it.
        dtype_of(cfg.TEST.PRECISION, device)
        with_usable_tests(cfg)
        if cfg.TEST.AUG.ENABLED:
            CentripetalNetWithTTA(cfg, model)

    def train(self) -> Optional[OrderedDict]:
        """As in DefaultTrainer; loading workers keep sharing the memory of this process."""
        # A garbage collection writes to every object that it visits, so the system copies shared
        # memory for each worker. Objects that exist by now need not be visited.
        gc.collect()
        gc.freeze()
        try:
            return super().train()
        except TrainingStopped:
            return None
        finally:
            gc.unfreeze()

    def before_train(self) -> None:
        """As in DefaultTrainer; logs what is trained with.

        A training that was killed between its last iteration and ``model_final.pth`` gets it here.
        """
        super().before_train()
        self._log_recipe()
        final = os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")
        if self.start_iter >= self.max_iter and not self.checkpointer.path_manager.isfile(final):
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)

    def run_step(self) -> None:
        """One iteration; if it diverges, the state before it is saved as model_diverged.pth."""
        try:
            super().run_step()
        except FloatingPointError:
            self.checkpointer.save("model_diverged", iteration=self.iter - 1, resumable=False)
            raise

    def _log_recipe(self) -> None:
        """Batch, rate and iterations after they were scaled to the number of processes."""
        solver, given = self.cfg.SOLVER, self.given.SOLVER
        processes = comm.get_world_size()
        logger.info(
            "Iterations %d to %d: %d images each (%d processes with %d), base learning rate %g, "
            "warm-up %d iterations, %s",
            self.start_iter,
            self.max_iter,
            solver.IMS_PER_BATCH,
            processes,
            solver.IMS_PER_BATCH // processes,
            solver.BASE_LR,
            solver.WARMUP_ITERS,
            solver.LR_SCHEDULER_NAME,
        )
        if solver.ACCUMULATE > 1:
            logger.info(
                "Each iteration adds up the gradients of SOLVER.ACCUMULATE %d such batches, %d "
                "images together.",
                solver.ACCUMULATE,
                solver.ACCUMULATE * solver.IMS_PER_BATCH,
            )
        if given.REFERENCE_WORLD_SIZE not in (0, processes):
            logger.info(
                "These were scaled from SOLVER.IMS_PER_BATCH %d, BASE_LR %g and MAX_ITER %d, which "
                "are for SOLVER.REFERENCE_WORLD_SIZE %d processes. With REFERENCE_WORLD_SIZE 0 "
                "they hold for any number.",
                given.IMS_PER_BATCH,
                given.BASE_LR,
                given.MAX_ITER,
                given.REFERENCE_WORLD_SIZE,
            )

    def state_dict(self) -> dict:
        """As in DefaultTrainer; after the training the iteration is the last one that was run."""
        state = super().state_dict()
        return {**state, "iteration": min(state["iteration"], self.max_iter - 1)}

    def resume_or_load(self, resume: bool = True) -> None:
        """As in DefaultTrainer; a resumed training follows the config's solver.

        The checkpoints that it had saved are pruned with the new ones.
        """
        wanted = hyperparameters(self.optimizer)
        super().resume_or_load(resume)
        # The folder of the main process decides, not that of another machine.
        self.start_iter = comm.all_gather(self.start_iter)[0]
        if not (resume and self.checkpointer.has_checkpoint()):
            return
        if self.average is not None and not self.average.updates:
            logger.warning("The checkpoint has no averaged weights: the average begins with its.")
            self.average.restart()
        if self.start_iter > self.max_iter:
            raise ValueError(
                f"--resume: the checkpoint is of iteration {self.start_iter}, but SOLVER.MAX_ITER "
                f"is {self.max_iter}. Set it to {self.start_iter} or more."
            )
        if self.given.SEED >= 0 and self.given.SEED != self._trainer.seed:
            logger.warning("SEED stays %d, as in the checkpoint", self._trainer.seed)
        if self.start_iter < self.max_iter:
            changes = restore_hyperparameters(self.optimizer, self.scheduler, wanted)
            for name, (before, now) in changes.items():
                logger.info("%s was %s in the checkpoint and is now %s", name, before, now)
        saved = self.checkpointer.get_all_checkpoint_files()
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.recent_checkpoints = sorted(
                    x for x in saved if re.fullmatch(r"model_\d{7}\.pth", os.path.basename(x))
                )

    def build_hooks(self) -> list:
        """As in DefaultTrainer, with test-time augmentation at the end.

        Old checkpoints are removed, the best is kept, and curves are drawn at the end.
        """
        result = super().build_hooks()
        for i, hook in enumerate(result):
            if isinstance(hook, hooks.EvalHook):
                result[i] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)
        if self.cfg.TEST.AUG.ENABLED:
            # Before the writer of metrics, which only the main process has.
            place = len(result) - 1 if comm.is_main_process() else len(result)
            result.insert(
                place,
                hooks.EvalHook(0, lambda: self.test_with_tta(self.cfg, self.evaluated_model)),
            )
        kept = self.cfg.SOLVER.CHECKPOINTS_KEPT
        for hook in result:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.max_to_keep = kept or None
        if comm.is_main_process() and self.cfg.TEST.EVAL_PERIOD > 0:
            # With several test datasets the metrics have the dataset's name as prefix.
            several = len(set(self.cfg.DATASETS.TEST)) > 1
            metric = f"{self.cfg.DATASETS.TEST[0]}/bbox/AP" if several else "bbox/AP"
            best = BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric, "max")
            # After the evaluation, before the writer of metrics.
            result.insert(-1, best)
        if self.cfg.SOLVER.PATIENCE:
            best = best if comm.is_main_process() else None
            patience = self.cfg.SOLVER.PATIENCE * self.cfg.TEST.EVAL_PERIOD
            result.append(EarlyStopping(best, self.cfg.TEST.EVAL_PERIOD, patience))
        if comm.is_main_process():
            # After the writer of metrics.
            result.append(TrainingPlotter(self.cfg.OUTPUT_DIR))
        return result

    @property
    def evaluated_model(self) -> nn.Module:
        """The model with averaged weights, if ``MODEL.EMA.ENABLED``, otherwise the model."""
        return self.model if self.average is None else self.average.model

    def evaluate(self) -> OrderedDict:
        """Results of :meth:`test`; with ``MODEL.EMA`` those of the raw weights with "_raw"."""
        if self._evaluated_at != self.iter:
            results = self.test(self.cfg, self.evaluated_model)
            if self.average is not None:
                raw = self._test(self.cfg, self.model, "inference_raw")
                results.update((f"{name}_raw", value) for name, value in raw.items())
            self._last_eval_results, self._evaluated_at = results, self.iter
        return self._last_eval_results

    def build_writers(self) -> list:
        """As in DefaultTrainer, without TensorBoard if OUTPUT_DIR is remote."""
        if "://" not in self.cfg.OUTPUT_DIR:
            return super().build_writers()
        # TensorBoard knows other schemes than Detectron2's PathManager.
        logger.warning("OUTPUT_DIR is remote: no events are written for TensorBoard.")
        metrics = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        return [CommonMetricPrinter(self.max_iter), JSONWriter(metrics)]

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """As in DefaultTrainer; the iteration from which masks are trained is scaled, too.

        Raises:
            ValueError: if the batch cannot be shared out among ``SOLVER.REFERENCE_WORLD_SIZE``.
        """
        batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference < 0 or (reference and batch % reference):
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch}, but it must be a multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE, {reference}: the number of processes that "
                "IMS_PER_BATCH, BASE_LR and MAX_ITER are meant for, which are scaled to the "
                f"{num_workers} here. For {batch} images in each iteration whatever the number of "
                "processes, set SOLVER.REFERENCE_WORLD_SIZE 0."
            )
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is not cfg:
            start = cfg.MODEL.CENTRIPETALNET.MASK.START_ITER
            scaled.defrost()
            scaled.MODEL.CENTRIPETALNET.MASK.START_ITER = round(
                start * cfg.SOLVER.REFERENCE_WORLD_SIZE / num_workers
            )
            scaled.freeze()
        return scaled

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        check_datasets(cfg.DATASETS.TRAIN, cfg.MODEL.CENTRIPETALNET.NUM_CLASSES)
        return build_training_loader(cfg, CentripetalNetDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_detection_test_loader(
            cfg, dataset_name, mapper=CentripetalNetDatasetMapper(cfg, is_train=False)
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> Evaluator:
        """The COCO evaluator, for every dataset."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        # A cached copy may be of another set of skipped annotations.
        return Evaluator(dataset_name, output_dir=folder, allow_cached_coco=False)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """As in DefaultTrainer, in ``TEST.PRECISION``."""
        return cls._test(cfg, model, "inference", evaluators=evaluators)

    @classmethod
    def _test(cls, cfg: CfgNode, model: nn.Module, folder: str, tta=False, evaluators=None):
        """Evaluates; detections are written to ``folder`` in the output folder."""
        share_norm_statistics(model)
        usable = with_usable_tests(cfg)
        model = optimize_for_inference(model, cfg.TEST.PRECISION)
        if tta:
            model = CentripetalNetWithTTA(cfg, model)
        evaluators = evaluators or [
            cls.build_evaluator(usable, name, os.path.join(cfg.OUTPUT_DIR, folder))
            for name in usable.DATASETS.TEST
        ]
        return with_names_of(cfg, usable, super().test(usable, model, evaluators))

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluates with test-time augmentation.

        Args:
            cfg: see :func:`setup`.
            model: the trained model.

        Returns:
            As :meth:`test`, the keys with the suffix ``_TTA``.
        """
        logger.info("Running inference with test-time augmentation ...")
        results = cls._test(cfg, model, "inference_TTA", tta=True)
        return OrderedDict((f"{name}_TTA", value) for name, value in results.items())


def _check_norms(cfg: CfgNode) -> None:
    for node in ("HOURGLASS", "RESNETS", "FPN", "TIMM", "CENTRIPETALNET"):
        if cfg.MODEL[node].NORM == "SyncBN":
            instead = "'BN' or 'FrozenBN'" if node == "TIMM" else "'naiveSyncBN'"
            raise ValueError(
                f"MODEL.{node}.NORM 'SyncBN' is for GPUs only; for several processes on the CPU "
                f"set {instead}"
            )


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    cfg.freeze()
    return cfg
