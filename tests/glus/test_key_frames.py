"""Key frames: score files good and bad, and the choice by the model's own confidence."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from glus import key_frames
from glus.config import GlusConfig
from glus.errors import PromptError, SettingError, VideoError
from glus.key_frames import choose, look_up, read_scores, spread
from glus.streaming import VideoSession


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import glus
    from glus.miniature import write_miniature

    folder = tmp_path_factory.mktemp("key") / "glus-64"
    return glus.load(write_miniature(folder, GlusConfig.tiny(image_size=64)))


@pytest.fixture
def surest(monkeypatch):
    """Function that makes the model sure on some frames (told by brightness), listing what it was asked."""
    step = VideoSession.step

    def install(scores):
        asked = []

        def scored(session, frame):
            number = int(frame[0, 0, 0])
            asked.append((number, session.steps_done, session.memories))
            masks = step(session, frame)
            return [
                dataclasses.replace(mask, score=scores.get((number, mask.expression_index), scores.get(number, 0.1)))
                for mask in masks
            ]

        monkeypatch.setattr(VideoSession, "step", scored)
        return asked

    return install


def clip(length):
    return [np.full((16, 20, 3), number, np.uint8) for number in range(length)]


@pytest.mark.parametrize("frame", [0, 11, 12, 16, 19])
def test_the_surest_frame_is_chosen(model, surest, frame):
    asked = surest({frame: 0.9})
    assert choose(model, clip(20), "the dog", candidates=[0, 11, 12, 16, 19]) == frame
    # each by itself: nothing of the frame before is seen or remembered
    assert asked == [(number, 0, 0) for number in (0, 11, 12, 16, 19)]


def test_by_default_frames_over_the_whole_clip_are_tried(model, surest):
    asked = surest({28: 0.8})
    assert choose(model, clip(50), "the dog") == 28
    assert [number for number, _, _ in asked] == spread(50) == [0, 7, 14, 21, 28, 35, 42, 49]


def test_a_sure_frame_that_is_no_candidate_is_not_found(model, surest):
    surest({10: 0.9, 3: 0.5})
    assert choose(model, clip(20), "the dog", candidates=[2, 3]) == 3


def test_the_first_of_equals_wins(model, surest):
    surest({4: 0.7, 9: 0.7})
    assert choose(model, clip(12), "the dog", candidates=[9, 1, 4]) == 9


def test_several_expressions_count_together(model, surest):
    surest({(2, 0): 0.9, (2, 1): 0.0, (5, 0): 0.5, (5, 1): 0.6})
    assert choose(model, clip(8), ["the dog", "the cat"]) == 5
    surest({(2, 0): 0.9, (5, 0): 0.5})
    assert choose(model, clip(8), "the dog") == 2


def test_choosing_without_help_is_the_arg_max_of_what_the_frames_score_alone(model):
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 255, (16, 20, 3), dtype=np.uint8) for _ in range(5)]
    scores = []
    for frame in frames:
        session = VideoSession(model, "the dog", [frames[i] for i in (0, 1, 2, 4)], memory=False)
        scores.append(session.step(frame)[0].score)
    assert len(set(scores)) == 5
    assert choose(model, frames, "the dog") == int(np.argmax(scores))


def test_a_clip_of_one_frame(model):
    assert choose(model, clip(1), "the dog") == 0


@pytest.mark.parametrize("candidates", [[8], [-1], [0, 3, 100], []])
def test_candidates_outside_the_clip(model, candidates):
    with pytest.raises(SettingError, match="which has frames 0 to 7"):
        choose(model, clip(8), "the dog", candidates=candidates)


def test_what_cannot_be_asked_or_read(model):
    with pytest.raises(PromptError):
        choose(model, clip(3), "")
    with pytest.raises(VideoError):
        choose(model, [], "the dog")


# ---- spread ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "count", "frames"),
    [
        (1, 8, [0]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (100, 4, [0, 33, 66, 99]),
        (100, 2, [0, 99]),
        (100, 1, [0]),
    ],
)
def test_spread(length, count, frames):
    assert spread(length, count) == frames


def test_spread_has_both_ends_and_no_frame_twice():
    for length in range(1, 200):
        for count in (2, 3, 8):
            frames = spread(length, count)
            assert len(frames) == min(length, count)
            assert frames == sorted(set(frames))
            assert (frames[0], frames[-1]) == (0, length - 1)


# ---- score files ----------------------------------------------------------------------------------------------------


def test_a_score_file_and_looking_up(tmp_path):
    path = tmp_path / "kfs.json"
    path.write_text(json.dumps({"0b2ae9a5_0": 12, "dogs_run_3": 0, "7_1": 5}))
    scores = read_scores(path)
    assert read_scores(str(path)) == scores
    assert look_up(scores, "0b2ae9a5", "0") == look_up(scores, "0b2ae9a5", 0) == 12  # ids are numbers in some sets
    assert look_up(scores, "dogs_run", 3) == 0
    assert look_up(scores, 7, 1) == 5
    assert look_up(scores, "dogs", 3) is None
    assert look_up(scores, "0b2ae9a5", "1") is None


def test_an_empty_score_file(tmp_path):
    (tmp_path / "kfs.json").write_text("{}")
    assert read_scores(tmp_path / "kfs.json") == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{'a_0': 1}", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds list"),
        (b"null", "holds NoneType"),
        (b'{"a_0": 1, "b_0": "12"}', "'b_0' has '12'"),
        (b'{"b_0": 1.5}', "'b_0' has 1.5"),
        (b'{"b_0": -1}', "'b_0' has -1"),
        (b'{"b_0": true}', "'b_0' has True"),
        (b'{"b_0": null}', "'b_0' has None"),
        (b'{"b_0": [3]}', r"'b_0' has \[3\]"),
    ],
)
def test_bad_score_files(tmp_path, content, says):
    path = tmp_path / "kfs.json"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=says) as caught:
        read_scores(path)
    assert str(path) in str(caught.value)


def test_no_score_file(tmp_path):
    for place in (tmp_path, tmp_path / "kfs.json"):
        with pytest.raises(SettingError, match="no key frame file"):
            key_frames.read_scores(place)
