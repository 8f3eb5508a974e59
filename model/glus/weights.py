"""Tensors in files: safetensors or torch's .bin, one file or sharded, read lazily and written in shards. Knows files and
tensors; not models.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glus.errors import CheckpointError

SHARD_BYTES = 4_500_000_000
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class _Shard(Protocol):
    path: Path

    def keys(self) -> Iterable[str]: ...
    def shape(self, key: str) -> tuple[int, ...]: ...
    def tensor(self, key: str) -> Tensor: ...


class _SafeShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_pointer(path)
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as safetensors ({error}); it is incomplete or damaged: download it again"
            ) from error

    def keys(self) -> Iterable[str]:
        return self._file.keys()  # type: ignore[no-any-return,no-untyped-call]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())  # type: ignore[no-untyped-call]

    def tensor(self, key: str) -> Tensor:
        return self._file.get_tensor(key)  # type: ignore[no-any-return,no-untyped-call]


class _TorchShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = load_torch_file(path)

    def keys(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]


def load_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a .bin or .pt file, memory-mapped where the format allows; nothing in it is executed.

    A file that holds {"model": {...}} or {"state_dict": {...}} gives the inner dictionary.

    Raises:
        CheckpointError: truncated, not a torch file, or holding something else than tensors.
    """
    _refuse_pointer(path)
    try:
        loaded: Any = _torch_load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain file of tensors ({str(error).splitlines()[0]}); it is damaged, or it holds Python "
            "code, which is never run here: download it again, or save it as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "it is incomplete or damaged: download it again"
        ) from error
    for inner in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(inner), dict):
            loaded = loaded[inner]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}, not named tensors; is it a model's weight file?")
    return loaded


def _torch_load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    # the format before torch 1.6 is no zip archive and cannot be memory-mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull` in its folder")


class WeightFolder:
    """The named tensors of a folder, whichever way they are stored; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards = list(self._open())
        self._where = {key: shard for shard in self._shards for key in shard.keys()}  # noqa: SIM118 - not a dict

    def _open(self) -> Iterator[_Shard]:
        for name in _INDEX:
            index = self.folder / name
            if index.is_file():
                yield from (self._shard(file) for file in self._listed(index))
                return
        for name in _SINGLE:
            if (self.folder / name).is_file():
                yield self._shard(self.folder / name)
                return
        raise CheckpointError(
            f"{self.folder} holds no weights; wanted one of {', '.join((*_SINGLE, *_INDEX))} "
            "(the layout that Hugging Face models have)"
        )

    def _listed(self, index: Path) -> list[Path]:
        try:
            names = sorted({os.fspath(n) for n in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not a weight index ({error}); download it again") from error
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{self.folder} lacks {', '.join(absent)}, listed in {index.name}; download the missing file(s)"
            )
        return [self.folder / name for name in names]

    @staticmethod
    def _shard(path: Path) -> _Shard:
        return _SafeShard(path) if path.suffix == ".safetensors" else _TorchShard(path)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    def keys(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._where)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape without reading the values."""
        return self._where[key].shape(key)

    def tensor(self, key: str) -> Tensor:
        """The tensor on the CPU, as stored."""
        return self._where[key].tensor(key)

    def file(self, key: str) -> Path:
        """The file that holds it, for messages."""
        return self._where[key].path


class TensorDict:
    """Tensors in memory behind the same few calls as `WeightFolder`."""

    def __init__(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        self.folder = folder
        self._tensors = dict(tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def keys(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape."""
        return tuple(self._tensors[key].shape)

    def tensor(self, key: str) -> Tensor:
        """The tensor."""
        return self._tensors[key]

    def file(self, key: str) -> Path:  # noqa: ARG002 - same call as WeightFolder's
        """Where they came from, for messages."""
        return self.folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file, readable as other new files are (the library makes it private to its owner)."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    kind: Literal["safetensors", "bin"] = "safetensors",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write named tensors as one file, or as numbered shards with an index when they are larger than `shard_bytes`.

    At most one shard is in memory at a time; the numbers in the shards' names are put in at the end.
    """
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    parts: list[tuple[Path, list[str]]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal pending, size
        path = folder / f"{stem}-{len(parts) + 1:05d}.{suffix}.part"
        if kind == "safetensors":
            save_tensors(pending, path)
        else:
            torch.save(pending, path)
        parts.append((path, list(pending)))
        pending, size = {}, 0

    for name, tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if pending and size + nbytes > shard_bytes:
            flush()
        pending[name] = tensor.detach().to("cpu").clone().contiguous()  # a copy: views must not drag their storage in
        size += nbytes
        total += nbytes
    flush()
    if len(parts) == 1:
        parts[0][0].rename(folder / f"{stem}.{suffix}")
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(parts, 1):
        final = f"{stem}-{number:05d}-of-{len(parts):05d}.{suffix}"
        path.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
