"""Loading of weights that says no to a file that does not fit."""

import os
from typing import List, Sequence

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from .conversion import COUNTER, origin_of, weights_in
from .safe_load import load_tensors

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
        """
        Args:
            path: a checkpoint file or address; empty for none.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no checkpoint, or its weights do not fit the model.
        """
        # With several processes the main one's file counts; Detectron2 hands its weights on.
        if path and "://" not in path and not comm.all_gather(os.path.isfile(path))[0]:
            raise FileNotFoundError(
                f"MODEL.WEIGHTS: there is no file {path} (seen from {os.getcwd()}). Give the path "
                "of a checkpoint, or '' to start from random weights."
            )
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves it set after an error, and then refuses the next file.
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """As in Detectron2; what a training goes on from has to fit in full."""
        strict = self.strict
        self.strict = strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _load_file(self, filename: str) -> dict:
        """Tensors only: whatever the file's name, nothing in it is run."""
        loaded = load_tensors(filename)
        origin, _ = origin_of(weights_in(loaded))
        if origin in ("mmdet", "paper"):
            theirs = {"mmdet": "MMDetection", "paper": "the paper's authors"}[origin]
            raise ValueError(
                f"{filename} has the names of {theirs}. Convert it once:\n"
                f"  tools/convert_checkpoint.py {filename} converted.pth\n"
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
        if not self.strict or not isinstance(about, dict) or not hasattr(model, "input_format"):
            return
        wanted = (about["input_format"], *about["pixel_mean"], *about["pixel_std"])
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


def _same(wanted: Sequence, given: Sequence) -> bool:
    numbers = zip(wanted[1:], given[1:])
    return wanted[0] == given[0] and all(abs(a - b) < 1e-3 for a, b in numbers)


def _listing(title: str, names: List[str]) -> str:
    if not names:
        return ""
    more = [f"... and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return f"\n{title} ({len(names)}):" + "".join(f"\n  {x}" for x in names[:_MAX_NAMES] + more)
