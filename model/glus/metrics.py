"""J, F and the other scores of a mask track, as the benchmarks define them. Knows arrays; not files or models.

Arrays are (T, H, W) bool, T frames of one clip; every function gives one value a frame, float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from glus.errors import SettingError

Masks = NDArray[np.bool_]
Scores = NDArray[np.float64]
Convention = Literal["0/1", "0/255"]

BOUND = 0.008  # of the image diagonal: how far apart two boundaries may run and still count as the same
_EPSILON = 1e-6  # in the published definition of robustness


def region_similarity(truth: Masks, prediction: Masks, void: Masks | None = None) -> Scores:
    """J: intersection over union, 1 where both are empty.

    Args:
        truth: (T, H, W) bool.
        prediction: (T, H, W) bool.
        void: (T, H, W) bool, pixels that count for neither; none by default.
    """
    truth, prediction = _checked(truth, prediction, void)
    both, either = _counts(truth & prediction), _counts(truth | prediction)
    scores: Scores = np.divide(both, either, out=np.ones(len(truth)), where=either > 0)
    return scores


def boundary_accuracy(truth: Masks, prediction: Masks, void: Masks | None = None, *, bound: float = BOUND) -> Scores:
    """F: harmonic mean of the precision and recall of boundary pixels, 1 where neither mask has any.

    Args:
        truth: (T, H, W) bool.
        prediction: (T, H, W) bool.
        void: (T, H, W) bool, pixels that count for neither; none by default.
        bound: how far off a boundary may be: below 1 a share of the diagonal, rounded up, else pixels.
    """
    truth, prediction = _checked(truth, prediction, void)
    height, width = truth.shape[1:]
    radius = math.ceil(bound if bound >= 1 else bound * math.hypot(height, width))
    return np.array([_boundary_f(*pair, radius) for pair in zip(truth, prediction, strict=True)], dtype=np.float64)


def boundaries(masks: Masks) -> Masks:
    """One-pixel boundary maps: pixels that differ from the one to the right, below, or below to the right.

    Along the right and lower edge of the image there is only one neighbour to differ from; the corner has none.
    """
    found = np.zeros_like(masks)
    found[:, :, :-1] |= masks[:, :, :-1] ^ masks[:, :, 1:]
    found[:, :-1, :] |= masks[:, :-1, :] ^ masks[:, 1:, :]
    found[:, :-1, :-1] |= masks[:, :-1, :-1] ^ masks[:, 1:, 1:]
    return found


def accuracy(truth: Masks, prediction: Masks, convention: Convention = "0/1") -> Scores:
    """A of ReVOS: share of pixels that are equal.

    Convention "0/255" gives what the released script computes: its predictions are 0 and 255, its truth 0 and 1, so
    only background can ever be equal.
    """
    truth, prediction = _checked(truth, prediction, None)
    equal = ~(truth | prediction) if _known(convention) == "0/255" else truth == prediction
    return np.asarray(equal.mean(axis=(1, 2)), dtype=np.float64)


def robustness(truth: Masks, prediction: Masks, foreground: Masks, convention: Convention = "0/1") -> Scores:
    """R of ReVOS: 1 - wrongly set pixels / pixels of all annotated objects, not below 0.

    Convention "0/255" is the released script's: each wrongly set pixel counts 255 times, so R is 1 where nothing is
    wrongly set and near 0 elsewhere.

    Args:
        truth: (T, H, W) bool.
        prediction: (T, H, W) bool.
        foreground: (T, H, W) bool, the union of all objects annotated in the video.
        convention: of the predictions' pixels.
    """
    truth, prediction = _checked(truth, prediction, None)
    if foreground.shape != truth.shape:
        raise SettingError(f"the foreground is {foreground.shape}, the truth {truth.shape}; wanted one shape")
    wrong = _counts(prediction & ~truth) * (255 if _known(convention) == "0/255" else 1)
    scores: Scores = np.maximum(0.0, 1.0 - wrong / (_counts(foreground) + _EPSILON))
    return scores


@dataclass(frozen=True)
class NoTarget:
    """How well a model says "it is not there".

    Attributes:
        n_acc: share of the expressions without a target for which nothing was drawn; None when there are none.
        t_acc: share of the expressions with a target for which something was drawn; None when there are none.
        no_target: expressions without a target.
        target: expressions with one.
    """

    n_acc: float | None
    t_acc: float | None
    no_target: int
    target: int


def no_target_accuracy(expressions: Iterable[tuple[bool, bool | None]]) -> NoTarget:
    """N-acc and T-acc.

    Args:
        expressions: for each, whether there is a target on any frame, and whether anything was drawn on any frame;
            None where there is no prediction, which is wrong either way.
    """
    counts, right = {True: 0, False: 0}, {True: 0, False: 0}
    for target, drawn in expressions:
        counts[target] += 1
        right[target] += drawn is target
    shares = {kind: right[kind] / counts[kind] if counts[kind] else None for kind in counts}
    return NoTarget(shares[False], shares[True], counts[False], counts[True])


def assign(values: NDArray[np.float64]) -> list[int]:
    """For each row the column it gets, all different, so that the sum of values is the greatest.

    The Hungarian method with potentials, O(rows^2 x columns).

    Args:
        values: (rows, columns), not more rows than columns.
    """
    rows, columns = values.shape
    if rows > columns:
        raise SettingError(f"{rows} rows cannot each get one of {columns} columns; add columns of zeros")
    cost = -values
    row_price, column_price = np.zeros(rows), np.zeros(columns + 1)
    owner = np.full(columns + 1, -1)  # the last column stands for "none yet"
    for row in range(rows):
        owner[columns], here = row, columns
        slack, came_from = np.full(columns, np.inf), np.full(columns, columns)
        visited = np.zeros(columns + 1, dtype=bool)
        while owner[here] >= 0:
            visited[here] = True
            reduced = cost[owner[here]] - row_price[owner[here]] - column_price[:columns]
            better = ~visited[:columns] & (reduced < slack)
            slack[better], came_from[better] = reduced[better], here
            following = int(np.argmin(np.where(visited[:columns], np.inf, slack)))
            step = slack[following]
            row_price[owner[visited]] += step
            column_price[visited] -= step
            slack[~visited[:columns]] -= step
            here = following
        while here != columns:
            owner[here], here = owner[came_from[here]], came_from[here]
    found = {int(owner[column]): column for column in range(columns) if owner[column] >= 0}
    return [found[row] for row in range(rows)]


def _checked(truth: Masks, prediction: Masks, void: Masks | None) -> tuple[Masks, Masks]:
    for name, masks in (("truth", truth), ("prediction", prediction), ("void", void)):
        if masks is None:
            continue
        if masks.ndim != 3 or masks.dtype != np.bool_ or masks.shape != truth.shape:
            raise SettingError(
                f"the {name} is {masks.dtype} of shape {masks.shape}; wanted bool of (frames, height, width)"
                + (f" = {truth.shape}, as the truth" if truth.ndim == 3 else "")
            )
    return (truth, prediction) if void is None else (truth & ~void, prediction & ~void)


def _known(convention: str) -> str:
    if convention not in {"0/1", "0/255"}:
        raise SettingError(f"unknown convention {convention!r}; wanted '0/1' or '0/255'")
    return convention


def _counts(masks: Masks) -> NDArray[np.int64]:
    """Pixels set in each; one frame at a time is ten times as fast as with an axis."""
    return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)


def _boundary_f(truth: Masks, prediction: Masks, radius: int) -> float:
    """F of two (H, W) masks."""
    # Only the surroundings of the masks are looked at: objects are small, and widening by a disk is slow work.
    either = truth | prediction
    rows, columns = (np.flatnonzero(either.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 1.0
    window = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    true, predicted = boundaries(np.stack([truth[window], prediction[window]]))
    in_truth, in_prediction = int(np.count_nonzero(true)), int(np.count_nonzero(predicted))
    if not in_truth or not in_prediction:
        return float(in_truth == in_prediction)
    precision = np.count_nonzero(predicted & _widened(true, radius)) / in_prediction
    recall = np.count_nonzero(true & _widened(predicted, radius)) / in_truth
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _widened(boundary: Masks, radius: int) -> Masks:
    image = np.ascontiguousarray(boundary).view(np.uint8)
    widened: Any = cv2.dilate(image, _disk(radius), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(widened, dtype=bool)


@cache
def _disk(radius: int) -> NDArray[np.uint8]:
    squares = np.arange(-radius, radius + 1) ** 2
    return np.asarray(np.add.outer(squares, squares) <= radius * radius, dtype=np.uint8)
