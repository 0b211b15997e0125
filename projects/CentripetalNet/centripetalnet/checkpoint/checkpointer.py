"""Loading of weights that says no to a file that does not fit."""

import glob
import os
import re
from typing import Any, List, Optional, Sequence, Tuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..files import UNFINISHED, complete_file
from .conversion import COUNTER, check_plain, origin_of, weights_in
from .safe_load import load_tensors

# Saved where a training diverged, which from there it would do again.
_DIVERGED = "model_diverged.pth"
_MAX_NAMES = 10


class CentripetalNetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but weights that are missing or do not fit are an error.

    Detectron2 logs what it could not load and goes on with random values, which in an evaluation
    looks like a bad model.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, strict: bool = True, **kwargs):
        """
        Args:
            model: whose weights are loaded and saved.
            save_dir: folder of the checkpoints.
            strict: whether every weight must be there and fit. Otherwise, to start a training from
                another model's weights, at least one must.
            kwargs: as for ``DetectionCheckpointer``.
        """
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict

    def load(self, path: str, *args, **kwargs) -> dict:
        """As in Detectron2, but where one process cannot load it, all end with an error.

        Args:
            path: a checkpoint file or address; empty for none.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no checkpoint, or its weights do not fit the model.
            RuntimeError: if another process could not load it.
        """
        if not path:
            return super().load(path, *args, **kwargs)
        extra: dict = {}
        error: Optional[Exception] = None
        try:
            if "://" not in path and not os.path.isfile(path):
                raise FileNotFoundError(
                    f"MODEL.WEIGHTS: there is no file {path} (seen from {os.getcwd()}). Give the "
                    "path of a checkpoint that every machine sees, or '' to start from random "
                    "weights."
                )
            extra = super().load(path, *args, **kwargs)
        # Whatever it is, the other processes would wait for this one forever.
        except Exception as problem:
            error = problem
        finally:
            # Detectron2 leaves it set after an error, and then refuses the next file.
            self._parsed_url_during_load = None
        _raise_in_all(error)
        return extra

    def save(self, name: str, *, resumable: bool = True, **kwargs) -> None:
        """As in Detectron2, but a file has its name only when it is complete.

        Args:
            name: of the file, without ".pth".
            resumable: whether ``--resume`` takes it, as the last checkpoint.
            kwargs: what is saved besides the weights and ``checkpointables``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with complete_file(path, "wb", durable=True) as file:
            torch.save(data, file)
        if resumable:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes which file a training goes on from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        with complete_file(path, durable=True) as file:
            file.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As in Detectron2; what a training goes on from has to fit in full.

        Where the last checkpoint is damaged, that is told and the one before it is taken. What a
        killed process had written of another one is removed.

        Raises:
            ValueError: if none of the checkpoints can be read, or one does not fit the model.
            FileNotFoundError: if this machine does not see the checkpoint.
            RuntimeError: if another process could not load it.
        """
        has_checkpoint = comm.all_gather(self.has_checkpoint())[0]
        if not (resume and has_checkpoint):
            return super().resume_or_load(path, resume=False)
        self._remove_unfinished()
        last = self._last_readable()
        error = None
        if not self.path_manager.isfile(last):
            error = FileNotFoundError(
                f"--resume: this machine does not see the checkpoint {last}. Give all machines an "
                "OUTPUT_DIR that they share, or copy the checkpoint there."
            )
        _raise_in_all(error)
        strict, self.strict = self.strict, True
        try:
            return self.load(last)
        finally:
            self.strict = strict

    def _remove_unfinished(self) -> None:
        if self.save_to_disk:
            for path in glob.glob(os.path.join(glob.escape(self.save_dir), f"*{UNFINISHED}")):
                self.logger.warning("Removing %s, which was not written to its end.", path)
                os.remove(path)

    def _last_readable(self) -> str:
        """Path of the newest checkpoint that is whole, the same in all processes."""
        path = self._look_for_readable() if comm.is_main_process() else None
        path = comm.all_gather(path)[0]
        if path is None:
            raise ValueError(
                f"--resume: no checkpoint in {self.save_dir} can be read. Put a whole one there, "
                "or start anew without --resume in another OUTPUT_DIR."
            )
        return path

    def _look_for_readable(self) -> Optional[str]:
        last = self.get_checkpoint_file()
        saved = [x for x in self.get_all_checkpoint_files() if x != last]
        for path in (last, *sorted(saved, key=_age, reverse=True)):
            try:
                if os.path.basename(path) == _DIVERGED:
                    raise ValueError("the training diverged there")
                content = load_tensors(path)
                if path == last or "iteration" in content:
                    return path
                problem = "it is not of a training"
            except (OSError, ValueError) as error:
                problem = str(error)
            self.logger.warning(
                "The checkpoint %s cannot be gone on from (%s): trying the one before it.",
                path,
                problem,
            )
        return None

    def _load_file(self, filename: str) -> dict:
        """Tensors only: whatever the file's name, nothing in it is run."""
        loaded = load_tensors(filename)
        origin, _ = origin_of(weights_in(loaded))
        if origin in ("mmdet", "paper"):
            theirs = {"mmdet": "MMDetection", "paper": "the paper's authors"}[origin]
            raise ValueError(
                f"{filename} has the names of {theirs}. Convert it once:\n"
                f"  centripetalnet-convert {filename} converted.pth\n"
                "and give MODEL.WEIGHTS converted.pth"
            )
        return loaded if "model" in loaded else {"model": weights_in(loaded)}

    def _load_model(self, checkpoint: dict):
        weights = checkpoint["model"]
        if not isinstance(weights, dict) or not weights:
            raise ValueError(
                "the checkpoint holds no weights: expected a dict of tensors, possibly under the "
                f"key 'model', got {type(weights).__name__}"
            )
        check_plain(weights)
        _check_versions(getattr(weights, "_metadata", None))
        # Else a file could ask for its weights to be placed by likeness of their names.
        checkpoint.pop("matching_heuristics", None)
        num_weights = len(weights)
        self._check_input(checkpoint.pop("about", None))
        incompatible = super()._load_model(checkpoint)
        misfits = {
            name: f"{name} (checkpoint {tuple(found)}, model {tuple(wanted)})"
            for name, found, wanted in incompatible.incorrect_shapes
        }
        missing = [name for name in incompatible.missing_keys if name not in misfits]
        # Frozen norms have no counter of batches.
        unexpected = [x for x in incompatible.unexpected_keys if not x.endswith(COUNTER)]
        if self.strict:
            fits = not (missing or unexpected or misfits)
        else:
            fits = len(unexpected) + len(misfits) < num_weights
        if not fits:
            raise ValueError(
                "the checkpoint does not fit the model that the config describes:"
                + _listing("not in the checkpoint", missing)
                + _listing("of another shape", list(misfits.values()))
                + _listing("not in the model", unexpected)
                + "\nUse the config that the checkpoint was trained with."
            )
        return incompatible

    def _check_input(self, about) -> None:
        """Raises if a converted file says that its weights want pictures in another form."""
        model = self.model
        if not isinstance(about, dict) or not hasattr(model, "input_format"):
            return
        try:
            numbers = [float(x) for key in ("pixel_mean", "pixel_std") for x in about[key]]
            wanted = (about["input_format"], *numbers)
            if not isinstance(wanted[0], str):
                raise TypeError(f"'input_format' is a {type(wanted[0]).__name__}")
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                "the checkpoint's 'about' does not say what pictures its weights want: expected "
                "'input_format', 'pixel_mean' and 'pixel_std' as convert_checkpoint.py writes "
                f"them ({type(error).__name__}: {error}). Convert it anew."
            ) from error
        given = (
            model.input_format,
            *model.pixel_mean.flatten().tolist(),
            *model.pixel_std.flatten().tolist(),
        )
        if not _same(wanted, given):
            raise ValueError(
                "the checkpoint was trained on pictures in another form than the config says; add"
                f"\n  INPUT.FORMAT {about['input_format']} MODEL.PIXEL_MEAN "
                f'"{list(about["pixel_mean"])}" MODEL.PIXEL_STD "{list(about["pixel_std"])}"'
            )


def _raise_in_all(error: Optional[Exception]) -> None:
    """Raises in every process if one of them has an error."""
    errors = comm.all_gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, problem in enumerate(errors):
        if problem is not None:
            raise RuntimeError(f"process {rank} could not load the checkpoint: {problem}")


def _age(path: str) -> Tuple[float, bool, str]:
    """Sorts checkpoints, the oldest first."""
    name = os.path.basename(path)
    # A remote file does not tell its time; the periodic ones tell their iteration.
    time = os.path.getmtime(path) if os.path.isfile(path) else 0.0
    return time, re.fullmatch(r"model_\d+\.pth", name) is not None, name


def _same(wanted: Sequence, given: Sequence) -> bool:
    numbers = zip(wanted[1:], given[1:])
    return (
        len(wanted) == len(given)
        and wanted[0] == given[0]
        and all(abs(a - b) < 1e-3 for a, b in numbers)
    )


def _check_versions(metadata: Any) -> None:
    """Raises if what a file says of the versions of modules is not what modules can read."""
    if metadata is None:
        return
    fits = isinstance(metadata, dict) and all(
        isinstance(name, str)
        and isinstance(entry, dict)
        and isinstance(entry.get("version", 1), int)
        for name, entry in metadata.items()
    )
    if not fits:
        raise ValueError(
            "the '_metadata' of the checkpoint's weights does not give the versions of modules as "
            "torch.nn.Module.state_dict does. Save the weights as a plain dict."
        )


def _listing(title: str, names: List[str]) -> str:
    if not names:
        return ""
    more = [f"... and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return f"\n{title} ({len(names)}):" + "".join(f"\n  {x}" for x in names[:_MAX_NAMES] + more)
