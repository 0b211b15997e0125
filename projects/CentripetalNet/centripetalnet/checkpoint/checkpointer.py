"""Saving, loading and resuming of checkpoints. Weights that do not fit are an error."""

import glob
import os
import re
from collections.abc import Sequence
from typing import Any, Optional

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..io.errors import raise_in_all_processes
from ..io.files import UNFINISHED, atomic_file
from .conversion import COUNTER, averaged_weights, check_plain, origin_of, weights_in
from .pretrained import TIMM, match_backbone, model_zoo_checkpoint, timm_checkpoint
from .report import starting_report
from .safe_load import is_numpy_pickle, load_tensors

# The state before the step that diverged; resuming from it would diverge again.
_DIVERGED = "model_diverged.pth"
_MAX_NAMES = 10


class CentripetalNetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but weights that are missing or do not fit are an error.

    Detectron2 only logs them and keeps random values, which look like a bad model in an evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = True,
        averaged: bool = False,
        **kwargs,
    ):
        """
        Args:
            model: the model to load and save.
            save_dir: folder of the checkpoints.
            strict: whether all weights must match. Otherwise, to start a training from another
                model's weights, at least one must.
            averaged: whether to load the averaged weights of ``MODEL.EMA``, if the checkpoint has
                them. A resumed training loads the raw ones.
            kwargs: as for ``DetectionCheckpointer``.
        """
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self.averaged = averaged
        self._source = ""

    def load(self, path: str, *args, **kwargs) -> dict:
        """As in Detectron2, but if one process cannot load the checkpoint, all raise an error.

        Args:
            path: a local or remote checkpoint; "timm://NAME" for timm's weights of a backbone, to
                start a training; "" loads nothing.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it is not a checkpoint, or its weights do not fit the model.
            RuntimeError: if another process could not load it.
        """
        if not path:
            return super().load(path, *args, **kwargs)
        extra: dict = {}
        error: Optional[Exception] = None
        self._source = path
        try:
            if path.startswith(TIMM):
                self._load_timm(path)
            elif "://" not in path and not os.path.isfile(path):
                raise FileNotFoundError(
                    f"MODEL.WEIGHTS: there is no file {path} (seen from {os.getcwd()}). Give the "
                    "path of a checkpoint that all machines see, or '' for random weights."
                )
            else:
                extra = super().load(path, *args, **kwargs)
        # After any error the other processes would wait for this one forever.
        except Exception as problem:
            error = problem
        finally:
            # Detectron2 does not reset it after an error, and then refuses the next file.
            self._parsed_url_during_load = None
        raise_in_all_processes(error)
        return extra

    def save(self, name: str, *, resumable: bool = True, **kwargs) -> None:
        """As in Detectron2, but the file is written atomically.

        Args:
            name: file name without ".pth".
            resumable: whether it becomes the last checkpoint, from which ``--resume`` continues.
            kwargs: further entries, besides the weights and ``checkpointables``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_file(path, "wb", durable=True) as file:
            torch.save(data, file)
        if resumable:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes the name of the checkpoint to resume from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        with atomic_file(path, durable=True) as file:
            file.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As in Detectron2, but a checkpoint to resume from has to match the model completely.

        If the last checkpoint is damaged, a warning names it and the one before it is used. Partial
        files of a killed process are removed.

        Raises:
            ValueError: if no checkpoint can be read, or it does not fit the model.
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
        raise_in_all_processes(error)
        strict, averaged = self.strict, self.averaged
        # Without checkpointables it is an evaluation.
        self.strict, self.averaged = True, averaged and not self.checkpointables
        try:
            return self.load(last)
        finally:
            self.strict, self.averaged = strict, averaged

    def _remove_unfinished(self) -> None:
        if self.save_to_disk:
            for path in glob.glob(os.path.join(glob.escape(self.save_dir), f"*{UNFINISHED}")):
                self.logger.warning("Removing %s, a partial file of an interrupted save.", path)
                os.remove(path)

    def _last_readable(self) -> str:
        """Path of the newest intact checkpoint, the same in all processes."""
        path = self._look_for_readable() if comm.is_main_process() else None
        path = comm.all_gather(path)[0]
        if path is None:
            raise ValueError(
                f"--resume: no checkpoint in {self.save_dir} can be read. Put an intact one there, "
                "or start a new training in another OUTPUT_DIR, without --resume."
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
                problem = "it has no iteration"
            except (OSError, ValueError) as error:
                problem = str(error)
            self.logger.warning(
                "Cannot resume from the checkpoint %s (%s). Trying the one before it.",
                path,
                problem,
            )
        return None

    def _load_file(self, filename: str) -> dict:
        """Reads tensors only, whatever the extension; no code in the file is executed."""
        loaded = load_tensors(filename)
        origin, _ = origin_of(weights_in(loaded))
        if origin in ("mmdet", "paper"):
            theirs = {"mmdet": "MMDetection", "paper": "the paper's authors"}[origin]
            raise ValueError(
                f"{filename} has the names of {theirs}. Convert it once:\n"
                f"  centripetalnet-convert {filename} converted.pth\n"
                "and give MODEL.WEIGHTS converted.pth"
            )
        if is_numpy_pickle(filename):
            return model_zoo_checkpoint(loaded)
        # With this key any file could have its weights matched by similar names.
        loaded.pop("matching_heuristics", None)
        return loaded if "model" in loaded else {"model": weights_in(loaded)}

    def _load_timm(self, path: str) -> None:
        self.logger.info("Loading from %s ...", path)
        checkpoint = timm_checkpoint(path[len(TIMM) :], self.model.state_dict())
        self._log_incompatible_keys(self._load_model(checkpoint))

    def _load_model(self, checkpoint: dict):
        if self.averaged and "ema" in checkpoint:
            checkpoint["model"] = averaged_weights(checkpoint)
            self.logger.info("Loading the averaged weights, as MODEL.EMA.ENABLED says.")
        weights = checkpoint["model"]
        if not isinstance(weights, dict) or not weights:
            raise ValueError(
                "the checkpoint holds no weights: expected a dict of tensors, bare or under the "
                f"key 'model', got {type(weights).__name__}"
            )
        check_plain(weights)
        _check_versions(getattr(weights, "_metadata", None))
        self._check_input(checkpoint.pop("about", None))
        # Only _load_file sets it, for files of the model zoo.
        is_matched = checkpoint.pop("matching_heuristics", False) is True
        others: list[str] = []
        given = list(weights)
        if is_matched:
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            weights, others = match_backbone(
                weights, self.model.state_dict(), is_caffe2, self._source
            )
            checkpoint["model"] = weights
        incompatible = super()._load_model(checkpoint)
        incompatible.unexpected_keys.extend(others)
        misfits = {name: (found, wanted) for name, found, wanted in incompatible.incorrect_shapes}
        missing = [name for name in incompatible.missing_keys if name not in misfits]
        # Frozen norms have no num_batches_tracked.
        unexpected = [x for x in incompatible.unexpected_keys if not x.endswith(COUNTER)]
        names = [x for x in self.model.state_dict() if not x.endswith(COUNTER)]
        # Detectron2 has removed what does not fit.
        taken = [x for x in names if x in weights]
        if self.strict:
            fits = not (missing or unexpected or misfits)
        else:
            fits = bool(taken)
        if not fits:
            raise ValueError(
                "the checkpoint does not fit the model that the config describes:"
                + _listing("not in the checkpoint", missing)
                + _listing(
                    "of another shape",
                    [f"{x} (checkpoint {a}, model {b})" for x, (a, b) in misfits.items()],
                )
                + _listing("not in the model", unexpected)
                + self._advice(is_backbone=is_matched or self._source.startswith(TIMM))
            )
        if not self.strict:
            unused = [*unexpected, *misfits]
            left = set(unused)
            # Of frozen norms without statistics Detectron2 reports none as missing.
            random = {*missing, *misfits}
            anew = [x for x in names if x in random]
            report = starting_report(
                self._source,
                taken,
                anew,
                {x: f"of the shape {b}, in the file {a}" for x, (a, b) in misfits.items()},
                [x for x in (given if is_matched else weights) if x not in left],
                unused,
                len(names) - len(taken) - len(anew),
            )
            self.logger.info(report)
        return incompatible

    def _advice(self, is_backbone: bool) -> str:
        if not is_backbone:
            return "\nUse the config that the checkpoint was trained with."
        if self.strict:
            return (
                f"\n{self._source} has the weights of a backbone only, to start a training from. "
                "Give MODEL.WEIGHTS a trained detector."
            )
        return f"\nNone of {self._source} is a weight of the config's backbone: use another one."

    def _log_incompatible_keys(self, incompatible) -> None:
        # The report of a start says the same.
        if self.strict:
            super()._log_incompatible_keys(incompatible)

    def _check_input(self, about) -> None:
        """Raises if a converted file states another channel order or normalisation."""
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
                "the checkpoint's 'about' is invalid: expected 'input_format', 'pixel_mean' and "
                "'pixel_std' as convert_checkpoint.py writes them "
                f"({type(error).__name__}: {error}). Convert the original file again."
            ) from error
        given = (
            model.input_format,
            *model.pixel_mean.flatten().tolist(),
            *model.pixel_std.flatten().tolist(),
        )
        if not _same(wanted, given):
            raise ValueError(
                "the checkpoint expects another channel order or normalisation than the config; add"
                f"\n  INPUT.FORMAT {about['input_format']} MODEL.PIXEL_MEAN "
                f'"{list(about["pixel_mean"])}" MODEL.PIXEL_STD "{list(about["pixel_std"])}"'
            )


def _age(path: str) -> tuple[float, bool, str]:
    """Sorts checkpoints, the oldest first."""
    name = os.path.basename(path)
    # Remote files have no time here; periodic checkpoints are sorted by iteration.
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
    """Raises if ``_metadata`` does not have the form that modules read versions from."""
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
            "the '_metadata' of the checkpoint's weights is invalid: expected module versions as "
            "torch.nn.Module.state_dict writes them. Save the weights as a plain dict."
        )


def _listing(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = [f"... and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return f"\n{title} ({len(names)}):" + "".join(f"\n  {x}" for x in names[:_MAX_NAMES] + more)
