"""The built-in model reads phrases: right ones score, swapped ones do not, and masks follow the phrase."""

from __future__ import annotations

import numpy as np
import pytest

import glus
from glus.datasets.synthetic import make_clip
from glus.metrics import boundary_accuracy, region_similarity


@pytest.fixture(scope="module")
def tiny():
    return glus.load("glus-tiny", device="cpu")


def truth_of(clip, phrase):
    return clip.masks[list(phrase.objects)].any(0) if phrase.objects else np.zeros_like(clip.masks[0])


def j_and_f(truth, masks):
    return (region_similarity(truth, masks).mean() + boundary_accuracy(truth, masks).mean()) / 2


def segment(model, clip, texts):
    masks = np.zeros((len(texts), *clip.masks.shape[1:]), bool)
    for m in glus.segment(model, list(clip.frames), texts):
        masks[m.expression_index, m.frame_index] = m.mask
    return masks


def test_right_phrases_score_and_swapped_ones_do_not(tiny):
    right, swapped = [], []
    for seed in range(20):
        clip = make_clip(seed, frames=8)
        phrase = next(p for p in clip.phrases if p.partner is not None and p.objects)
        partner = clip.phrases[phrase.partner]
        own, other = segment(tiny, clip, [phrase.text, partner.text])
        truth = truth_of(clip, phrase)
        right.append(j_and_f(truth, own))
        if not set(partner.objects) & set(phrase.objects):
            swapped.append(j_and_f(truth, other))
    assert np.mean(right) >= 0.7
    assert len(swapped) >= 10
    assert np.mean(swapped) <= 0.45


def test_the_demo_clip_follows_its_phrases(tiny, tmp_path):
    from glus.demo import write_clip

    write_clip(tmp_path / "clip.mp4")
    asked = ["the clock that goes down", "the clock that moves up", "the fish", "the horse"]
    heights = {text: [] for text in asked}
    for m in glus.segment(tiny, tmp_path / "clip.mp4", asked):
        rows = np.nonzero(m.mask)[0]
        heights[asked[m.expression_index]].append(rows.mean() if len(rows) else None)
    down, up, fish, absent = (heights[text] for text in asked)
    middles = [h for h in down if h is not None]
    assert middles[-1] > middles[0] + 60  # y grows downwards
    middles = [h for h in up if h is not None]
    assert middles[-1] < middles[0] - 60
    assert sum(h is not None for h in fish) == 36
    assert sum(h is None for h in absent) >= 24


def test_it_is_small_and_says_what_it_is():
    from glus.checkpoints import find

    folder = find("glus-tiny")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "demonstration" in card
