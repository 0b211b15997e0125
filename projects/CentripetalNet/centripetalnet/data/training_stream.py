"""The endless stream of training samples, which can be resumed at any position."""

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_start_method
from typing import Callable, Optional

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.utils import comm
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from .check.datasets import usable_datasets
from .seeding import SAMPLE, seed_generators

# After so many unusable images in a row the dataset is taken to be invalid.
_MAX_TRIES = 20


class TrainingStream(IterableDataset):
    """Training samples that depend only on the seed and their position in the stream.

    Image and augmentation at a position are independent of earlier draws and of the number of
    loading workers and processes. So a resumed training sees the samples of an uninterrupted one,
    and N processes together see those of one process.
    """

    def __init__(
        self,
        records: Sequence[dict],
        build_sampler: Callable[[int], Sampler],
        mapper: Callable[[dict], Optional[dict]],
        *,
        seed: int,
        batch_size: int,
        skip_unusable: bool = False,
    ):
        """
        Args:
            records: images in Detectron2's dataset format.
            build_sampler: from a seed to an endless sampler of indices, of which each process gets
                every N-th, as with Detectron2's samplers.
            mapper: from a record to a sample, see ``CentripetalNetDatasetMapper``; None skips the
                image.
            seed: for order and augmentations.
            batch_size: samples per batch of this process; each batch comes from one worker.
            skip_unusable: whether images for which the mapper raises are replaced by others. The
                reasons are listed in the sample's ``left_out``.
        """
        self.records = records
        self.build_sampler = build_sampler
        self.mapper = mapper
        self.batch_size = batch_size
        self.skip_unusable = skip_unusable
        self.rank, self.num_processes = comm.get_rank(), comm.get_world_size()
        self.pid = os.getpid()
        self.resume(seed, 0)

    def resume(self, seed: int, num_samples: int) -> None:
        """Makes the next iterator continue where a training stopped.

        Args:
            seed: the seed of that training.
            num_samples: the samples that it has used, over all processes.
        """
        self.seed = seed
        self.sampler = self.build_sampler(seed)
        self.start = -(-num_samples // self.num_processes)

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        if worker is None:
            return self._samples(0, 1)
        # PyTorch remembers the parent's pid only after this call. If the parent is dead already,
        # the worker would wait forever. The parent of a worker of a fork server is that server.
        if os.getppid() != self.pid and get_start_method() != "forkserver":
            os._exit(1)
        return self._samples(worker.id, worker.num_workers)

    def _samples(self, worker_id: int, num_workers: int) -> Iterator[dict]:
        indices = itertools.islice(self.sampler, self.start, None)
        for i, index in enumerate(indices):
            if i // self.batch_size % num_workers == worker_id:
                place = (self.start + i) * self.num_processes + self.rank
                yield self._sample(index, place)

    def _sample(self, index: int, place: int) -> dict:
        seed_generators(self.seed, SAMPLE, place)
        left_out: list[str] = []
        while len(left_out) < _MAX_TRIES:
            record = self.records[index]
            try:
                sample = self.mapper(record)
                problem = f"the mapper returned None for {record.get('file_name')}"
            except (OSError, ValueError) as error:
                if not self.skip_unusable:
                    raise
                sample, problem = None, str(error)
            if sample is not None:
                return {**sample, "left_out": left_out} if left_out else sample
            left_out.append(problem)
            index = np.random.randint(len(self.records))
        raise ValueError(f"{_MAX_TRIES} images in a row are unusable. The last one: {left_out[-1]}")


def build_training_loader(cfg: CfgNode, mapper: Callable[[dict], Optional[dict]]) -> DataLoader:
    """Builds Detectron2's training loader with a :class:`TrainingStream` as its ``dataset``.

    Args:
        cfg: datasets, sampler, batch size and workers as in Detectron2. A negative ``SEED`` gives a
            random one, the same in all processes.
        mapper: see :class:`TrainingStream`.

    Raises:
        ValueError: if ``ASPECT_RATIO_GROUPING`` is True, the batch size is not a multiple of the
            number of processes, a dataset has invalid entries, or no image has an object.
    """
    num_processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise ValueError(
            "SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, "
            f"{num_processes}, got {cfg.SOLVER.IMS_PER_BATCH}"
        )
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise ValueError(
            "DATALOADER.ASPECT_RATIO_GROUPING must be False. All training crops have one size, and "
            "grouped batches cannot be resumed."
        )
    skip = cfg.DATALOADER.SKIP_UNUSABLE
    names = usable_datasets(cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR, skip, evaluated=False)
    records = get_detection_dataset_dicts(names, filter_empty=False)
    # Detectron2 returns a torch dataset unchanged.
    if isinstance(records, list):
        records = _with_objects(cfg, records)
    # One block of memory that the workers share.
    records = DatasetFromList(records, copy=False)
    stream = TrainingStream(
        records,
        partial(_sampler, cfg, records),
        mapper,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // num_processes,
        skip_unusable=skip,
    )
    return build_detection_train_loader(
        dataset=stream,
        mapper=None,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _with_objects(cfg: CfgNode, records: list[dict]) -> list[dict]:
    """The records after ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``; raises if none has an object."""
    if all(a.get("iscrowd", 0) for x in records for a in x.get("annotations", ())):
        raise ValueError(
            f"DATASETS.TRAIN is {tuple(cfg.DATASETS.TRAIN)}, but no image has an object (an "
            "annotation that is not a crowd). Add a dataset with objects."
        )
    # As in get_detection_dataset_dicts, which raises an AssertionError if no image is left.
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and "annotations" in records[0]:
        return filter_images_with_only_crowd_annotations(records)
    return records


def _sampler(cfg: CfgNode, records: Sequence[dict], seed: int) -> Sampler:
    """Builds the sampler of ``DATALOADER.SAMPLER_TRAIN``, reproducibly for a seed."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    # Some of Detectron2's samplers use the config's seed, others draw one from NumPy's generator.
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        parts = build_detection_train_loader.from_config(cfg, mapper=_unused, dataset=records)
    finally:
        np.random.set_state(state)
    return parts["sampler"]


def _unused(record: dict) -> None:
    """Prevents Detectron2 from building its own mapper."""
