"""Reads untrusted checkpoints: files of ``torch.save``, safetensors and pickles of NumPy arrays.

``torch.load`` is not used: even with ``weights_only=True`` it runs TorchScript archives (before
PyTorch 2.6), and a pickle may write outside its memory (before 2.10).
"""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .numpy_pickle import read_numpy_pickle
from .restricted_pickle import StorageId, read_pickle

SAFETENSORS = ".safetensors"
# Entries besides the weights that are JSON in the metadata of a .safetensors file.
_ABOUT = {"about": "centripetalnet.about", "meta": "centripetalnet.meta"}
# First values of files before PyTorch 1.6, and the first bytes, which are those of the first value.
_LEGACY_HEAD = [0x1950A86A20F9469CFC6C, 1001]
_LEGACY_START = pickle.dumps(_LEGACY_HEAD[0], 2)
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5))


def load_tensors(path: str) -> dict:
    """Reads a dict of tensors. No code in the file is executed.

    Args:
        path: a file of ``torch.save``, a zip archive or, before PyTorch 1.6, pickles; a
            .safetensors file; or a pickle of NumPy arrays. The format is recognised by the content.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it holds something else, or can only be read by executing code in it.
    """
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"there is no file {path} (seen from {os.getcwd()})")
    try:
        content = _read(local)
    # A damaged or foreign file may fail anywhere, with an IndexError for example.
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is not a checkpoint that can be loaded safely: {reason}. It must be a file "
            "of tensors as torch.save writes it, a .safetensors file, or a pickle of NumPy arrays "
            "as in Detectron2's model zoo. If it also holds other "
            "objects, someone who trusts it has to save it again without them: "
            "x = torch.load(PATH, weights_only=False); "
            "torch.save({key: x[key] for key in ('state_dict', 'meta') if key in x}, NEW)"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return content


def is_numpy_pickle(path: str) -> bool:
    """Whether :func:`load_tensors` reads this local file as a pickle of NumPy arrays."""
    with open(path, "rb") as file:
        head = file.read(len(_LEGACY_START))
    # Safetensors: a size of 8 bytes, then JSON.
    return head.startswith(_PICKLES) and head != _LEGACY_START and head[8:9] != b"{"


def _read(path: str) -> Any:
    if is_numpy_pickle(path):
        with open(path, "rb") as file:
            return read_numpy_pickle(file.read())
    with open(path, "rb") as file:
        head = file.read(9)
        file.seek(0)
        if head[8:] == b"{":
            return _read_safetensors(path)
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(file)
        if head.startswith(b"\x80\x02"):
            return _read_legacy(file)
    raise ValueError("unknown file format")


def _read_safetensors(path: str) -> dict:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    about = {key: json.loads(metadata[name]) for key, name in _ABOUT.items() if name in metadata}
    return {"model": weights, **about}


def as_safetensors(content: dict) -> bytes:
    """Bytes of a .safetensors file, with "about" or "meta" as JSON in its metadata.

    Args:
        content: as :func:`load_tensors` returns it, the weights under "model" or "state_dict".
    """
    weights = content["model"] if "model" in content else content["state_dict"]
    about = {name: json.dumps(content[key]) for key, name in _ABOUT.items() if key in content}
    # The format does not allow tensors that share memory.
    plain = {name: x.clone(memory_format=torch.contiguous_format) for name, x in weights.items()}
    return save(plain, metadata={"format": "pt", **about})


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {x.filename: x for x in archive.infolist()}
        pickles = [x for x in records if x.endswith("/data.pkl") and x.count("/") == 1]
        if len(pickles) != 1 or len(records) != len(archive.infolist()):
            raise ValueError("it is a zip archive, but not of torch.save")
        folder = pickles[0][: -len("data.pkl")]
        if f"{folder}constants.pkl" in records:
            raise ValueError("it is a TorchScript archive, which contains code")
        sizes = [x.file_size for x in records.values() if x.compress_type == zipfile.ZIP_STORED]
        # torch.save does not compress; a compressed record may unpack to any size.
        if len(sizes) != len(records) or sum(sizes) > os.fstat(file.fileno()).st_size:
            raise ValueError("its records are compressed")
        byteorder = records.get(f"{folder}byteorder")
        if byteorder and archive.read(byteorder).decode() != sys.byteorder:
            raise ValueError("it was written on a machine of another byte order")
        storages: dict[str, Tensor] = {}

        def load_storage(wanted: StorageId) -> Tensor:
            record = records[f"{folder}data/{wanted.key}"]
            if record.file_size != wanted.nbytes:
                raise ValueError(f"{record.filename} is not of the size in the pickle")
            if wanted.key not in storages:
                storages[wanted.key] = torch.empty(wanted.nbytes, dtype=torch.uint8)
                with archive.open(record) as source:
                    _fill(storages[wanted.key], source)
            return storages[wanted.key].view(wanted.dtype)

        return read_pickle(io.BytesIO(archive.read(pickles[0])), load_storage)


def _read_legacy(file: IO[bytes]) -> Any:
    def no_storage(wanted: StorageId) -> Tensor:
        raise ValueError("a storage is at an unexpected place")

    if [read_pickle(file, no_storage) for _ in _LEGACY_HEAD] != _LEGACY_HEAD:
        raise ValueError("it is a pickle, but not of torch.save")
    if read_pickle(file, no_storage).get("little_endian") != (sys.byteorder == "little"):
        raise ValueError("it was written on a machine of another byte order")
    sizes: dict[str, int] = {}
    storages: dict[str, Tensor] = {}
    left = os.fstat(file.fileno()).st_size

    def load_storage(wanted: StorageId) -> Tensor:
        nonlocal left
        if wanted.key not in storages:
            left -= wanted.nbytes
            if left < 0:
                raise ValueError("its storages are larger than the file")
            sizes[wanted.key] = wanted.numel
            storages[wanted.key] = torch.empty(wanted.nbytes, dtype=torch.uint8)
        values = storages[wanted.key].view(wanted.dtype)
        return values if wanted.view is None else values.narrow(0, *wanted.view[1:])

    content = read_pickle(file, load_storage)
    keys = read_pickle(file, no_storage)
    if sorted(keys) != sorted(sizes):
        raise ValueError("its storages are not those of its pickle")
    for key in keys:
        if struct.unpack("<q", file.read(8)) != (sizes[key],):
            raise ValueError(f"the storage {key} is not of the size in the pickle")
        _fill(storages[key], file)
    return content


def _fill(values: Tensor, source: IO[bytes]) -> None:
    """Reads ``values`` (nbytes,) from a file."""
    if source.readinto(values.numpy()) != len(values):
        raise ValueError("it ends too early")
