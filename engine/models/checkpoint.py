"""A checkpoint folder: its config, and its tensors as safetensors, in one file or in shards.

Layout as Hugging Face writes it: `config.json`, and `model.safetensors` or the shards that
`model.safetensors.index.json` names. Nothing of a folder is ever run, so pickles are not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = ("F64", "F32", "F16", "BF16")


class UnsupportedModelError(ValueError):
    """A checkpoint that this engine cannot run truthfully; the message says why."""


def folder_digest(folder: Path) -> bytes:
    """Of all that a folder's output can depend on."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.glob("*")):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja"):
            digest.update(file.name.encode())
            stat = file.stat()
            digest.update(_file_digest(file, stat.st_mtime_ns, stat.st_size))
    return digest.digest()


@lru_cache(maxsize=256)
def _file_digest(file: Path, mtime_ns: int, size: int) -> bytes:
    """Read once while the file stays as it is: it may be large, and is asked about twice."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def read_config(folder: Path, what: str = "model") -> dict[str, Any]:
    """`config.json` of a folder; `UnsupportedModelError` where there is none or it is no object."""
    file = folder / "config.json"
    if not file.is_file():
        raise UnsupportedModelError(f"{folder} is no {what} folder: config.json is missing")
    try:
        raw = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise UnsupportedModelError(f"{file} holds no JSON object")
    return raw


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; a missing shard or a pickle is named and refused."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _shards(folder)
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise UnsupportedModelError(
            f"{folder} holds its weights in {pickles[0]}, a pickle, which can run code when it is "
            "read: convert it to safetensors"
        )
    raise UnsupportedModelError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _shards(folder: Path) -> list[Path]:
    file = folder / INDEX_FILE
    try:
        names = sorted(set(json.loads(file.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnsupportedModelError(f"{file} has no weight_map of file names") from error
    if strange := [n for n in names if not isinstance(n, str) or Path(n).name != n]:
        raise UnsupportedModelError(f"{file} names {strange[0]!r}, which is no file beside it")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UnsupportedModelError(f"{folder} lacks {len(missing)} shards: {_few(missing)}")
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors as they are on disk, mapped into memory: read when they are used."""
    tensors: dict[str, Tensor] = {}
    for file in tensor_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 no dict
        except SafetensorError as error:
            raise UnsupportedModelError(f"{file}: {error}") from error
    return tensors


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """What the folder's tensors take in memory when floating ones are of `dtype`."""
    return sum(
        prod(shape) * dtype.itemsize if kind in _FLOATS else size
        for file in tensor_files(folder)
        for kind, shape, size in _headers(file)
    )


def _headers(file: Path) -> Iterator[tuple[str, list[int], int]]:
    """Type, shape and bytes on disk of each tensor, from the file's header alone."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise UnsupportedModelError(f"{file} is no safetensors file, or was cut short")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise UnsupportedModelError(f"{file} is no safetensors file") from error
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield entry["dtype"], entry["shape"], end - start


def _few(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def check_tensors(missing: set[str], unexpected: set[str], what: str) -> None:
    """Raise `UnsupportedModelError` naming tensors that a model lacks, or that it would ignore."""
    for names, complaint in ((missing, "lacks weights"), (unexpected, "has unknown weights")):
        if names:
            raise UnsupportedModelError(f"{what} {complaint}: {_few(sorted(names))}")
