"""The endless stream of training samples, which a training can enter at any place."""

import itertools
from functools import partial
from typing import Callable, Iterator, List, Optional, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from ..seeding import SAMPLE, seed_generators
from .checked_datasets import usable_datasets

# So many images in a row that cannot be used are no accident.
_MAX_TRIES = 20


class TrainingStream(IterableDataset):
    """Training samples by their place in the stream, each the same whoever computes it.

    Which image stands at a place and how it is augmented depend on the seed alone: not on what was
    drawn before, nor on the number of loading workers or of processes. So a training that was
    interrupted sees what it would have seen, and N processes see together what one would.
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
            build_sampler: from a seed to an endless sampler of their indices, which as Detectron2's
                do gives each process every N-th of them.
            mapper: from a record to a sample, see ``CentripetalNetDatasetMapper``; where it gives
                None the image is left out.
            seed: of order and augmentations.
            batch_size: samples of a batch of this process; a worker makes whole batches.
            skip_unusable: whether an image that the mapper cannot use is left out. The sample that
                takes its place lists why under ``left_out``. Otherwise it is an error.
        """
        self.records = records
        self.build_sampler = build_sampler
        self.mapper = mapper
        self.batch_size = batch_size
        self.skip_unusable = skip_unusable
        self.rank, self.num_processes = comm.get_rank(), comm.get_world_size()
        self.go_on(seed, 0)

    def go_on(self, seed: int, num_samples: int) -> None:
        """Has the next iterator begin where a training left off.

        Args:
            seed: of that training.
            num_samples: how many it had taken, over all processes.
        """
        self.seed = seed
        self.sampler = self.build_sampler(seed)
        self.start = -(-num_samples // self.num_processes)

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        indices = itertools.islice(self.sampler, self.start, None)
        for i, index in enumerate(indices):
            if i // self.batch_size % num_workers == worker_id:
                place = (self.start + i) * self.num_processes + self.rank
                yield self._sample(index, place)

    def _sample(self, index: int, place: int) -> dict:
        seed_generators(self.seed, SAMPLE, place)
        left_out: List[str] = []
        while len(left_out) < _MAX_TRIES:
            record = self.records[index]
            try:
                sample = self.mapper(record)
                problem = f"the mapper has no use for {record.get('file_name')}"
            except (OSError, ValueError) as error:
                if not self.skip_unusable:
                    raise
                sample, problem = None, str(error)
            if sample is not None:
                return {**sample, "left_out": left_out} if left_out else sample
            left_out.append(problem)
            index = np.random.randint(len(self.records))
        raise ValueError(
            f"{_MAX_TRIES} images in a row cannot be used, the last one because: {left_out[-1]}"
        )


def build_training_loader(cfg: CfgNode, mapper: Callable[[dict], Optional[dict]]) -> DataLoader:
    """Detectron2's training loader over a :class:`TrainingStream`, which is its ``dataset``.

    Args:
        cfg: datasets, sampler, batch and workers are read as in Detectron2; a negative ``SEED``
            gives a random one, the same in all processes.
        mapper: see :class:`TrainingStream`.

    Raises:
        ValueError: if the config asks for batches of similar aspect ratio, or for one that cannot
            be shared out evenly, or if a dataset has what cannot be used.
    """
    num_processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise ValueError(
            "SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, "
            f"{num_processes}, got {cfg.SOLVER.IMS_PER_BATCH}"
        )
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise ValueError(
            "DATALOADER.ASPECT_RATIO_GROUPING must be False: all training crops have one size, and "
            "batches that wait for their like cannot be gone on with after an interruption"
        )
    skip = cfg.DATALOADER.SKIP_UNUSABLE
    records = get_detection_dataset_dicts(
        usable_datasets(cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR, skip),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
    # In one block of memory, which the workers share.
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


def _sampler(cfg: CfgNode, records: Sequence[dict], seed: int) -> Sampler:
    """The sampler of ``DATALOADER.SAMPLER_TRAIN``, the same for the same seed."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    # Some of Detectron2's samplers take the config's seed, others draw one from NumPy's generator.
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        parts = build_detection_train_loader.from_config(cfg, mapper=_unused, dataset=records)
    finally:
        np.random.set_state(state)
    return parts["sampler"]


def _unused(record: dict) -> None:
    """Detectron2 would otherwise build its own mapper."""
