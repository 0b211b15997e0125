"""Reading of files that somebody else made."""

import os

import torch


def load_tensors(path: str) -> dict:
    """The dict of tensors that a file holds. Nothing in the file is executed.

    Args:
        path: a file that ``torch.save`` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it holds something else, or cannot be read without executing parts of it.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path} (seen from {os.getcwd()})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file makes torch's unpickler stumble anywhere, IndexError included.
    except Exception as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise ValueError(
            f"{path} is not a checkpoint that can be loaded safely: {reason}. It must be a file "
            "of tensors as torch.save writes it. A file that also holds other objects has to "
            "be saved anew without them, by someone who trusts it."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} and not a dict of tensors")
    return content
