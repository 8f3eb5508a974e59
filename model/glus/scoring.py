"""J, F and more of each expression, and the published ways of counting them together. Knows masks; not models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glus import metrics
from glus.datasets.base import DataError, Dataset
from glus.masks import BoolMask
from glus.predicting import prediction_files

CHUNK = 16  # frames scored together; bounds memory at 16 x 3 masks


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
    files, why = prediction_files(predictions, record, expression, frames)
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
            files, why = prediction_files(predictions, record, record.expressions[place], frames)
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


def protocols(dataset: Dataset, videos: Sequence[VideoScore]) -> dict[str, dict[str, Any]]:
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
        return {"reasonvos": plain(lines), "reasonvos, missing left out": plain(there)}
    return {dataset.name: plain(lines)}


def plain(lines: Sequence[ExpressionScore]) -> dict[str, Any]:
    """MeViS's way: mean over frames, then over expressions; J&F is the mean of the two."""
    j, f = mean(line.j for line in lines), mean(line.f for line in lines)
    return {"unit": "fraction", "J": j, "F": f, "J&F": (j + f) / 2, "expressions": len(lines)}


def _davis_per_expression(lines: Sequence[ExpressionScore]) -> dict[str, Any]:
    """The released shortcut: every expression for itself; percentages of two decimals are what it prints."""
    counted = plain(lines)
    return {**counted, "printed": {name: round(counted[name] * 100, 2) for name in ("J", "F", "J&F")}}


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
            score: mean(row[score] for row, line in zip(rows, lines, strict=True) if line.category == name)
            for score in ("J", "F", "A", "R")
        }
        for name in ("referring", "reason")
        if any(line.category == name for line in lines)
    }
    if groups:
        groups["overall"] = {score: mean(group[score] for group in groups.values()) for score in ("J", "F", "A", "R")}
    else:
        groups["overall"] = {score: mean(row[score] for row in rows) for score in ("J", "F", "A", "R")}
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


# ---- parts of scores.json -------------------------------------------------------------------------------------------


def listed(lines: Sequence[ExpressionScore]) -> list[dict[str, Any]]:
    """`per_expression`: one entry each."""
    return [
        {
            "video": line.video,
            "expression": line.expression,
            "text": line.text,
            "category": line.category,
            **jf(line.j, line.f),
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
            **jf(mean(line.j for line in group), mean(line.f for line in group)),
            "expressions": len(group),
            "missing": sum(line.missing is not None for line in group),
        }
        for name, group in sorted(grouped.items())
    }


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else 0.0


def jf(j: float, f: float) -> dict[str, float]:
    """`j`, `f` and their mean."""
    return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def no_target(lines: Iterable[ExpressionScore]) -> dict[str, Any]:
    """Shares of right answers where there is nothing to find, and where there is something."""
    told = metrics.no_target_accuracy((line.target, line.drawn) for line in lines)
    return {"n_acc": told.n_acc, "t_acc": told.t_acc, "no_target": told.no_target, "target": told.target}
