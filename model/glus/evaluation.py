"""Score predictions on a data set as its published script does, and make such predictions. Knows files; not HTTP.

Predictions are a folder: VIDEO/EXPRESSION/FRAME.png, 0 and 255. An expression is there whole or not at all.

    evaluate(dataset, out, ...)      all of the following, as the command does it
    predict(dataset, model, out)     segment what is not there yet; shared by the processes of torchrun (predicting.py)
    score(dataset, predictions)      J, F and more, as the dictionary that scores.json holds (counted in scoring.py)
    write_submission(...)            the zip for an evaluation server, where the masks are hidden
    evaluate_synthetic(model, ...)   the same on generated clips, with the phrases or with swapped ones
"""

from __future__ import annotations

import json
import multiprocessing
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

import glus
from glus.datasets.base import DataError, Dataset, Reference, VideoRecord
from glus.errors import SettingError
from glus.predicting import (
    EXPRESSIONS_A_PASS,
    FORMAT,
    MANIFEST,
    Pass,
    Predicted,
    Progress,
    Report,
    Shard,
    model_record,
    plan,
    predict,
    predicted_by,
    prediction_files,
    share,
)
from glus.scoring import (
    CHUNK,
    ExpressionScore,
    VideoScore,
    categories,
    jf,
    listed,
    no_target,
    protocols,
    read_mask,
    score_video,
)
from glus.synthetic_evaluation import evaluate_synthetic

if TYPE_CHECKING:
    from glus.modeling.glus import Glus

__all__ = [
    "CHUNK",
    "EXPRESSIONS_A_PASS",
    "FORMAT",
    "MANIFEST",
    "ExpressionScore",
    "Outcome",
    "Pass",
    "Predicted",
    "Progress",
    "Report",
    "Shard",
    "VideoScore",
    "categories",
    "evaluate",
    "evaluate_synthetic",
    "missing",
    "model_record",
    "plan",
    "predict",
    "read_mask",
    "score",
    "score_video",
    "share",
    "write_json",
    "write_submission",
]

_QUICK = 400  # masks below which starting processes takes longer than scoring


# ---- scoring --------------------------------------------------------------------------------------------------------


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
    ways = protocols(dataset, videos)
    headline = next(iter(ways))
    counted = ways[headline]
    scale = 100.0 if counted["unit"] == "percent" else 1.0
    summary = counted.get("overall", counted)
    return {
        "format": FORMAT,
        "dataset": dataset.name,
        "split": dataset.split,
        "protocol": headline,
        **jf(summary["J"] / scale, summary["F"] / scale),
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
        "protocols": ways,
        "categories": categories(lines),
        "no_target": no_target(lines),
        "annotation_file": dataset.annotation_file.relative_to(dataset.root).as_posix(),
        "annotation_hash": dataset.annotation_hash,
        "model": dict(model) if model is not None else predicted_by(folder),
        "glus": glus.__version__,
        "command": command,
        "per_expression": listed(lines),
    }


def missing(dataset: Dataset, predictions: Path) -> Iterator[tuple[str, str, str]]:
    """(video, expression, why) of each expression without a whole prediction."""
    for index, record in enumerate(dataset.videos):
        for number, expression in enumerate(record.expressions):
            _, why = prediction_files(predictions, record, expression, dataset.labelled(index, number))
            if why is not None:
                yield record.name, expression.id, why


def _refuse_missing(absent: Sequence[tuple[str, str, str]], folder: Path) -> None:
    if absent:
        video, expression, why = absent[0]
        raise DataError(
            f"{len(absent)} expressions have no whole prediction in {folder}, the first being {expression!r} of video "
            f"{video!r} ({why}); finish the predictions, or leave strict out to count them as 0"
        )


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


def write_json(path: Reference, value: Mapping[str, Any]) -> Path:
    """Write a JSON file whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    work.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    work.replace(target)
    return target


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
