"""Score a model on generated clips, with their phrases or with swapped ones. Knows the generator; not data set folders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import glus
from glus import metrics
from glus.errors import SettingError
from glus.masks import BoolMask
from glus.predicting import EXPRESSIONS_A_PASS, FORMAT, Progress, Report, model_record
from glus.scoring import ExpressionScore, categories, jf, listed, mean, no_target, plain

if TYPE_CHECKING:
    from glus.modeling.glus import Glus


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
    counted = plain(lines)
    return {
        "format": FORMAT,
        "dataset": "synthetic",
        "split": split,
        "protocol": protocol,
        **jf(counted["J"], counted["F"]),
        "expressions": len(lines),
        "frames": sum(line.frames for line in lines),
        "missing": {"count": 0, "list": []},
        "protocols": {protocol: counted},
        "categories": categories(lines),
        "templates": {
            title: _template_scores([line for line, out in zip(lines, held_out, strict=True) if out is which])
            for title, which in (("seen", False), ("held out", True))
        },
        "no_target": no_target(lines),
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
        "per_expression": listed(lines),
    }


def _template_scores(lines: Sequence[ExpressionScore]) -> dict[str, Any]:
    if not lines:
        return {"j": None, "f": None, "j_and_f": None, "expressions": 0}
    return {**jf(mean(line.j for line in lines), mean(line.f for line in lines)), "expressions": len(lines)}


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
