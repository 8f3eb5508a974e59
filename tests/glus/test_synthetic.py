"""Synthetic clips: masks against a slow painter, phrases against masks, what is held out, and the MeViS folder."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from glus.datasets import synthetic
from glus.datasets.phrases import (
    HELD_OUT_SHARE,
    KINDS,
    THINGS,
    all_phrases,
    facts_of,
    meanings,
    vocabulary,
    wordings,
)
from glus.datasets.scenes import STYLES, Background, Camera, ClipSpec, Course, ObjectSpec, render, tracks
from glus.datasets.sprites import CONTENT, TILE, hue_matrix, load_sprites
from glus.datasets.synthetic import (
    MOTIONS,
    Mix,
    clip_rng,
    contact_sheet,
    make_clip,
    sample_clip,
    sample_phrases,
    write_mevis,
)
from glus.errors import SettingError
from glus.masks import decode_rle

SHEET = load_sprites()
NAMES = [s.name for s in SHEET.items]


def named(name: str) -> int:
    return NAMES.index(name)


# --- pictures and masks ---------------------------------------------------------------------------------------------


def paint_slowly(spec: ClipSpec, t: float, size: tuple[int, int]):
    """One pixel after the other, straight from the description of a scene."""
    height, width = size
    empty = replace(spec, objects=())
    picture = render([empty], [t], size, dtype=torch.float32).frames[0, 0].permute(1, 2, 0).double().numpy()
    owner = np.full(size, -1)
    edge = np.zeros(size, bool)  # too close to half covered for rounding to matter
    x, y, extent, angle = (track[:, 0] for track in tracks(spec, [t]))
    for n, o in enumerate(spec.objects):
        tile = SHEET.pixels[o.sprite].astype(int)
        for _ in range(round(min(2, max(0, math.log2(CONTENT / (o.size * width)) - 0.1)))):
            tile = (tile.reshape(len(tile) // 2, 2, len(tile) // 2, 2, 4).sum((1, 3)) + 2) // 4
        side, tile = len(tile), tile / 255
        painted = SHEET[o.sprite].paints[o.paint] if o.paint else None
        matrix = hue_matrix(o.hue, o.gain)
        if painted:
            matrix = hue_matrix(o.hue + painted.angle, o.gain * painted.gain, painted.chroma)
        for j in range(height):
            for i in range(width):
                right = (i + 0.5) / width - x[n]
                down = ((j + 0.5) / height - y[n]) * height / width
                u = right * math.cos(angle[n]) + down * math.sin(angle[n])
                v = down * math.cos(angle[n]) - right * math.sin(angle[n])
                u = -u if o.flip else u
                u, v = (side * (0.5 + CONTENT / TILE * w / extent[n]) - 0.5 for w in (u, v))
                if not (0 <= u <= side - 1 and 0 <= v <= side - 1):
                    continue
                a, b = min(int(u), side - 2), min(int(v), side - 2)
                p, q = u - a, v - b
                corners = [tile[b, a], tile[b, a + 1], tile[b + 1, a], tile[b + 1, a + 1]]
                colours = [np.append(np.clip(matrix @ c[:3], 0, c[3]), c[3]) for c in corners]
                weights = ((1 - p) * (1 - q), p * (1 - q), (1 - p) * q, p * q)
                texel = sum(w * c for w, c in zip(weights, colours, strict=True))
                picture[j, i] = picture[j, i] * (1 - texel[3]) + texel[:3]
                edge[j, i] |= abs(texel[3] - 0.5) < 2e-3
                if texel[3] >= 0.5:
                    owner[j, i] = n
    return picture, owner, edge


@pytest.mark.parametrize(("seed", "t", "size"), [(0, 0.0, (48, 48)), (1, 0.37, (40, 64)), (2, 1.0, (72, 44))])
def test_masks_and_frames_equal_a_slow_painter(seed, t, size):
    spec = sample_clip(clip_rng("test", seed), kind=("colour", "motion", "relation")[seed], aspect=size[0] / size[1])
    drawn = render([spec], [t], size, dtype=torch.float32)
    picture, owner, edge = paint_slowly(spec, t, size)
    masks = drawn.masks[0, :, 0].numpy()
    assert masks.any()
    for n, mask in enumerate(masks):
        np.testing.assert_array_equal(mask[~edge], (owner == n)[~edge])
    assert edge.mean() < 0.01
    assert np.abs(drawn.frames[0, 0].permute(1, 2, 0).numpy() - picture).max() < 2e-3


def test_masks_are_disjoint_and_frames_are_bytes():
    clip = make_clip(3, kind="multiple")
    assert clip.frames.shape == (24, 256, 256, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.masks.shape == (len(clip.spec.objects), 24, 256, 256)
    assert clip.masks.sum(0).max() == 1
    assert clip.masks.any((1, 2, 3)).all()


def test_what_is_in_front_covers_and_what_is_outside_is_not_seen():
    big = ObjectSpec(named("basketball"), 0.6, 0.5, 0.5)
    behind = ObjectSpec(named("apple"), 0.2, 0.5, 0.5)
    outside = ObjectSpec(named("cat"), 0.2, -0.4, 0.5)
    spec = ClipSpec((behind, outside, big))
    masks = render([spec, ClipSpec((big, outside, behind))], [0.5], (64, 64)).masks[:, :, 0]
    assert masks[0].any((1, 2)).tolist() == [False, False, True]
    assert masks[1].any((1, 2)).tolist() == [True, False, True]
    assert (masks[0, 2] == (masks[1, 0] | masks[1, 2])).all()
    assert facts_of(spec).hidden.tolist() == [True, False, False]
    assert not any(0 in p.objects for p in all_phrases(spec))


def test_a_clip_does_not_depend_on_its_batch_or_on_the_order_of_instants():
    specs = [sample_clip(clip_rng("test", seed)) for seed in range(5)]
    times = np.array([[0.9, 0.1, 0.33], [0.2, 0.5, 0.8], [0.0, 1.0, 0.5], [0.7, 0.6, 0.1], [0.3, 0.2, 0.1]])
    together = render(specs, times, (48, 56))
    for b, spec in enumerate(specs):
        alone = render([spec], times[b, ::-1], (48, 56))
        count = len(spec.objects)
        assert together.present[b].tolist() == [n < count for n in range(together.present.shape[1])]
        assert torch.equal(together.masks[b, :count], alone.masks[0].flip(1))
        assert not together.masks[b, count:].any()
        assert (together.frames[b].int() - alone.frames[0].flip(0).int()).abs().max() <= 1


def test_the_same_seed_makes_the_same_clip_and_purposes_never_meet():
    one, two = make_clip(11, frames=4, size=(64, 64)), make_clip(11, frames=4, size=(64, 64))
    np.testing.assert_array_equal(one.frames, two.frames)
    np.testing.assert_array_equal(one.masks, two.masks)
    assert (one.phrases, one.spec) == (two.phrases, two.spec)
    specs = {sample_clip(clip_rng(purpose, seed)) for purpose in ("train", "validation", "test") for seed in range(20)}
    assert len(specs) == 60
    before = np.random.get_state()[1].copy()
    sample_clip(clip_rng("test", 1))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.gpu
def test_cpu_and_gpu_agree():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    specs = [sample_clip(clip_rng("test", seed)) for seed in range(16)]
    times = np.linspace(0, 1, 6)
    cpu, gpu = render(specs, times, (96, 96)), render(specs, times, (96, 96), "cuda")
    assert (cpu.frames.int() - gpu.frames.cpu().int()).abs().float().mean() < 0.02
    assert (cpu.masks != gpu.masks.cpu()).float().mean() < 1e-5


def test_the_camera_moves_background_and_objects_together():
    ground = Background("checks", 5, ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0, 0, 0)), 0.0, pitch=0.4, period=0.3)
    o = ObjectSpec(named("basketball"), 0.2, 0.5, 0.5)
    spec = ClipSpec((o,), ground, Camera(pan_x=0.2, pan_y=-0.1))
    drawn = render([spec], [0.0, 0.5, 1.0], (120, 120), dtype=torch.float32)
    frames = drawn.frames[0]
    moved = torch.roll(frames[1], (-6, 12), (1, 2))  # half the pan: 0.1 of 120 pixels to the right, 0.05 up
    inner = (slice(None), slice(20, 100), slice(20, 100))
    assert (frames[0][inner] - torch.roll(frames[1], (-6, 12), (1, 2))[inner]).abs().mean() < 0.01
    assert (frames[0][inner] - torch.roll(frames[1], (6, -12), (1, 2))[inner]).abs().mean() > 0.05
    assert torch.equal(drawn.masks[0, 0, 0], torch.roll(drawn.masks[0, 0, 1], (-6, 12), (0, 1)))
    assert moved.shape == frames[0].shape


def test_every_background_style_draws_and_an_unknown_one_is_named():
    photographs = torch.randint(0, 255, (2, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    for style in (*STYLES, "photograph"):
        spec = ClipSpec((), Background(style, 3, photograph=1))
        seen.append(render([spec], [0.2], (32, 48), photographs=photographs).frames)
        assert seen[-1].shape == (1, 1, 3, 32, 48)
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    with pytest.raises(SettingError, match="no photographs"):
        render([spec], [0.2], (32, 48))
    with pytest.raises(SettingError, match="velvet"):
        render([ClipSpec((), Background("velvet"))], [0.2], (32, 48))


# --- sprites --------------------------------------------------------------------------------------------------------


def test_names_are_unique_plain_and_split_by_hash():
    plurals = [s.plural for s in SHEET.items]
    assert len(set(NAMES)) == len(NAMES) >= 500
    assert len(set(plurals)) == len(plurals)
    assert all(re.fullmatch(r"[a-z]+( [a-z]+){0,2}", text) for text in NAMES + plurals)
    assert set(SHEET.train) | set(SHEET.novel) == set(range(len(SHEET)))
    assert not set(SHEET.train) & set(SHEET.novel)
    assert 0.15 < len(SHEET.novel) / len(SHEET) < 0.28
    assert [NAMES[i] for i in SHEET.train[:4]] == ["dog", "cat", "car", "cup"]
    assert (SHEET.folder / "LICENSE").exists()
    assert sum(f.stat().st_size for f in SHEET.folder.iterdir()) < 6e6


def test_tiles_have_transparent_borders_at_every_level():
    for left, top, side in ((0, 0, 96), (96, 0, 48), (96, 48, 24)):
        level = SHEET.atlas[:, :, top : top + side, left : left + side]
        for border in (level[..., 0, :], level[..., -1, :], level[..., :, 0], level[..., :, -1]):
            assert border.max() == 0
        assert (level[:, 3].max((1, 2)) > 200).all()
    assert (SHEET.atlas[:, :3] <= SHEET.atlas[:, 3:]).all()


# --- truth of phrases, from pixels ----------------------------------------------------------------------------------

FRAMES = 25
SIDE = 64


class Seen:
    """What can be measured on rendered masks of a clip; each object also drawn alone."""

    def __init__(self, spec: ClipSpec, masks: np.ndarray, alone: list[np.ndarray], frames: list[np.ndarray]):
        self.spec, self.masks, self.alone, self.frames = spec, masks, alone, frames
        self.names = [NAMES[o.sprite] for o in spec.objects]
        self.tall = alone[0].shape[1] / alone[0].shape[2]
        across, down = ((np.arange(n) + 0.5) / n for n in (alone[0].shape[2], alone[0].shape[1]))
        self.x, self.y, self.area, self.cut = [], [], [], []
        for mask in alone:
            area = mask.sum((1, 2))
            with np.errstate(invalid="ignore"):
                self.x.append((mask.sum(1) * across).sum(1) / area)
                self.y.append((mask.sum(2) * down).sum(1) / area)
            self.area.append(area)
            self.cut.append(mask[:, [0, -1]].any((1, 2)) | mask[:, :, [0, -1]].any((1, 2)) | (area == 0))

    def way(self, n):
        """Places, in widths, over the frames in which most of the object is seen."""
        keep = self.area[n] > 0.5 * self.area[n].max()
        return np.stack([self.x[n][keep], self.tall * self.y[n][keep]], 1), np.linspace(0, 1, FRAMES)[keep]

    def far(self, n):
        way, _ = self.way(n)
        return np.hypot(*(way - way[0]).T)

    def heads(self, n, axis, sign):
        way, _ = self.way(n)
        step = way[-1] - way[0]
        return sign * step[axis] > 0.08 * self.tall and abs(step[axis]) > abs(step[1 - axis]) and not self.turns(n)

    def moving(self, n):
        return self.far(n).max() > 0.09 * self.tall

    def turns(self, n):
        far = self.far(n)
        return far.max() > 0.1 * self.tall and far[-1] < 0.6 * far.max()

    def busy(self, n):
        """First and last instant of motion, also where it is cut by the border."""
        keep = self.area[n] > 0
        way, times = np.stack([self.x[n][keep], self.tall * self.y[n][keep]], 1), np.linspace(0, 1, FRAMES)[keep]
        speed = np.hypot(*np.diff(way, axis=0).T)
        on = np.nonzero(speed > 0.35 * speed.max())[0]
        return times[on[0]], times[on[-1] + 1]

    def side(self, n, axis, sign):
        place = (self.x, self.y)[axis][n]
        return bool((sign * (place[np.isfinite(place)] - 0.5) > 0).all())

    def share(self, n, colour):
        """Share of an object's own pixels that may be called a colour, by generous ranges."""
        pixels = self.frames[n][FRAMES // 2][:, self.alone[n][FRAMES // 2]].T
        if not len(pixels):
            pixels = np.concatenate([f[:, m].T for f, m in zip(self.frames[n], self.alone[n], strict=True)])
        hue, saturation, value = cv2.cvtColor(np.ascontiguousarray(pixels)[None], cv2.COLOR_RGB2HSV)[0].astype(int).T
        hue = 2 * hue
        vivid = (saturation > 60) & (value > 60)
        ranges = {
            "red": (325, 380), "orange": (8, 45), "yellow": (36, 72), "green": (70, 172), "blue": (182, 256),
            "purple": (246, 300), "pink": (290, 372),
        }  # fmt: skip
        if colour == "red":  # what is dull is brown
            vivid &= saturation > 125
        if colour == "pink":  # towards red only what is pale
            vivid &= ((hue > 180) & (hue < 336)) | ((saturation < 150) & (value > 170))
        if colour in ranges:
            low, high = ranges[colour]
            return (vivid & ((hue - low) % 360 <= high - low)).mean()
        return {
            "black": value < 100,
            "white": (saturation < 60) & (value > 190),
            "grey": (saturation < 60) & (value > 60) & (value < 220),
            "brown": (value < 200) & (saturation > 40) & ((hue < 50) | (hue > 345)),
        }[colour].mean()

    def is_(self, n, name, rest):
        """Whether object n has a property, among itself and `rest`."""
        if name in ("left", "right", "up", "down"):
            return self.heads(n, int(name in ("up", "down")), 1 if name in ("right", "down") else -1)
        if name in ("moving", "turns"):
            return getattr(self, name)(n)
        if name == "still":
            return not self.moving(n)
        if name == "straight":
            return self.moving(n) and not self.turns(n)
        if name == "leaves":
            return self.area[n][-1] == 0 and self.area[n][0] > 0
        if name == "enters":
            return self.area[n][0] == 0 and self.area[n][-1] > 0
        if name in ("stops", "late", "first", "last"):
            if not self.moving(n) or self.turns(n) or self.area[n][-1] == 0:
                return False
            start, stop = self.busy(n)
            return start < 0.15 and stop < 0.8 if name in ("stops", "first") else start > 0.22 and stop > 0.85
        if name in ("faster", "slower"):
            mine, other = self.far(n).max(), self.far(rest[0]).max()
            return mine > 1.4 * other if name == "faster" else other > 1.4 * mine
        if name in ("overtakes", "overtaken"):
            both = ~self.cut[n] & ~self.cut[rest[0]]
            places = [np.stack([self.x[m], self.y[m]], 1)[both] for m in (n, rest[0])]
            way = places[0][-1] - places[0][0] + places[1][-1] - places[1][0]
            lead = (places[0] - places[1]) @ way
            return (lead[0] < 0 < lead[-1]) if name == "overtakes" else (lead[-1] < 0 < lead[0])
        raise AssertionError(name)

    def place_is(self, n, name, rest):
        sides = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
        if name == "centre":
            off = np.maximum(np.abs(self.x[n] - 0.5), np.abs(self.y[n] - 0.5))
            return off.max() < 0.17
        if name.endswith("most"):
            axis, sign = sides[name.removesuffix("most")]
            places = (self.x, self.y)[axis]
            return all((sign * (places[n] - places[m]) > 0).all() for m in rest)
        return all(self.side(n, *sides[part]) for part in name.split("_"))

    def size_is(self, n, name, rest):
        out = []
        for m in rest:
            both = ~self.cut[n] & ~self.cut[m]
            both = both if both.any() else (self.area[n] > 0) & (self.area[m] > 0)
            ratio = self.area[n][both] / self.area[m][both]
            out.append((ratio > 1.2).all() if name in ("bigger", "biggest") else (ratio < 1 / 1.2).all())
        return all(out)

    def gap(self, n, m):
        """Distance between two outlines, each frame, in widths."""
        gaps = []
        for a, b in zip(self.alone[n], self.alone[m], strict=True):
            if a.any() and b.any():
                gaps.append(cv2.distanceTransform((~b).astype(np.uint8), cv2.DIST_L2, 5)[a].min() / SIDE)
        return np.array(gaps)

    def relation_is(self, n, name, anchor):
        dx, dy = self.x[n] - self.x[anchor], self.y[n] - self.y[anchor]
        return bool(({"left": -dx, "right": dx, "above": -dy, "below": dy}[name] > 0).all())


def look_at(specs: list[ClipSpec]) -> list[Seen]:
    """Draw clips together with each of their objects alone."""
    times = np.linspace(0, 1, FRAMES)
    plain = Background("gradient", 0, ((0.5, 0.5, 0.5),) * 3, 0.0)
    single = [ClipSpec((o,), plain, s.camera) for s in specs for o in s.objects]
    size = (round(SIDE * specs[0].aspect), SIDE)
    alone = render(single, times, size)
    full = render(specs, times, size)
    out, at = [], 0
    for b, spec in enumerate(specs):
        count = len(spec.objects)
        part = slice(at, at + count)
        at += count
        masks = list(alone.masks[part, 0].numpy())
        out.append(Seen(spec, full.masks[b, :count].numpy(), masks, list(alone.frames[part].transpose(1, 2).numpy())))
        for n in range(count):  # what is seen of it is part of it, and the rest is behind others
            assert not (out[-1].masks[n] & ~masks[n]).any()
            others = np.any([masks[m] for m in range(n + 1, count)], axis=0) if n + 1 < count else False
            assert not (masks[n] & ~out[-1].masks[n] & ~others).any()
        for n in range(count):
            out[-1].frames[n] = out[-1].frames[n].transpose(1, 0, 2, 3)
    return out


def nouns_in(text: str, names: list[str]) -> list[str]:
    """Names in a text, in order; a name inside a longer one is not counted."""
    found = []
    for name in sorted(set(names), key=len, reverse=True):
        for form in {name, SHEET[named(name)].plural}:
            for match in re.finditer(rf"\b{form}\b", text):
                found.append((match.start(), name))
                text = text[: match.start()] + "#" * len(match.group()) + text[match.end() :]
    return [name for _, name in sorted(found)]


def is_true(seen: Seen, phrase) -> bool:
    kind, name = phrase.template.split("+")[0].split(".")[:2]
    everything = range(len(seen.names))
    nouns = nouns_in(phrase.text, seen.names)
    thing = any(re.search(rf"\b{t}s?\b", phrase.text) for t in THINGS) and not nouns
    group = [n for n in everything if thing or (nouns and seen.names[n] == nouns[0])]
    colours = [c for c in phrase.text.split() if c in ("red", "orange", "yellow", "green", "blue", "purple", "pink",
                                                       "brown", "black", "white", "grey")]  # fmt: skip
    objects = list(phrase.objects)

    def picks(test, among=None):
        among = group if among is None else among
        return objects == [n for n in among if test(n, [m for m in among if m != n])]

    if kind == "none":
        if name == "absent":
            return not nouns and not objects
        if name == "colour":
            return not objects and all(seen.share(n, colours[-1]) < 0.3 for n in group)
        return bool(group) and picks(lambda n, rest: seen.is_(n, name, rest))
    if kind == "category":
        return len(group) == 1 and objects == group
    if kind == "colour" or name == "colour":
        among = list(everything) if kind == "multiple" else group
        shares = {n: seen.share(n, colours[-1]) for n in among}
        return all(shares[n] > 0.45 if n in objects else shares[n] < 0.3 for n in among) and bool(objects)
    if kind == "motion":
        return len(objects) == 1 and picks(lambda n, rest: seen.is_(n, name, rest))
    if kind == "position":
        return len(objects) == 1 and picks(lambda n, rest: seen.place_is(n, name, rest))
    if kind == "size":
        return len(objects) == 1 and picks(lambda n, rest: seen.size_is(n, name, rest))
    if kind == "relation":
        anchor = seen.names.index(nouns[1])
        assert seen.names.count(nouns[1]) == 1
        if name == "near":
            gaps = {n: seen.gap(n, anchor).max() for n in group}
            mine = gaps.pop(objects[0])
            return mine < 0.22 and all(gap > max(0.05, mine) for gap in gaps.values())
        return picks(lambda n, rest: seen.relation_is(n, name, anchor))
    assert kind == "multiple"
    if name in ("two", "all"):
        return len(objects) > 1 and objects == group
    if name in ("and", "and_many"):
        return objects == [n for n in everything if seen.names[n] in nouns] and len(set(nouns)) == 2
    if name.startswith("side_"):
        return picks(lambda n, rest: seen.place_is(n, name.removeprefix("side_"), rest), everything)
    return picks(lambda n, rest: seen.is_(n, name, rest), everything)


@pytest.mark.parametrize(("kind", "split", "aspect", "clips"), [
    *((kind, "train", 1.0, 40) for kind in KINDS), *((kind, "novel", 0.5625, 8) for kind in KINDS),
])  # fmt: skip
def test_phrases_are_true_of_the_masks_and_of_nothing_else(kind, split, aspect, clips):
    rng = np.random.default_rng(5)
    absent = rng.choice(SHEET.train, 3).tolist()
    specs = [sample_clip(clip_rng("validation", s), kind=kind, split=split, aspect=aspect) for s in range(clips)]
    checked, wrong = 0, []
    for seen in look_at(specs):
        said = all_phrases(seen.spec, absent=absent)
        once = {(p.template.rpartition(".")[0], p.objects, tuple(nouns_in(p.text, seen.names))): p for p in said}
        for phrase in once.values():
            checked += 1
            if not is_true(seen, phrase):
                wrong.append((specs.index(seen.spec), phrase.text, phrase.objects, phrase.template))
    assert checked > 10 * clips
    assert not wrong, f"{len(wrong)} of {checked}: {wrong[:8]}"


def test_every_property_is_said_of_something():
    said = set()
    for seed in range(60):
        for kind in KINDS:
            said |= {m.family for m in meanings(sample_clip(clip_rng("test", seed), kind=kind), absent=[seed])}
    assert said == {name for name in wordings() if not name.startswith("ask.")}


# --- pairs, twins, what is held out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "novel"])
@pytest.mark.parametrize("templates", ["train", "held_out"])
def test_every_clip_has_a_pair_of_its_kind(split, templates):
    for seed in range(12):
        for kind in KINDS:
            rng = clip_rng("test", seed)
            spec = sample_clip(rng, kind=kind, split=split)
            phrases = sample_phrases(spec, rng, templates=templates)
            assert 2 <= len(phrases) <= 4
            first, second = phrases[:2]
            assert spec.kind == kind
            assert kind in (first.kind, second.kind)
            assert first.objects != second.objects
            assert kind == "none" or first.kind == second.kind
            for phrase in phrases:
                assert phrase.partner is None or phrases[phrase.partner].objects != phrase.objects
                assert phrase.held_out == (templates == "held_out")
            assert first.partner is not None
            assert second.partner is not None


def test_twins_differ_in_one_thing_only():
    plain = Background("gradient", 0, ((0.5, 0.5, 0.5),) * 3, 0.0)
    found = 0
    for kind, free in (("motion", ()), ("position", ()), ("size", ("size",)), ("colour", ("paint",))):
        for seed in range(12):
            objects = sample_clip(clip_rng("train", seed), kind=kind, mix=Mix(twins=1.0)).objects
            classes = [o.sprite for o in objects]
            twins = [o for o in objects if classes.count(o.sprite) > 1]
            assert twins
            one, *others = twins
            for other in others:
                found += 1
                same = {name: getattr(one, name) for name in ("x", "y", "dx", "dy", "course", *free)}
                assert replace(other, **same) == one
                specs = [ClipSpec((replace(o, **same),), plain) for o in (one, other)]
                drawn = render(specs, [0.2, 0.8], (40, 40)).frames
                assert torch.equal(drawn[0], drawn[1])
    assert found >= 48


def test_the_pair_of_a_clip_with_twins_is_about_the_twins():
    for kind in ("colour", "size", "position", "motion"):
        for seed in range(25):
            rng = clip_rng("train", seed)
            spec = sample_clip(rng, kind=kind, mix=Mix(twins=1.0))
            one, two = sample_phrases(spec, rng, most=2)
            (n,), (m,) = one.objects, two.objects
            assert n != m
            assert spec.objects[n].sprite == spec.objects[m].sprite


def test_where_a_twin_is_does_not_tell_where_it_goes():
    middles, signs = [], []
    for seed in range(500):
        mix = Mix(motions=(("direction", 1.0),), twins=1.0, objects=(2, 2), camera=0.0)
        for o in sample_clip(clip_rng("train", seed), kind="motion", mix=mix).objects:
            if abs(o.dx) > abs(o.dy):
                middles.append(tracks(ClipSpec((o,)), [0.5]).x[0, 0])
                signs.append(np.sign(o.dx))
    assert abs(np.corrcoef(middles, signs)[0, 1]) < 0.12


def test_held_out_wordings_and_names_are_never_in_training():
    held = {w.template for options in wordings().values() for w in options if w.held_out}
    novel = {text for i in SHEET.novel for text in (SHEET[i].name, SHEET[i].plural)}
    for seed in range(150):
        rng = clip_rng("train", seed)
        spec = sample_clip(rng)
        assert not any(SHEET[o.sprite].novel for o in spec.objects)
        for p in sample_phrases(spec, rng, most=6):
            family = p.template.split("+")[0].rpartition(".")[0]
            parts = p.template.split("+")
            asked = {f"ask.{number}.{tag}" for number in ("one", "several") for tag in parts[1:]}
            assert not p.held_out
            assert not ({parts[0]} | asked) & held
            if family == "none.absent":
                rest = " ".join(p.text.split())
                assert not any(re.search(rf"\b{n}$", rest) for n in novel if " " not in n)
        other = sample_clip(rng, split="novel")
        assert all(SHEET[o.sprite].novel for o in other.objects)


def test_each_family_holds_out_some_wordings_but_no_words():
    trained = {w for options in wordings().values() for o in options if not o.held_out for w in o.text.split()}
    shares = []
    for name, options in wordings().items():
        held = [o for o in options if o.held_out]
        assert {word for o in held for word in o.text.split()} <= trained
        assert len({o.template for o in options}) == len(options)
        if name not in ("ask.several",) and not name.startswith("none."):
            assert 1 <= len(held) <= max(1, round(HELD_OUT_SHARE * len(options))), name
            assert len(options) >= 4
        shares.append(len(held) / len(options))
    assert 0.1 < np.mean(shares) < 0.25


def test_the_vocabulary_covers_all_phrases():
    words = set(vocabulary())
    for seed in range(40):
        for split in ("train", "novel"):
            spec = sample_clip(clip_rng("test", seed), split=split)
            for phrase in all_phrases(spec, absent=[seed, seed + 200], asking=seed < 3):
                assert set(phrase.text.split()) <= words, phrase.text
                assert phrase.text == " ".join(phrase.text.lower().split())


def test_fewer_classes_are_a_subset():
    for classes in (16, 64):
        allowed = set(SHEET.train[:classes])
        for seed in range(30):
            rng = clip_rng("train", seed)
            spec = sample_clip(rng, mix=Mix(classes=classes))
            assert {o.sprite for o in spec.objects} <= allowed
            for p in sample_phrases(spec, rng, most=8):
                if p.template.startswith("none.absent"):
                    assert nouns_in(p.text, [NAMES[i] for i in allowed])


def test_wishes_that_cannot_be_met_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(SettingError, match="mood"):
        sample_clip(rng, kind="mood")
    with pytest.raises(SettingError, match="split"):
        sample_clip(rng, split="old")
    with pytest.raises(SettingError, match="purpose"):
        clip_rng("fun", 1)
    with pytest.raises(SettingError, match="tries"):
        sample_clip(rng, kind="relation", mix=Mix(classes=1))


def test_each_way_of_moving_can_be_asked_for():
    for motion in MOTIONS:
        spec = sample_clip(clip_rng("test", 4), kind="motion", mix=Mix(motions=((motion, 1.0),)))
        assert {m.kind for m in meanings(spec)} >= {"motion"}


def test_courses():
    times = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    want = {
        Course(): [0, 0.25, 0.5, 0.75, 1],
        Course.stops(0.5): [0, 0.5, 1, 1, 1],
        Course.starts_late(0.5): [0, 0, 0, 0.5, 1],
        Course.turns_back(0.5, 1.0): [0, 0.5, 1, 0.5, 0],
        Course(bend=1.0): [0, 0.0625, 0.25, 0.5625, 1],
    }
    for course, places in want.items():
        spec = ClipSpec((ObjectSpec(0, 0.2, 0.0, 0.5, 1.0, 0.0, course),))
        np.testing.assert_allclose(tracks(spec, times).x[0], places, atol=1e-9)


def test_phrases_do_not_need_torch():
    code = "import sys, glus.datasets.phrases as p; p.vocabulary(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- files and pictures ---------------------------------------------------------------------------------------------


def test_write_mevis(tmp_path):
    folder = write_mevis(tmp_path / "set", 3, 40, frames=4, size=(48, 64))
    assert sorted(p.name for p in folder.iterdir()) == ["JPEGImages", "mask_dict.json", "meta_expressions.json"]
    meta = json.loads((folder / "meta_expressions.json").read_text())["videos"]
    rles = json.loads((folder / "mask_dict.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    used = 0
    for n, (name, video) in enumerate(meta.items()):
        clip = make_clip(40 + n, frames=4, size=(48, 64))
        assert video["vid_id"] == n
        assert video["frames"] == ["00000", "00001", "00002", "00003"]
        for t, frame in enumerate(video["frames"]):
            picture = cv2.imread(str(folder / "JPEGImages" / name / f"{frame}.jpg"))[..., ::-1]
            assert picture.shape == (48, 64, 3)
            assert np.abs(picture.astype(int) - clip.frames[t]).mean() < 6
        for i, phrase in enumerate(clip.phrases):
            said = video["expressions"][str(i)]
            assert (said["exp"], said["kind"], said["template"]) == (phrase.text, phrase.kind, phrase.template)
            assert said["obj_id"] == list(phrase.objects)
            masks = np.zeros((4, 48, 64), bool)
            for number in said["anno_id"]:
                for t, rle in enumerate(rles[str(number)]):
                    if rle is not None:
                        masks[t] |= decode_rle(rle)
            np.testing.assert_array_equal(masks, clip.mask_of(phrase))
        used += len(clip.masks)
    assert list(rles) == [str(n) for n in range(used)]
    with pytest.raises(SettingError, match="empty folder"):
        write_mevis(folder, 1, 0)


def test_write_mevis_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
    made = synthetic.make_clip

    def fail(seed, **options):
        if seed == 1:
            raise OSError("disk full")
        return made(seed, **options)

    monkeypatch.setattr(synthetic, "make_clip", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mevis(tmp_path / "set", 3, 0, frames=2, size=(32, 32))
    assert not list(tmp_path.iterdir())


def test_contact_sheet_leaves_the_clip_alone():
    clip = make_clip(2, frames=6, size=(64, 64))
    before = clip.frames.copy()
    sheet = contact_sheet(clip, columns=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1:] == (192, 3)
    assert sheet.shape[0] > 128
    np.testing.assert_array_equal(before, clip.frames)
