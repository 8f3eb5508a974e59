"""Segment a data set into a folder of masks, shared by the processes of torchrun. Knows files; not scores.

VIDEO/EXPRESSION/FRAME.png, 0 and 255. An expression is there whole or not at all; predictions.json says of what.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from glus.datasets.base import Dataset, Expression, Reference, VideoRecord
from glus.errors import SettingError
from glus.masks import BoolMask

if TYPE_CHECKING:
    from glus.modeling.glus import Glus

FORMAT = 1
MANIFEST = "predictions.json"
EXPRESSIONS_A_PASS = 8  # asked together: they share the image encoders' work


@dataclass(frozen=True)
class Progress:
    """How far something has come: `done` of `total` `what`, the latest being `item`."""

    stage: Literal["segmenting", "scoring"]
    done: int
    total: int
    what: str
    item: str


Report = Callable[[Progress], None]


# ---- who does what --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """Which part of the work is this process's: `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def from_environment(cls) -> Shard:
        """As torchrun says in RANK and WORLD_SIZE; all of it without them. Raises SettingError."""
        given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not all(value.isdecimal() for value in given) or not int(given[0]) < int(given[1]):
            raise SettingError(
                f"RANK={given[0]!r}, WORLD_SIZE={given[1]!r}; wanted numbers, RANK from 0 to WORLD_SIZE - 1"
            )
        return cls(int(given[0]), int(given[1]))

    def device(self, asked: str = "auto") -> str:
        """The device of this process: with several and "auto" or "cuda", the GPU that LOCAL_RANK says."""
        import torch

        if self.count > 1 and asked in {"auto", "cuda"} and torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        return asked

    def wait(self) -> None:
        """Until all processes are here. A process that fails is noticed by torchrun, which ends the others."""
        if self.count < 2:
            return
        from datetime import timedelta

        import torch.distributed as dist

        ours = not dist.is_initialized()
        if ours:
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        dist.barrier()
        if ours:
            dist.destroy_process_group()


@dataclass(frozen=True)
class Pass:
    """One run over a video: some of its expressions, all from one key frame."""

    video: int
    expressions: tuple[int, ...]
    key_frame: int | None


@dataclass(frozen=True)
class Predicted:
    """What `predict` did: expressions segmented now, and those that were there."""

    segmented: int
    there: int


def plan(
    dataset: Dataset, key_frames: Mapping[str, int] | None = None, *, together: int = EXPRESSIONS_A_PASS
) -> list[Pass]:
    """All passes over a data set, the same in every process."""
    from glus.key_frames import look_up

    passes = []
    for index, record in enumerate(dataset.videos):
        groups: dict[int | None, list[int]] = {}
        for number, expression in enumerate(record.expressions):
            key = look_up(key_frames, record.name, expression.id) if key_frames else None
            if key is not None and key >= len(record.frames):
                raise SettingError(
                    f"the key frame file gives {key} for {record.name}_{expression.id}, whose clip has frames 0 to "
                    f"{len(record.frames) - 1}"
                )
            groups.setdefault(key, []).append(number)
        for key, numbers in groups.items():
            passes += [
                Pass(index, tuple(numbers[first : first + together]), key) for first in range(0, len(numbers), together)
            ]
    return passes


def share(dataset: Dataset, passes: Sequence[Pass], shard: Shard) -> list[Pass]:
    """Passes of this process: each pass goes to exactly one, longest first to the one that has least to do."""
    loads = [0] * shard.count
    mine = []
    for each in sorted(passes, key=lambda one: -_pass_cost(dataset, one)):  # stable, so the same everywhere
        rank = loads.index(min(loads))
        loads[rank] += _pass_cost(dataset, each)
        if rank == shard.rank:
            mine.append(each)
    return sorted(mine, key=lambda one: (one.video, one.expressions))


def _pass_cost(dataset: Dataset, one: Pass) -> int:
    return len(dataset.videos[one.video].frames) * (
        2 + len(one.expressions)
    )  # the encoders weigh about two expressions


# ---- segmenting -----------------------------------------------------------------------------------------------------


def predict(
    dataset: Dataset,
    model: Glus,
    out: Reference,
    *,
    memory: bool = True,
    key_frames: Mapping[str, int] | None = None,
    shard: Shard | None = None,
    together: int = EXPRESSIONS_A_PASS,
    progress: Report | None = None,
) -> Predicted:
    """Segment every expression that is not in `out` yet. Stop it at any time and start it again.

    Each expression is written under a temporary name and renamed when all its frames are there; one that is in `out`
    with frames missing (from another program) is done again.

    Args:
        dataset: what to segment; masks are not needed.
        model: from `glus.load`.
        out: VIDEO/EXPRESSION/FRAME.png are written here, and predictions.json about model and settings.
        memory: whether the mask decoder remembers past frames.
        key_frames: from `glus.key_frames.read_scores`; expressions that it lacks begin at frame 0.
        shard: this process's part; by default as torchrun says.
        together: how many expressions of a video share a pass.
        progress: called after each pass.

    Raises:
        SettingError: `out` holds predictions of another model, data set or setting; a key frame outside its clip.
    """
    folder = Path(out)
    mine = shard or Shard.from_environment()
    _claim(folder, dataset, model, memory, key_frames)
    passes = share(dataset, plan(dataset, key_frames, together=together), mine)
    total = sum(len(each.expressions) for each in passes)
    segmented = there = 0
    for each in passes:
        record = dataset.videos[each.video]
        wanted = [number for number in each.expressions if not _is_whole(folder, record, record.expressions[number])]
        if wanted:
            _segment(dataset, model, folder, Pass(each.video, tuple(wanted), each.key_frame), memory)
        segmented += len(wanted)
        there += len(each.expressions) - len(wanted)
        if progress is not None:
            progress(Progress("segmenting", segmented + there, total, "expressions", record.name))
    return Predicted(segmented, there)


def _is_whole(folder: Path, record: VideoRecord, expression: Expression) -> bool:
    return prediction_files(folder, record, expression, range(len(record.frames)))[1] is None


def prediction_files(
    folder: Path, record: VideoRecord, expression: Expression, frames: Sequence[int]
) -> tuple[list[Path], str | None]:
    """Files of a prediction, and why it is not whole, if it is not."""
    place = folder / record.name / expression.id
    try:
        there = {path.name for path in place.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return [], "no folder"
    names = record.frame_names
    wanted = [f"{names[t]}.png" for t in frames]
    found = sum(name in there for name in wanted)
    return [place / name for name in wanted], None if found == len(wanted) else f"{found} of {len(wanted)} frames"


def _segment(dataset: Dataset, model: Glus, folder: Path, one: Pass, memory: bool) -> None:
    from glus.streaming import Segmentation

    record = dataset.videos[one.video]
    asked = [record.expressions[number] for number in one.expressions]
    parent = folder / record.name
    parent.mkdir(parents=True, exist_ok=True)
    ours = "|".join(re.escape(expression.id) for expression in asked)
    for path in parent.iterdir():
        if re.fullmatch(rf"\.({ours})\.[0-9a-f]{{8}}\.part", path.name):  # a killed run's; nobody else has our share
            shutil.rmtree(path, ignore_errors=True)
    works = [parent / f".{expression.id}.{uuid.uuid4().hex[:8]}.part" for expression in asked]
    names = record.frame_names
    try:
        for work in works:
            work.mkdir()
        run = Segmentation(
            model,
            _Frames(dataset, one.video),
            [expression.text for expression in asked],
            memory=memory,
            key_frame=one.key_frame,
        )
        for mask in run:
            (works[mask.expression_index] / f"{names[mask.frame_index]}.png").write_bytes(_png(mask.mask))
        for work, expression in zip(works, asked, strict=True):
            target = parent / expression.id
            if target.exists():  # with frames missing, or it would not be done again
                shutil.rmtree(target)
            work.rename(target)
    finally:
        for work in works:
            shutil.rmtree(work, ignore_errors=True)


class _Frames(Sequence[NDArray[np.uint8]]):
    """Pictures of a video, read when asked for."""

    def __init__(self, dataset: Dataset, video: int) -> None:
        self._dataset, self._video = dataset, video

    def __len__(self) -> int:
        return len(self._dataset.videos[self._video].frames)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self._dataset.frame(self._video, range(len(self))[index])


def _png(mask: BoolMask) -> bytes:
    done, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    assert done, mask.shape
    return bytes(encoded)


# ---- what a folder was made by --------------------------------------------------------------------------------------


def model_record(model: Glus) -> dict[str, str]:
    """{"name", "version"} of a model for scores.json.

    The version is a hash over its configuration and some 4,096 numbers of each tensor: any training moves some of them,
    and it is the same on every device.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        digest.update(name.encode() + flat[:: flat.numel() // 4096 + 1].float().cpu().numpy().tobytes())
    return {"name": model.name, "version": digest.hexdigest()[:16]}


def _claim(folder: Path, dataset: Dataset, model: Glus, memory: bool, key_frames: Mapping[str, int] | None) -> None:
    """Write down what the predictions are of, or refuse where they are of something else."""
    chosen = json.dumps(dict(sorted(key_frames.items()))) if key_frames else ""
    asked = {
        "format": FORMAT,
        "dataset": dataset.name,
        "split": dataset.split,
        "annotation_hash": dataset.annotation_hash,
        "model": model_record(model),
        "memory": memory,
        "key_frames": hashlib.sha256(chosen.encode()).hexdigest()[:16] if key_frames else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path, work = folder / MANIFEST, folder / f".{MANIFEST}.{uuid.uuid4().hex[:8]}.part"
    work.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    try:
        if (
            any(each.name != MANIFEST and not each.name.startswith(".") for each in folder.iterdir())
            and not path.exists()
        ):
            raise SettingError(f"{folder} holds files but no {MANIFEST}: give another folder, or an empty one")
        try:
            os.link(work, path)  # whole, and only by the first of several processes
        except FileExistsError:
            before = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in asked if before.get(name) != asked[name]]
            if other:
                was, now = before.get(other[0]), asked[other[0]]
                raise SettingError(
                    f"{folder} holds predictions of another {other[0].replace('_', ' ')} ({was}, not {now}): "
                    "give another folder, or remove it"
                ) from None
    finally:
        work.unlink()


def predicted_by(folder: Path) -> dict[str, Any] | None:
    """The model that made a folder of predictions; None where nobody wrote it down."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return dict(told) if isinstance(told, dict) else None
