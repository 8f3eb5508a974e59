"""Scores against the recorded ones, to 1e-9, and what must hold for any masks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from glus import metrics
from glus.errors import SettingError

DATA = Path(__file__).parents[1] / "data" / "metrics"
EXPECTED = json.loads((DATA / "expected.json").read_text())


def unpacked(name: str, shape: tuple[int, int, int]) -> np.ndarray:
    with np.load(DATA / "masks.npz") as file:
        bits = np.unpackbits(file[name], axis=1)[:, : shape[1] * shape[2]]
    return bits.reshape(shape).astype(bool)


@pytest.fixture(
    params=range(len(EXPECTED["functions"])), ids=lambda n: "x".join(map(str, EXPECTED["functions"][n]["shape"]))
)
def case(request):
    recorded = EXPECTED["functions"][request.param]
    masks = [unpacked(f"{name}_{request.param}", recorded["shape"]) for name in ("gt", "pred", "void")]
    return recorded, *masks


def same(found, wanted) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def test_j_and_f_equal_the_recording(case):
    recorded, truth, prediction, void = case
    j, f = metrics.region_similarity(truth, prediction), metrics.boundary_accuracy(truth, prediction)
    same(j, recorded["J"])
    same(f, recorded["F"])
    same([j.mean(), f.mean(), (j.mean() + f.mean()) / 2], [recorded["J_mean"], recorded["F_mean"], recorded["JF"]])
    same(metrics.region_similarity(truth, prediction, void), recorded["J_void"])
    same(metrics.boundary_accuracy(truth, prediction, void), recorded["F_void"])
    same(metrics.boundary_accuracy(truth, prediction, bound=3), recorded["F_bound3"])


def test_accuracy_and_robustness_equal_the_recording(case):
    recorded, truth, prediction, _ = case
    everything = np.ones_like(truth)
    for convention, name in (("0/1", "01"), ("0/255", "0255")):
        same(metrics.accuracy(truth, prediction, convention), recorded[f"accuracy_{name}"])
        same(metrics.robustness(truth, prediction, everything, convention), recorded[f"robustness_{name}"])


def test_a_frame_scores_the_same_alone():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 5, 20, 31)) > 0.7
    together = metrics.boundary_accuracy(truth, prediction)
    same(together, [metrics.boundary_accuracy(truth[t : t + 1], prediction[t : t + 1])[0] for t in range(5)])
    same(metrics.boundary_accuracy(prediction, truth), together)
    same(metrics.boundary_accuracy(truth, truth), np.ones(5))


def test_a_mask_that_fills_the_image_has_no_boundary():
    full, empty = np.ones((1, 8, 9), bool), np.zeros((1, 8, 9), bool)
    assert metrics.boundary_accuracy(full, full) == 1
    assert metrics.boundary_accuracy(full, empty) == 1  # neither has a boundary ...
    assert metrics.region_similarity(full, empty) == 0  # ... which is why J goes with it


def test_one_boundary_alone_scores_nothing():
    empty, dot = np.zeros((2, 1, 9, 9), bool)
    dot[0, 4, 4] = True
    assert metrics.boundary_accuracy(empty, dot) == metrics.boundary_accuracy(dot, empty) == 0


def test_no_target_accuracy():
    told = metrics.no_target_accuracy(
        [(False, False), (False, True), (False, None), (True, True), (True, None), (True, True), (True, False)]
    )
    assert (told.n_acc, told.t_acc, told.no_target, told.target) == (1 / 3, 0.5, 3, 4)
    assert metrics.no_target_accuracy([(True, True)]).n_acc is None


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 5), (4, 4)])
def test_assignment_is_the_best_of_all(shape):
    rng = np.random.default_rng(sum(shape))
    for _ in range(20):
        values = np.round(rng.random(shape), 1)  # with ties
        chosen = metrics.assign(values)
        assert len(set(chosen)) == shape[0]
        best = max(
            sum(values[row, column] for row, column in enumerate(order))
            for order in itertools.permutations(range(shape[1]), shape[0])
        )
        assert sum(values[row, column] for row, column in enumerate(chosen)) == pytest.approx(best)


def test_what_does_not_fit_is_refused():
    masks = np.zeros((2, 4, 4), bool)
    with pytest.raises(SettingError, match=r"prediction is bool of shape \(2, 4, 5\)"):
        metrics.region_similarity(masks, np.zeros((2, 4, 5), bool))
    with pytest.raises(SettingError, match="uint8"):
        metrics.boundary_accuracy(masks.astype(np.uint8), masks)
    with pytest.raises(SettingError, match="'0/1' or '0/255'"):
        metrics.accuracy(masks, masks, "0-1")
    with pytest.raises(SettingError, match="foreground"):
        metrics.robustness(masks, masks, masks[:1])
    with pytest.raises(SettingError, match="columns of zeros"):
        metrics.assign(np.zeros((3, 2)))


@pytest.mark.parametrize("corner", [(0, 0), (0, 25), (14, 0), (14, 25), (7, 11)])
def test_looking_only_around_the_masks_changes_nothing(corner):
    """Masks at each edge of the image, against boundary maps of whole pictures widened pixel by pixel."""
    rng = np.random.default_rng(3)
    y, x = corner
    truth, prediction = np.zeros((2, 1, 20, 31), bool)
    truth[0, y : y + 6, x : x + 6] = rng.random((6, 6)) > 0.3
    prediction[0, y : y + 6, x : x + 6] = rng.random((6, 6)) > 0.3
    radius = 1  # ceil(0.008 x 36.9)
    maps = [np.argwhere(metrics.boundaries(mask)[0]) for mask in (truth, prediction)]
    near = (((maps[0][:, None] - maps[1][None]) ** 2).sum(axis=2) <= radius**2).any
    recall, precision = near(axis=1).mean(), near(axis=0).mean()
    same(metrics.boundary_accuracy(truth, prediction), 2 * precision * recall / (precision + recall))
