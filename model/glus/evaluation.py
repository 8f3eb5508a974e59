"""Score predictions on a data set as its published script does, and make such predictions. Knows files; not HTTP.

Predictions are a folder: VIDEO/EXPRESSION/FRAME.png, 0 and 255. An expression is there whole or not at all.

    evaluate(dataset, out, ...)      all of the following, as the command does it
    predict(dataset, model, out)     segment what is not there yet; shared by the processes of torchrun
    score(dataset, predictions)      J, F and more, as the dictionary that scores.json holds
    write_submission(...)            the zip for an evaluation server, where the masks are hidden
    evaluate_synthetic(model, ...)   the same on generated clips, with the phrases or with swapped ones
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

import glus
from glus import metrics
from glus.datasets.base import DataError, Dataset, Expression, Reference, VideoRecord
from glus.errors import SettingError
from glus.masks import BoolMask

if TYPE_CHECKING:
    from glus.modeling.glus import Glus

FORMAT = 1
MANIFEST = "predictions.json"
CHUNK = 16  # frames scored together; bounds memory at 16 x 3 masks
EXPRESSIONS_A_PASS = 8  # asked together: they share the image encoders' work
_QUICK = 400  # masks below which starting processes takes longer than scoring


@dataclass(frozen=True)
class Progress:
    """How far something has come: `done` of `total` `what`, the latest being `item`."""

    stage: Literal["segmenting", "scoring"]
    done: int
    total: int
    what: str
    item: str


Report = Callable[[Progress], None]


# ---- scoring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpressionScore:
    """What one expression scored, means over its labelled frames.

    Attributes:
        video: name.
        expression: id.
        text: the phrase.
        category: or None.
        j: 0..1; 0 where the prediction is missing.
        f: 0..1; 0 where the prediction is missing.
        frames: how many were scored.
        missing: why there is no prediction, or None.
        target: whether there is anything to find on any frame.
        drawn: whether anything was drawn on any frame; None where the prediction is missing.
        name: what the published script calls it.
        more: further scores by name (A and R of ReVOS).
    """

    video: str
    expression: str
    text: str
    category: str | None
    j: float
    f: float
    frames: int
    missing: str | None
    target: bool
    drawn: bool | None
    name: str
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoScore:
    """Scores of a video's expressions; and, for Ref-DAVIS17, of its objects: (annotators, objects, 2) J and F."""

    expressions: list[ExpressionScore]
    objects: NDArray[np.float64] | None = None


def score(
    dataset: Dataset,
    predictions: Reference,
    *,
    strict: bool = False,
    workers: int | None = None,
    model: Mapping[str, Any] | None = None,
    command: str | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Score a folder of predictions.

    Args:
        dataset: with masks.
        predictions: VIDEO/EXPRESSION/FRAME.png.
        strict: refuse, rather than count as 0, expressions without a whole prediction.
        workers: processes; by default one a core, or none where there is little to do.
        model: {"name": ..., "version": ...} for the record; by default what `predict` left beside the predictions.
        command: for the record.
        progress: called after each video.

    Returns:
        What scores.json holds: `j`, `f`, `j_and_f` (0..1, by `protocol`), `protocols` (each published way of counting,
        by name), `expressions`, `missing`, `categories`, `per_expression`, `no_target`, `annotation_hash`, ...

    Raises:
        DataError: the truth or a prediction cannot be read; with `strict`, predictions are missing.
    """
    folder = Path(predictions)
    if not dataset.has_masks:
        raise DataError(
            f"{dataset.name} {dataset.split} has no masks here, so it cannot be scored; write the submission for its "
            "evaluation server instead"
        )
    if not folder.is_dir():
        raise DataError(f"no folder of predictions {folder}; wanted VIDEO/EXPRESSION/FRAME.png in it")
    if strict:
        _refuse_missing(list(missing(dataset, folder)), folder)
    videos = _score_videos(dataset, folder, workers, progress)
    lines = [line for video in videos for line in video.expressions]
    protocols = _protocols(dataset, videos)
    headline = next(iter(protocols))
    counted = protocols[headline]
    scale = 100.0 if counted["unit"] == "percent" else 1.0
    summary = counted.get("overall", counted)
    return {
        "format": FORMAT,
        "dataset": dataset.name,
        "split": dataset.split,
        "protocol": headline,
        **_jf(summary["J"] / scale, summary["F"] / scale),
        "expressions": len(lines),
        "frames": sum(line.frames for line in lines),
        "missing": {
            "count": sum(line.missing is not None for line in lines),
            "list": [
                {"video": line.video, "expression": line.expression, "why": line.missing}
                for line in lines
                if line.missing
            ],
        },
        "protocols": protocols,
        "categories": categories(lines),
        "no_target": _no_target(lines),
        "annotation_file": dataset.annotation_file.relative_to(dataset.root).as_posix(),
        "annotation_hash": dataset.annotation_hash,
        "model": dict(model) if model is not None else _predicted_by(folder),
        "glus": glus.__version__,
        "command": command,
        "per_expression": _listed(lines),
    }


def _listed(lines: Sequence[ExpressionScore]) -> list[dict[str, Any]]:
    return [
        {
            "video": line.video,
            "expression": line.expression,
            "text": line.text,
            "category": line.category,
            **_jf(line.j, line.f),
            "frames": line.frames,
            "missing": line.missing,
            **({"scores": dict(line.more)} if line.more else {}),
        }
        for line in lines
    ]


def categories(lines: Sequence[ExpressionScore]) -> dict[str, dict[str, Any]]:
    """Mean scores by category, in alphabetical order; expressions without one are not in it."""
    grouped: dict[str, list[ExpressionScore]] = {}
    for line in lines:
        if line.category is not None:
            grouped.setdefault(line.category, []).append(line)
    return {
        name: {
            **_jf(_mean(line.j for line in group), _mean(line.f for line in group)),
            "expressions": len(group),
            "missing": sum(line.missing is not None for line in group),
        }
        for name, group in sorted(grouped.items())
    }


def missing(dataset: Dataset, predictions: Path) -> Iterator[tuple[str, str, str]]:
    """(video, expression, why) of each expression without a whole prediction."""
    for index, record in enumerate(dataset.videos):
        for number, expression in enumerate(record.expressions):
            _, why = _prediction(predictions, record, expression, dataset.labelled(index, number))
            if why is not None:
                yield record.name, expression.id, why


def _refuse_missing(absent: Sequence[tuple[str, str, str]], folder: Path) -> None:
    if absent:
        video, expression, why = absent[0]
        raise DataError(
            f"{len(absent)} expressions have no whole prediction in {folder}, the first being {expression!r} of video "
            f"{video!r} ({why}); finish the predictions, or leave strict out to count them as 0"
        )


def _prediction(
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


def _score_videos(dataset: Dataset, folder: Path, workers: int | None, progress: Report | None) -> list[VideoScore]:
    count = len(dataset.videos)
    masks = sum(len(record.frames) * len(record.expressions) for record in dataset.videos)
    processes = min(workers or (1 if masks < _QUICK else os.cpu_count() or 1), count)
    done: dict[int, VideoScore] = {}

    def note(index: int, result: VideoScore) -> None:
        done[index] = result
        if progress is not None:
            progress(Progress("scoring", len(done), count, "videos", dataset.videos[index].name))

    if processes <= 1:
        for index in range(count):
            note(index, score_video(dataset, folder, index))
    else:
        # Spawned, for a fork of a process with threads (torch, OpenCV) may hang; they import no torch.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, _begin_worker, (dataset, folder)) as pool:
            longest_first = sorted(range(count), key=lambda index: -_cost(dataset.videos[index]))
            futures = {pool.submit(_score_in_worker, index): index for index in longest_first}
            try:
                for future in as_completed(futures):
                    note(futures[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [done[index] for index in range(count)]


def _cost(record: VideoRecord) -> int:
    return len(record.frames) * len(record.expressions)


_worker: tuple[Dataset, Path] | None = None


def _begin_worker(dataset: Dataset, folder: Path) -> None:
    global _worker  # noqa: PLW0603 - a process has one data set
    cv2.setNumThreads(1)
    _worker = dataset, folder


def _score_in_worker(index: int) -> VideoScore:
    assert _worker is not None
    return score_video(*_worker, index)


def score_video(dataset: Dataset, predictions: Path, video: int) -> VideoScore:
    """Scores of all expressions of one video. Raises DataError."""
    from glus.datasets.ref_davis import RefDavis17

    record = dataset.videos[video]
    lines = [_score_expression(dataset, predictions, video, number) for number in range(len(record.expressions))]
    objects = None
    if isinstance(dataset, RefDavis17) and dataset.has_object_pictures and dataset.annotators(video):
        objects = _score_objects(dataset, predictions, video)
    return VideoScore(lines, objects)


def _score_expression(dataset: Dataset, predictions: Path, video: int, number: int) -> ExpressionScore:
    from glus.datasets.reason_vos import ReasonVos
    from glus.datasets.revos import Revos

    record = dataset.videos[video]
    expression = record.expressions[number]
    frames = dataset.labelled(video, number)
    files, why = _prediction(predictions, record, expression, frames)
    target, drawn = False, False
    scores: dict[str, list[NDArray[np.float64]]] = {}
    for first in range(0, len(frames), CHUNK):
        part = frames[first : first + CHUNK]
        truth = dataset.masks(video, number, part)
        target = target or bool(truth.any())
        if why is not None:
            if target:
                break
            continue
        predicted = np.stack([read_mask(file, truth.shape[1:]) for file in files[first : first + CHUNK]])
        drawn = drawn or bool(predicted.any())
        found = {"j": metrics.region_similarity(truth, predicted), "f": metrics.boundary_accuracy(truth, predicted)}
        if isinstance(dataset, Revos) and dataset.foreground_file.is_file():
            everything = np.stack([dataset.foreground(video, t) for t in part])
            for convention in ("0/255", "0/1"):
                found[f"accuracy {convention}"] = metrics.accuracy(truth, predicted, convention)
                found[f"robustness {convention}"] = metrics.robustness(truth, predicted, everything, convention)
        for name, values in found.items():
            scores.setdefault(name, []).append(values)
    means = {name: float(np.mean(np.concatenate(values))) for name, values in scores.items()}
    name = f"{record.name}_{expression.id}"
    return ExpressionScore(
        record.name,
        expression.id,
        expression.text,
        expression.category,
        means.pop("j", 0.0),
        means.pop("f", 0.0),
        len(frames),
        why,
        target,
        drawn if why is None else None,
        dataset.score_name(video, number) if isinstance(dataset, ReasonVos) else name,
        means,
    )


def read_mask(file: Path, size: tuple[int, ...]) -> BoolMask:
    """(H, W) bool of a predicted mask: what is not 0 is set. Raises DataError, naming the file."""
    image: Any = cv2.imdecode(np.fromfile(file, dtype=np.uint8), cv2.IMREAD_UNCHANGED) if file.stat().st_size else None
    if image is None:
        raise DataError(f"prediction {file} cannot be read; wanted a PNG of 0 and 255: remove it and predict again")
    if image.shape[:2] != size:
        height, width = image.shape[:2]
        raise DataError(
            f"prediction {file} is {width}x{height}, the video is {size[1]}x{size[0]}; wanted its full size"
        )
    colours: NDArray[Any] = image[..., :3].any(axis=2) if image.ndim == 3 else image
    return np.asarray(colours, dtype=bool)


def _score_objects(dataset: Dataset, predictions: Path, video: int) -> NDArray[np.float64]:
    """Ref-DAVIS17 as DAVIS 2017 scores object proposals: (annotators, objects, 2) J and F.

    An annotator's expressions make one label picture (where they overlap, the object named first wins, as it does
    when equal scores are compared); its labels are assigned to the true objects so that J&F is greatest. As there,
    the objects are those of the first frame and void pixels are background. Missing predictions are empty pictures.
    """
    from glus.datasets.ref_davis import RefDavis17

    assert isinstance(dataset, RefDavis17)
    record = dataset.videos[video]
    frames = range(len(record.frames))
    pictures = np.stack([dataset.objects_picture(video, t) for t in frames])
    first = pictures[0]
    truths = [pictures == number for number in range(1, int(first[first != 255].max(initial=0)) + 1)]
    results = []
    for places in dataset.annotators(video) or []:
        taken = np.zeros(pictures.shape, dtype=bool)
        proposals = []
        for place in places:
            files, why = _prediction(predictions, record, record.expressions[place], frames)
            if why is None:
                predicted = np.stack([read_mask(file, taken.shape[1:]) for file in files]) & ~taken
            else:
                predicted = np.zeros_like(taken)
            taken |= predicted
            proposals.append(predicted)
        proposals += [np.zeros_like(taken)] * (len(truths) - len(proposals))
        pairs = np.array(
            [
                [
                    (metrics.region_similarity(truth, each).mean(), metrics.boundary_accuracy(truth, each).mean())
                    for each in proposals
                ]
                for truth in truths
            ]
        ).reshape(len(truths), len(proposals), 2)
        results.append(pairs[np.arange(len(truths)), metrics.assign(pairs.mean(axis=2))])
    return np.array(results)


# ---- the published ways of counting ---------------------------------------------------------------------------------


def _protocols(dataset: Dataset, videos: Sequence[VideoScore]) -> dict[str, dict[str, Any]]:
    """Each way of counting by its name; the first is the headline."""
    lines = [line for video in videos for line in video.expressions]
    if dataset.name == "ref-davis17":
        return {
            "ref-davis17 per expression": _davis_per_expression(lines),
            "ref-davis17 four annotators": _davis_official(videos),
        }
    if dataset.name == "revos":
        return {f"revos {convention}": _revos(lines, convention) for convention in ("0/255", "0/1")}
    if dataset.name == "reasonvos":
        there = [line for line in lines if line.missing is None]
        return {"reasonvos": _plain(lines), "reasonvos, missing left out": _plain(there)}
    return {dataset.name: _plain(lines)}


def _plain(lines: Sequence[ExpressionScore]) -> dict[str, Any]:
    """MeViS's way: mean over frames, then over expressions; J&F is the mean of the two."""
    j, f = _mean(line.j for line in lines), _mean(line.f for line in lines)
    return {"unit": "fraction", "J": j, "F": f, "J&F": (j + f) / 2, "expressions": len(lines)}


def _davis_per_expression(lines: Sequence[ExpressionScore]) -> dict[str, Any]:
    """The released shortcut: every expression for itself; percentages of two decimals are what it prints."""
    plain = _plain(lines)
    return {**plain, "printed": {name: round(plain[name] * 100, 2) for name in ("J", "F", "J&F")}}


def _davis_official(videos: Sequence[VideoScore]) -> dict[str, Any]:
    scored = [video.objects for video in videos if video.objects is not None]
    if len(scored) < len(videos):
        return {
            "unit": "fraction",
            "J": None,
            "F": None,
            "J&F": None,
            "why": f"{len(videos) - len(scored)} of {len(videos)} videos lack object numbers or four expressions an object",
        }
    by_annotator = np.concatenate(scored, axis=1).mean(axis=1)  # over all objects of all videos
    j, f = (float(value) for value in by_annotator.mean(axis=0))
    each = [{"J": float(a), "F": float(b), "J&F": float(a + b) / 2} for a, b in by_annotator]
    return {"unit": "fraction", "J": j, "F": f, "J&F": (j + f) / 2, "annotators": each}


def _revos(lines: Sequence[ExpressionScore], convention: str) -> dict[str, Any]:
    """ReVOS's script: percentages of two decimals, averaged in each group, then over the two groups.

    The published script compares 0/255 predictions with 0/1 truth when it computes A and R: convention "0/255".
    """
    rows = [_revos_row(line, convention) for line in lines]
    result: dict[str, Any] = {"unit": "percent", "predictions": convention}
    groups = {
        name: {
            score: _mean(row[score] for row, line in zip(rows, lines, strict=True) if line.category == name)
            for score in ("J", "F", "A", "R")
        }
        for name in ("referring", "reason")
        if any(line.category == name for line in lines)
    }
    if groups:
        groups["overall"] = {score: _mean(group[score] for group in groups.values()) for score in ("J", "F", "A", "R")}
    else:
        groups["overall"] = {score: _mean(row[score] for row in rows) for score in ("J", "F", "A", "R")}
    for group in groups.values():
        group["JF"] = (group["J"] + group["F"]) / 2
    return {**result, **groups, "rows": rows}


def _revos_row(line: ExpressionScore, convention: str) -> dict[str, Any]:
    return {
        "name": line.name,
        "category": line.category,
        "J": round(line.j * 100, 2),
        "F": round(line.f * 100, 2),
        "JF": round((line.j + line.f) / 2 * 100, 2),
        "A": round(line.more.get(f"accuracy {convention}", 0.0) * 100, 2),
        "R": round(line.more.get(f"robustness {convention}", 0.0) * 100, 2),
    }


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else 0.0


def _jf(j: float, f: float) -> dict[str, float]:
    return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def _no_target(lines: Iterable[ExpressionScore]) -> dict[str, Any]:
    told = metrics.no_target_accuracy((line.target, line.drawn) for line in lines)
    return {"n_acc": told.n_acc, "t_acc": told.t_acc, "no_target": told.no_target, "target": told.target}


def write_json(path: Reference, value: Mapping[str, Any]) -> Path:
    """Write a JSON file whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    work.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    work.replace(target)
    return target


# ---- predicting -----------------------------------------------------------------------------------------------------


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
    return _prediction(folder, record, expression, range(len(record.frames)))[1] is None


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


def _predicted_by(folder: Path) -> dict[str, Any] | None:
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return dict(told) if isinstance(told, dict) else None


# ---- submissions ----------------------------------------------------------------------------------------------------


def write_submission(dataset: Dataset, predictions: Reference, path: Reference) -> Path:
    """The zip for an evaluation server: Annotations/VIDEO/EXPRESSION/FRAME.png (MeViS: without Annotations/).

    Refuses predictions that are not whole: a server scores them without saying so.

    Raises:
        DataError: predictions are missing.
    """
    folder, target = Path(predictions), Path(path)
    _refuse_missing(list(missing(dataset, folder)), folder)
    top = "" if dataset.name == "mevis" else "Annotations/"
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with zipfile.ZipFile(work, "w", zipfile.ZIP_STORED) as archive:  # PNGs do not shrink
            for record in dataset.videos:
                for expression in record.expressions:
                    for name in record.frame_names:
                        file = f"{record.name}/{expression.id}/{name}.png"
                        archive.write(folder / file, top + file)
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)
    return target


# ---- all of it ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What `evaluate` left: the scores (None where the masks are hidden), and its files in the order of their writing."""

    scores: dict[str, Any] | None
    files: tuple[Path, ...]


def evaluate(
    dataset: Dataset,
    out: Reference,
    *,
    model: Glus | None = None,
    predictions: Reference | None = None,
    memory: bool = True,
    key_frames: Mapping[str, int] | None = None,
    strict: bool = False,
    workers: int | None = None,
    report: Reference | None = None,
    command: str | None = None,
    progress: Report | None = None,
) -> Outcome | None:
    """Predict with a model, or take predictions that are there; score them, or write the submission.

    Args:
        dataset: from `open_dataset`.
        out: scores.json; a submission goes beside it, as .zip.
        model: from `glus.load`; None scores `predictions` as they are.
        predictions: the folder of masks; with a model by default beside `out`, named after it.
        memory: see `predict`.
        key_frames: see `predict`.
        strict: see `score`.
        workers: see `score`.
        report: HTML file to write too.
        command: for the record.
        progress: called as things come along.

    Returns:
        None in all processes of torchrun but the first, which waits for the others and scores.

    Raises:
        SettingError: neither a model nor predictions. DataError: see `score`.
    """
    target = Path(out)
    if model is None and predictions is None:
        raise SettingError(
            "neither a model nor predictions were given; wanted one of them, or both to go on predicting"
        )
    folder = target.with_name(f"{target.stem}-masks") if predictions is None else Path(predictions)
    shard = Shard.from_environment()
    if model is not None:
        predict(dataset, model, folder, memory=memory, key_frames=key_frames, shard=shard, progress=progress)
        shard.wait()
    if shard.rank:
        return None
    if not dataset.has_masks:
        return Outcome(None, (write_submission(dataset, folder, target.with_suffix(".zip")),))
    scores = score(
        dataset,
        folder,
        strict=strict,
        workers=workers,
        model=None if model is None else model_record(model),
        command=command,
        progress=progress,
    )
    files = [write_json(target, scores)]
    if report is not None:
        from glus.evaluation_report import write_report

        files.append(write_report(scores, report, dataset=dataset, predictions=folder))
    return Outcome(scores, tuple(files))


# ---- generated clips ------------------------------------------------------------------------------------------------


def evaluate_synthetic(
    model: Glus,
    clips: int,
    seed: int,
    shuffle_prompts: bool = False,
    kind: str | None = None,
    *,
    frames: int = 24,
    size: tuple[int, int] = (256, 256),
    split: Literal["train", "novel"] = "train",
    memory: bool = True,
    key_frame: int | Literal["auto"] | None = None,
    command: str | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """J and F on generated clips whose masks are exact.

    Args:
        model: from `glus.load`.
        clips: how many; clip i of a seed is always the same.
        seed: one that training did not use.
        shuffle_prompts: ask each phrase's partner (a phrase about another object of the clip) and score against the
            phrase's own truth: what is left is what a model gets without reading. Phrases without a partner, or without
            a target, are out.
        kind: only clips and phrases of this kind.
        frames: of a clip.
        size: (height, width).
        split: whose names are used: those that training saw, or the held-out ones. The clips are new either way.
        memory: whether the mask decoder remembers past frames.
        key_frame: where each clip begins; "auto" asks the model for each phrase.
        command: for the record.
        progress: called after each clip.

    Returns:
        As `score`, kinds being the `categories`, and `templates`: scores of wordings that training saw and held out.

    Raises:
        SettingError: fewer than one clip, or no phrase to score.
    """
    from glus.datasets.synthetic import make_clip

    if clips < 1:
        raise SettingError(f"{clips} clips; wanted at least 1")
    digest = hashlib.sha256()
    lines: list[ExpressionScore] = []
    held_out: list[bool] = []
    seeds = np.random.SeedSequence(seed).generate_state(clips)
    for index, clip_seed in enumerate(seeds):
        clip = make_clip(int(clip_seed), frames=frames, size=size, kind=kind, split=split, templates="all")
        name = f"{seed}-{index}"
        asked: dict[int, int] = {}  # whose text is asked, by whose truth is scored
        for number, phrase in enumerate(clip.phrases):
            if kind not in {None, phrase.kind}:
                continue
            if not shuffle_prompts:
                asked[number] = number
            elif phrase.partner is not None and phrase.objects:
                asked[number] = phrase.partner
        drawn = _draw(model, clip.frames, {n: clip.phrases[n].text for n in asked.values()}, memory, key_frame)
        for number in asked:
            phrase = clip.phrases[number]
            truth = np.asarray(clip.masks[list(phrase.objects)].any(axis=0), dtype=bool)
            predicted = drawn[asked[number]]
            digest.update(phrase.text.encode() + np.packbits(truth).tobytes())
            held_out.append(bool(phrase.held_out))
            lines.append(
                ExpressionScore(
                    name,
                    str(number),
                    clip.phrases[asked[number]].text,
                    phrase.kind,
                    float(metrics.region_similarity(truth, predicted).mean()),
                    float(metrics.boundary_accuracy(truth, predicted).mean()),
                    len(truth),
                    None,
                    bool(truth.any()),
                    bool(predicted.any()),
                    f"{name}_{number}",
                )
            )
        if progress is not None:
            progress(Progress("segmenting", index + 1, clips, "clips", name))
    if not lines:
        raise SettingError(f"none of {clips} clips has a phrase of kind {kind!r} that can be scored; take more clips")
    protocol = "synthetic, phrases swapped" if shuffle_prompts else "synthetic"
    plain = _plain(lines)
    return {
        "format": FORMAT,
        "dataset": "synthetic",
        "split": split,
        "protocol": protocol,
        **_jf(plain["J"], plain["F"]),
        "expressions": len(lines),
        "frames": sum(line.frames for line in lines),
        "missing": {"count": 0, "list": []},
        "protocols": {protocol: plain},
        "categories": categories(lines),
        "templates": {
            title: _template_scores([line for line, out in zip(lines, held_out, strict=True) if out is which])
            for title, which in (("seen", False), ("held out", True))
        },
        "no_target": _no_target(lines),
        "annotation_file": None,
        "annotation_hash": digest.hexdigest(),
        "settings": {
            "clips": clips,
            "seed": seed,
            "shuffle_prompts": shuffle_prompts,
            "kind": kind,
            "frames": frames,
            "size": list(size),
            "memory": memory,
            "key_frame": key_frame,
        },
        "model": model_record(model),
        "glus": glus.__version__,
        "command": command,
        "per_expression": _listed(lines),
    }


def _template_scores(lines: Sequence[ExpressionScore]) -> dict[str, Any]:
    if not lines:
        return {"j": None, "f": None, "j_and_f": None, "expressions": 0}
    return {**_jf(_mean(line.j for line in lines), _mean(line.f for line in lines)), "expressions": len(lines)}


def _draw(
    model: Glus,
    frames: NDArray[np.uint8],
    texts: Mapping[int, str],
    memory: bool,
    key_frame: int | Literal["auto"] | None,
) -> dict[int, BoolMask]:
    """(T, H, W) masks of each phrase."""
    from glus.key_frames import choose
    from glus.streaming import Segmentation

    masks = {number: np.zeros(frames.shape[:3], dtype=bool) for number in texts}
    together = 1 if key_frame == "auto" else EXPRESSIONS_A_PASS
    numbers, source = list(texts), list(frames)
    for first in range(0, len(numbers), together):
        part = numbers[first : first + together]
        asked = [texts[number] for number in part]
        start = choose(model, source, asked) if key_frame == "auto" else key_frame
        for mask in Segmentation(model, source, asked, memory=memory, key_frame=start):
            masks[part[mask.expression_index]][mask.frame_index] = mask.mask
    return masks
