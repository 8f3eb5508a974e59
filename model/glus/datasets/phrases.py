"""What can truly be said of a scene. Knows tracks and sprites' names; not pixels, and never imports torch.

A phrase is said only when it is clearly true of the objects it refers to and clearly untrue of every other object it
could be about. Each property is therefore two columns over the objects, `yes` and `no`; an object that is in neither
(it drifts a little, it is half on the left) keeps the phrase from being said.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glus.datasets.scenes import ClipSpec, Tracks, tracks
from glus.datasets.sprites import COLOURS, PAINTS, Sprites, load_sprites
from glus.errors import SettingError

Templates = Literal["train", "held_out", "all"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Columns = dict[str, tuple[Bools, Bools]]  # for each property: of which objects it is true, of which it is not

KINDS: Final = ("category", "colour", "size", "position", "motion", "relation", "multiple", "none")
THINGS: Final = ("thing", "object")
HELD_OUT_SHARE: Final = 0.15


@dataclass(frozen=True)
class Phrase:
    """A sentence about a clip.

    Attributes:
        text: plain lower-case English.
        kind: one of `KINDS`.
        objects: indices of the objects it refers to, ascending; empty when nothing fits.
        template: stable id of the wording, "kind.property.hash" with "+hash" of the way of asking, if any.
        held_out: whether wording or way of asking is kept for evaluation.
        partner: index, in the list it came in, of a phrase about other objects of this clip, of the same kind where
            there is one; None where there is none.
    """

    text: str
    kind: str
    objects: tuple[int, ...]
    template: str
    held_out: bool
    partner: int | None = None


# --- wordings -------------------------------------------------------------------------------------------------------
# {n} the noun, {p} its plural, {o} another noun, {q} its plural, {c} a colour, {k} a number. "who" stands for "that".

_NP: dict[str, str] = {
    "category.one": "the {n}|a {n}|the {n} in the video|the {n} in the picture|the only {n}|the one {n} in the scene|"
    "the thing that is a {n}|the {n} you can see here",
    "colour.one": "the {c} {n}|the {n} that is {c}|the {n} in {c}|the {c} coloured {n}|the {n} with the {c} colour|"
    "the {n} whose colour is {c}|the one {c} {n}",
    "size.bigger": "the bigger {n}|the larger {n}|the bigger of the two {p}|the {n} that is bigger|"
    "the {n} that is larger than the other {n}|the big {n} and not the small one|the larger one of the {p}",
    "size.smaller": "the smaller {n}|the little {n}|the smaller of the two {p}|the {n} that is smaller|"
    "the {n} that is smaller than the other {n}|the small {n} and not the big one|the smaller one of the {p}",
    "size.biggest": "the biggest {n}|the largest {n}|the biggest of all the {p}|the {n} that is the biggest|"
    "the largest one of the {p}|the {n} bigger than all the others",
    "size.smallest": "the smallest {n}|the smallest of all the {p}|the {n} that is the smallest|the tiniest {n}|"
    "the smallest one of the {p}|the {n} smaller than all the others|the tiniest of the {p}",
    "position.left": "the {n} on the left|the left {n}|the {n} on the left side|the {n} at the left|"
    "the {n} in the left half|the {n} that stays on the left|the {n} to the left of the middle",
    "position.right": "the {n} on the right|the right {n}|the {n} on the right side|the {n} at the right|"
    "the {n} in the right half|the {n} that stays on the right|the {n} to the right of the middle",
    "position.top": "the {n} at the top|the upper {n}|the {n} in the upper half|the top {n}|the {n} in the top half|"
    "the {n} that stays at the top|the {n} above the middle",
    "position.bottom": "the {n} at the bottom|the lower {n}|the {n} in the lower half|the bottom {n}|"
    "the {n} in the bottom half|the {n} that stays at the bottom|the {n} below the middle",
    "position.centre": "the {n} in the middle|the {n} in the middle of the picture|the middle {n}|"
    "the {n} at the centre|the {n} in the centre of the picture|the {n} that stays in the middle",
    "position.leftmost": "the leftmost {n}|the {n} farthest to the left|the {n} on the far left|"
    "the {n} left of all the others|the {n} most to the left",
    "position.rightmost": "the rightmost {n}|the {n} farthest to the right|the {n} on the far right|"
    "the {n} right of all the others|the {n} most to the right",
    "position.topmost": "the topmost {n}|the highest {n}|the {n} above all the others|the {n} highest up",
    "position.bottommost": "the lowest {n}|the bottommost {n}|the {n} below all the others|the {n} lowest down",
    "position.top_left": "the {n} at the top left|the {n} in the top left corner|the top left {n}|"
    "the {n} in the upper left|the upper left {n}",
    "position.top_right": "the {n} at the top right|the {n} in the top right corner|the top right {n}|"
    "the {n} in the upper right|the upper right {n}",
    "position.bottom_left": "the {n} at the bottom left|the {n} in the bottom left corner|the bottom left {n}|"
    "the {n} in the lower left|the lower left {n}",
    "position.bottom_right": "the {n} at the bottom right|the {n} in the bottom right corner|the bottom right {n}|"
    "the {n} in the lower right|the lower right {n}",
    "motion.left": "the {n} that moves to the left|the {n} moving left|the {n} that goes left|the {n} going to the left|"
    "the {n} heading left|the {n} that travels to the left|the {n} which moves left|the {n} on its way to the left",
    "motion.right": "the {n} that moves to the right|the {n} moving right|the {n} that goes right|"
    "the {n} going to the right|the {n} heading right|the {n} that travels to the right|the {n} which moves right|"
    "the {n} on its way to the right",
    "motion.up": "the {n} that moves up|the {n} moving up|the {n} that goes up|the {n} going upwards|the {n} heading up|"
    "the {n} that rises|the {n} which moves upwards|the rising {n}|the {n} on its way up",
    "motion.down": "the {n} that moves down|the {n} moving down|the {n} that goes down|the {n} going downwards|"
    "the {n} heading down|the {n} that sinks|the {n} which moves downwards|the sinking {n}|the {n} on its way down",
    "motion.still": "the {n} that does not move|the {n} that stays still|the {n} that stays where it is|the still {n}|"
    "the {n} which never moves|the {n} not moving|the {n} that stays in its place|the {n} without any motion",
    "motion.moving": "the {n} that moves|the moving {n}|the {n} which is moving|the {n} in motion|"
    "the {n} that does not stay still|the {n} that changes its place|the {n} that travels",
    "motion.stops": "the {n} that stops|the {n} that stops moving|the {n} that moves and then stops|"
    "the {n} which comes to a stop|the {n} that moves first and then stays still|the stopping {n}|"
    "the {n} that stops on its way",
    "motion.late": "the {n} that starts moving late|the {n} that starts late|the {n} that waits and then moves|"
    "the {n} which stays still at first|the {n} that first waits|the {n} that starts to move later|"
    "the {n} that begins to move late",
    "motion.first": "the {n} that moves first|the {n} that starts first|the {n} that moves before the other|"
    "the first {n} to move|the {n} which moves first|the {n} that is the first to move",
    "motion.last": "the {n} that moves last|the {n} that starts last|the {n} that moves after the other|"
    "the last {n} to move|the {n} which moves last|the {n} that is the last to move",
    "motion.turns": "the {n} that turns around|the {n} that turns back|the {n} that goes back|"
    "the {n} which comes back again|the {n} that changes its direction|the {n} that moves away and then comes back|"
    "the {n} that goes there and back",
    "motion.straight": "the {n} that does not turn around|the {n} that never turns back|the {n} that keeps its direction|"
    "the {n} which does not come back|the {n} that never changes its direction|the {n} that keeps going one way",
    "motion.overtakes": "the {n} that overtakes the other|the {n} that overtakes|the overtaking {n}|"
    "the {n} that passes the other {n}|the {n} which passes the other one|the {n} that comes from behind and passes",
    "motion.overtaken": "the {n} that is overtaken|the {n} that the other overtakes|the overtaken {n}|"
    "the {n} that the other {n} passes|the {n} which the other one passes|the {n} that falls behind",
    "motion.faster": "the faster {n}|the {n} that moves faster|the fast {n}|the faster of the two {p}|"
    "the {n} which is faster|the {n} that travels farther",
    "motion.slower": "the slower {n}|the {n} that moves more slowly|the slow {n}|the slower of the two {p}|"
    "the {n} which is slower|the {n} that travels less far",
    "motion.leaves": "the {n} that leaves the picture|the {n} that leaves|the {n} that goes out of the picture|"
    "the {n} leaving the scene|the {n} which leaves the scene|the {n} that moves out of the video|the {n} that goes outside",
    "motion.enters": "the {n} that comes into the picture|the {n} that enters|the {n} that enters the picture|"
    "the {n} entering the scene|the {n} which comes in later|the {n} that moves into the video|"
    "the {n} that comes in from outside",
    "relation.left": "the {n} to the left of the {o}|the {n} left of the {o}|the {n} on the left of the {o}|"
    "the {n} that is left of the {o}|the {n} with the {o} on its right",
    "relation.right": "the {n} to the right of the {o}|the {n} right of the {o}|the {n} on the right of the {o}|"
    "the {n} that is right of the {o}|the {n} with the {o} on its left",
    "relation.above": "the {n} above the {o}|the {n} over the {o}|the {n} that is above the {o}|"
    "the {n} higher than the {o}|the {n} with the {o} below it",
    "relation.below": "the {n} below the {o}|the {n} under the {o}|the {n} that is below the {o}|"
    "the {n} lower than the {o}|the {n} with the {o} above it",
    "relation.near": "the {n} next to the {o}|the {n} beside the {o}|the {n} near the {o}|the {n} close to the {o}|"
    "the {n} that is next to the {o}|the {n} by the {o}|the {n} at the side of the {o}",
}

# plural ones: asked with "are"
_NPS: dict[str, str] = {
    "multiple.two": "the two {p}|both {p}|the {p}|all the {p}|the pair of {p}|both of the {p}|the two {p} in the picture|"
    "each of the two {p}",
    "multiple.all": "all the {p}|all {k} {p}|the {k} {p}|the {p}|all of the {p}|every one of the {p}|"
    "all the {p} in the picture",
    "multiple.and": "the {n} and the {o}|the {n} and also the {o}|both the {n} and the {o}|"
    "the {n} together with the {o}|the {o} as well as the {n}",
    "multiple.and_many": "the {p} and the {o}|all the {p} and the {o}|the {o} and the {p}|the {p} and also the {o}|"
    "the {p} together with the {o}",
    "multiple.left": "everything that moves left|everything moving to the left|all things that move left|"
    "all objects that go left|all the things heading left|the things that move to the left",
    "multiple.right": "everything that moves right|everything moving to the right|all things that move right|"
    "all objects that go right|all the things heading right|the things that move to the right",
    "multiple.up": "everything that moves up|everything moving upwards|all things that move up|all objects that go up|"
    "all the things heading up|the things that move upwards",
    "multiple.down": "everything that moves down|everything moving downwards|all things that move down|"
    "all objects that go down|all the things heading down|the things that move downwards",
    "multiple.moving": "everything that moves|everything moving|all things that move|all objects in motion|"
    "all the moving things|the things that do not stay still",
    "multiple.still": "everything that does not move|everything that stays still|all things that do not move|"
    "all objects that stay still|all the still things|the things that stay in their place",
    "multiple.side_left": "everything on the left|everything in the left half|all things on the left|"
    "all objects on the left side|all the things that stay on the left",
    "multiple.side_right": "everything on the right|everything in the right half|all things on the right|"
    "all objects on the right side|all the things that stay on the right",
    "multiple.side_top": "everything at the top|everything in the upper half|all things at the top|"
    "all objects in the upper half|all the things that stay at the top",
    "multiple.side_bottom": "everything at the bottom|everything in the lower half|all things at the bottom|"
    "all objects in the lower half|all the things that stay at the bottom",
    "multiple.colour": "everything that is {c}|everything in {c}|all things that are {c}|all the {c} things|"
    "all {c} objects|the {c} things|the {c} objects",
}

# ways of asking: of one, and of several
_ASK_ONE = (
    "segment {np}|find {np}|show me {np}|where is {np}|please mark {np}|track {np}|i am looking for {np}|"
    "can you find {np}|could you point at {np}|i want to see {np}|follow {np} please|which one is {np}|"
    "cut out {np}|look for {np}"
)
_ASK_SEVERAL = (
    "segment {np}|find {np}|show me {np}|where are {np}|please mark {np}|track {np}|i am looking for {np}|"
    "can you find {np}|could you point at {np}|i want to see {np}|follow {np} please|which are {np}|"
    "cut out {np}|look for {np}"
)
_NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five"}

# properties of objects that phrases single out, also absent ones
_MOTIONS: Final = (
    "left", "right", "up", "down", "still", "moving", "stops", "late", "first", "last", "turns", "straight",
    "leaves", "enters",
)  # fmt: skip
_POSITIONS: Final = (
    "left", "right", "top", "bottom", "centre", "top_left", "top_right", "bottom_left", "bottom_right",
)  # fmt: skip
_SINGLE: Final = (
    *((f"position.{name}", f"pos_{name}") for name in _POSITIONS),
    *((f"motion.{name}", name) for name in _MOTIONS),
)
_MISSING: Final = ("left", "right", "up", "down", "still", "moving", "stops", "late", "turns", "leaves", "enters")


class Wording(NamedTuple):
    """One way to put something."""

    text: str
    template: str
    held_out: bool


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _words(text: str) -> list[str]:
    return [word for word in text.split() if not word.startswith("{")]


@cache
def wordings() -> dict[str, tuple[Wording, ...]]:
    """All wordings by family ("motion.left", ...; "ask.one" and "ask.several" hold the ways of asking).

    In each family the ones whose hash comes first are held out, 15 % and at least one of four, but only such as are
    made of words that other wordings use too: what is held out is the construction, not the word.
    """
    families = {**_NP, **_NPS, "ask.one": _ASK_ONE, "ask.several": _ASK_SEVERAL}
    for word in _MISSING:
        families[f"none.{word}"] = _NP[f"motion.{word}"]
    families["none.colour"] = _NP["colour.one"]
    families["none.absent"] = _NP["category.one"]
    # what may be said of an absent class or a missing motion is held out together with its counterpart
    source = {f"none.{word}": f"motion.{word}" for word in _MISSING}
    source |= {"none.colour": "colour.one", "none.absent": "category.one", "ask.several": "ask.one"}
    used = Counter(w for name, text in families.items() if name not in source for w in _words(text.replace("|", " ")))
    held: dict[str, set[str]] = {}
    for name, text in families.items():
        if name in source:
            continue
        options = text.split("|")
        held[name] = set()
        quota = max(1, round(HELD_OUT_SHARE * len(options))) if len(options) >= 4 else 0
        for option in sorted(options, key=lambda o: _tag(f"{name}/{o}")):
            own = Counter(_words(option))
            if len(held[name]) < quota and all(used[word] > count for word, count in own.items()):
                held[name].add(option)
                used -= own
    out: dict[str, tuple[Wording, ...]] = {}
    for name, text in families.items():
        options = text.split("|")
        if name == "ask.several":  # by position: "where is" and "where are" are one way of asking
            places = [_ASK_ONE.split("|")[place] in held["ask.one"] for place in range(len(options))]
        else:
            places = [option in held[source.get(name, name)] for option in options]
        out[name] = tuple(
            Wording(option, f"{name}.{_tag(option)}", place) for option, place in zip(options, places, strict=True)
        )
    return out


@cache
def _pool(family: str, templates: Templates) -> tuple[Wording, ...]:
    if templates == "all":
        return wordings()[family]
    return tuple(w for w in wordings()[family] if w.held_out == (templates == "held_out"))


def vocabulary(sprites: Sprites | None = None) -> tuple[str, ...]:
    """All words that any phrase can contain, sorted."""
    sheet = sprites or load_sprites()
    words = {word for options in wordings().values() for w in options for word in _words(w.text)}
    words |= {*COLOURS, *_NUMBERS.values(), "an"}
    for noun in (*THINGS, *(f"{thing}s" for thing in THINGS)):
        words.add(noun)
    for sprite in sheet.items:
        words.update(sprite.name.split(), sprite.plural.split())
    return tuple(sorted(words))


# --- facts ----------------------------------------------------------------------------------------------------------

_TIMES: Final = np.linspace(0, 1, 33)


class Facts(NamedTuple):
    """What is true of a scene's objects.

    Attributes:
        yes, no: for each property, N bools; never both.
        names, plurals: of the objects.
        classes: objects of each sprite.
        colours: the clear colour of each, if any, and the colours that are surely not in it.
        sizes, x, y, inside: (N, T) tracks, and the share of the bounding box that is in the picture.
        area: (N,) opaque share of the sprite.
        hidden: (N,) mostly behind others: not spoken of.
        course: (N, 5) reach, way in x and y (in widths), whether it is steady, whether it goes one way.
    """

    yes: dict[str, list[bool]]
    no: dict[str, list[bool]]
    names: list[str]
    plurals: list[str]
    classes: dict[int, list[int]]
    colours: list[tuple[str | None, frozenset[str]]]
    sizes: Floats
    area: Floats
    x: Floats
    y: Floats
    inside: Floats
    hidden: Bools
    course: Floats


def facts_of(spec: ClipSpec, sprites: Sprites | None = None) -> Facts:
    """Judge every property of every object, over the whole clip."""
    return _facts(spec, sprites or load_sprites())


@lru_cache(maxsize=8)  # a clip that was just composed is spoken of next
def _facts(spec: ClipSpec, sheet: Sprites) -> Facts:
    items = [sheet[o.sprite] for o in spec.objects]
    track = tracks(spec, _TIMES)
    boxes = np.array([(s.width, s.height, s.area) for s in items])
    inside, hidden = _seen(track, boxes, spec.aspect)
    motions, course = _motions(track, inside, spec)
    columns = {**_places(track, inside), **motions}
    colours: list[tuple[str | None, frozenset[str]]] = []
    for o, s in zip(spec.objects, items, strict=True):
        colours.append((s.colour, s.absent) if o.paint is None else (o.paint, s.paints[o.paint].absent))
    classes: dict[int, list[int]] = {}
    for n, o in enumerate(spec.objects):
        classes.setdefault(o.sprite, []).append(n)
    return Facts(
        yes={name: pair[0].tolist() for name, pair in columns.items()},
        no={name: (pair[1] & ~pair[0]).tolist() for name, pair in columns.items()},
        names=[s.name for s in items],
        plurals=[s.plural for s in items],
        classes=classes,
        colours=colours,
        sizes=track.size,
        area=boxes[:, 2],
        x=track.x,
        y=track.y,
        inside=inside,
        hidden=hidden,
        course=course,
    )


def _seen(track: Tracks, boxes: Floats, tall: float) -> tuple[Floats, Bools]:
    """Share of each bounding box that is in the picture, (N, T); and which objects are mostly behind others, (N,)."""
    x, y, size, angle = track
    cosine, sine = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    half_w = size * (boxes[:, :1] * cosine + boxes[:, 1:2] * sine) / 2
    half_h = size * (boxes[:, :1] * sine + boxes[:, 1:2] * cosine) / 2 / tall
    left, right, top, bottom = x - half_w, x + half_w, y - half_h, y + half_h
    seen_x = np.clip((np.minimum(right, 1) - np.maximum(left, 0)) / (2 * half_w), 0, 1)
    seen_y = np.clip((np.minimum(bottom, 1) - np.maximum(top, 0)) / (2 * half_h), 0, 1)
    inside = seen_x * seen_y
    over_x = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    over_y = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    front = np.arange(len(x))[:, None] < np.arange(len(x))
    under = np.clip(over_x, 0, None) * np.clip(over_y, 0, None) * front[..., None]
    covered = (under / (4 * half_w * half_h)[:, None]).sum(1)
    shown = inside > 0.3
    hidden: Bools = ((covered > 0.4) & shown).sum(1) > 0.34 * shown.sum(1)
    return inside, hidden


def _places(track: Tracks, inside: Floats) -> Columns:
    """Sides of the picture that an object keeps to."""
    x, y = track.x, track.y
    here = inside.min(1) > 0.3
    out: Columns = {
        "pos_left": ((x.max(1) <= 0.44) & here, x.min(1) >= 0.54),
        "pos_right": ((x.min(1) >= 0.56) & here, x.max(1) <= 0.46),
        "pos_top": ((y.max(1) <= 0.44) & here, y.min(1) >= 0.54),
        "pos_bottom": ((y.min(1) >= 0.56) & here, y.max(1) <= 0.46),
    }
    for corner in ("top_left", "top_right", "bottom_left", "bottom_right"):
        one, two = (out[f"pos_{side}"] for side in corner.split("_"))
        out[f"pos_{corner}"] = (one[0] & two[0], one[1] | two[1])
    off = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5))
    out["pos_centre"] = ((off.max(1) <= 0.11) & here, off.min(1) >= 0.2)
    return out


def _motions(track: Tracks, inside: Floats, spec: ClipSpec) -> tuple[Columns, Floats]:
    """Ways of moving, as seen in the picture; and (N, 5): reach, way in x and y, whether steady, whether one way."""
    x, y, tall, camera = track.x, track.y, spec.aspect, spec.camera
    tight = min(1.0, tall)
    ex, ey = x - x[:, :1], (y - y[:, :1]) * tall  # way from the start, in widths
    far = np.hypot(ex, ey)
    reach, end, end_x, end_y = far.max(1), far[:, -1], ex[:, -1], ey[:, -1]
    along = (ex * end_x[:, None] + ey * end_y[:, None]) / np.maximum(end, 1e-9)[:, None]
    oneway = (np.diff(along, axis=1) > -0.004).all(1) & (end > 0.8 * reach)
    last = len(_TIMES) - 1
    speed = np.hypot(np.diff(x, axis=1), np.diff(y, axis=1) * tall) * last
    drift = 0.03 + 0.6 * (abs(camera.pan_x) + abs(camera.pan_y) + abs(camera.zoom))
    going = speed > np.maximum(0.3 * speed.max(1, keepdims=True), drift)
    onset = np.where(going.any(1), going.argmax(1), last) / last
    finish = 1 - np.where(going.any(1), going[:, ::-1].argmax(1), last) / last

    still, moving = reach <= 0.05 * tight, reach >= 0.13 * tight
    whole, stays = inside.min(1) > 0.85, inside.min(1) > 0.6
    onward = moving & oneway
    ahead = oneway & (end >= 0.13 * tight)
    turning = moving & (end < 0.5 * reach) & (reach - end > 0.1 * tight)
    steady = onward & (onset <= 0.07) & (finish >= 0.93)
    halts = onward & (onset <= 0.07) & (finish <= 0.7) & whole
    delayed = onward & (onset >= 0.3) & (finish >= 0.9) & whole
    leaves = (inside[:, 0] > 0.85) & (inside[:, _TIMES >= 0.93] <= 0).all(1)
    enters = (inside[:, _TIMES <= 0.03] <= 0).all(1) & (inside[:, -1] > 0.85)

    columns: Columns = {
        "still": (still & whole, moving),
        "moving": (moving, still),
        "turns": (turning & whole, still | onward),
        "straight": (onward & whole, turning),
        "stops": (halts, steady | delayed | leaves),
        "late": (delayed, steady | halts | leaves),
        "first": (halts, delayed),
        "last": (delayed, halts),
        "leaves": (leaves, stays | enters),
        "enters": (enters, stays | leaves),
    }
    for back, forth, way, other in (("left", "right", end_x, end_y), ("up", "down", end_y, end_x)):
        mainly = ahead & (np.abs(other) <= 0.6 * np.abs(way))
        across = ahead & (np.abs(way) <= 0.4 * np.abs(other))
        columns[back] = (mainly & (way < 0), still | across | (mainly & (way > 0)))
        columns[forth] = (mainly & (way > 0), still | across | (mainly & (way < 0)))
    return columns, np.stack([reach, end_x, end_y, steady, ahead], 1)


# --- meanings -------------------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """Something true, before it is put into words.

    Attributes:
        family: the wordings it can have, "kind.property".
        objects: what it refers to.
        noun, other: (singular, plural) or None.
        colour: or None.
        hard: whether the class alone would not tell which object is meant.
    """

    family: str
    objects: tuple[int, ...]
    noun: tuple[str, str] | None = None
    other: tuple[str, str] | None = None
    colour: str | None = None
    hard: bool = True

    @property
    def kind(self) -> str:
        """The part of the family before the dot."""
        return self.family.partition(".")[0]


_THING: Final = ("thing", "things")


def meanings(
    spec: ClipSpec,
    sprites: Sprites | None = None,
    *,
    absent: Iterable[int] = (),
    facts: Facts | None = None,
) -> list[Meaning]:
    """Everything that can truly be said of a scene.

    Args:
        spec: the scene.
        sprites: the sheet it indexes.
        absent: sprites of which none is in the scene, for phrases of kind `none`; those that a name in the scene
            might also be said of are skipped.
        facts: what `facts_of` gave, if at hand.
    """
    sheet = sprites or load_sprites()
    known = facts or facts_of(spec, sheet)
    out: list[Meaning] = []
    everything = list(range(len(spec.objects)))
    groups = [((known.names[m[0]], known.plurals[m[0]]), m, len(m) > 1) for m in known.classes.values()]
    if len(known.classes) > 1:
        groups.append((_THING, everything, True))
    hidden = known.hidden.tolist()
    for noun, members, hard in groups:
        if any(hidden[n] for n in members):
            continue
        out += _singled_out(known, noun, members, hard)
    out += _together(known, everything, hidden)
    out += _related(known, spec, hidden)
    out += _missing(known, sheet, spec, absent)
    return out


def _only(known: Facts, name: str, members: Sequence[int]) -> int | None:
    """The one object of `members` that is `name`, when all others clearly are not."""
    yes, no = known.yes[name], known.no[name]
    found = None
    for n in members:
        if yes[n]:
            if found is not None:
                return None
            found = n
        elif not no[n]:
            return None
    return found


def _singled_out(known: Facts, noun: tuple[str, str], members: list[int], hard: bool) -> Iterator[Meaning]:
    if noun is not _THING:
        if not hard:
            yield Meaning("category.one", (members[0],), noun)
        yield from _compared(known, noun, members)
        if len(members) == 2:
            yield from _paired(known, noun, members[0], members[1])
    elif len(members) > 2:
        yield from _extremes(known, members)
    for family, name in _SINGLE:
        if (n := _only(known, name, members)) is not None and (name not in ("first", "last") or len(members) == 2):
            yield Meaning(family, (n,), noun, hard=hard)
    yield from _coloured(known, noun, members, hard)


def _coloured(known: Facts, noun: tuple[str, str], members: list[int], hard: bool) -> Iterator[Meaning]:
    names = [known.colours[n][0] for n in members]
    for n, colour in zip(members, names, strict=True):
        if colour and names.count(colour) == 1 and all(colour in known.colours[m][1] for m in members if m != n):
            yield Meaning("colour.one", (n,), noun, colour=colour, hard=hard)


def _compared(known: Facts, noun: tuple[str, str], members: list[int]) -> Iterator[Meaning]:
    """Sizes and extreme places within a class."""
    if len(members) < 2:
        return
    inside = known.inside[members].min(1)
    if (inside <= 0.85).any():
        return
    sizes = known.sizes[members, 0]  # camera and growth are one for all of a class, or within the margin
    last = known.sizes[members, -1]
    order = np.argsort(sizes)
    for place, rival, name in ((order[-1], order[-2], "bigg"), (order[0], order[1], "small")):
        high, low = (place, rival) if name == "bigg" else (rival, place)
        if min(sizes[high] / sizes[low], last[high] / last[low]) >= 1.3:
            family = f"size.{name}{'er' if len(members) == 2 else 'est'}"
            yield Meaning(family, (members[place],), noun)
    for values, low_name, high_name in ((known.x, "leftmost", "rightmost"), (known.y, "topmost", "bottommost")):
        least, most = values[members].min(1), values[members].max(1)
        for i, n in enumerate(members):
            others = [j for j in range(len(members)) if j != i]
            if most[i] + 0.08 <= min(least[j] for j in others):
                yield Meaning(f"position.{low_name}", (n,), noun)
            if least[i] - 0.08 >= max(most[j] for j in others):
                yield Meaning(f"position.{high_name}", (n,), noun)


def _extremes(known: Facts, members: list[int]) -> Iterator[Meaning]:
    """The biggest and smallest of all things: by extent and by area."""
    if (known.inside.min(1) <= 0.85).any():
        return
    extent = known.sizes[members].min(1), known.sizes[members].max(1)
    root = np.sqrt(known.area[members])
    by_area = extent[0] * root, extent[1] * root
    for name, sign in (("biggest", 1), ("smallest", -1)):
        at = int(np.argmax(sign * extent[0]))
        rest = [j for j in range(len(members)) if j != at]
        margins = []
        for low, high in (extent, by_area):
            margins.append(low[at] / high[rest].max() if sign > 0 else low[rest].min() / high[at])
        if min(margins) >= 1.25:
            yield Meaning(f"size.{name}", (members[at],), _THING)


def _paired(known: Facts, noun: tuple[str, str], a: int, b: int) -> Iterator[Meaning]:
    """Speed and overtaking, of exactly two of a class."""
    reach, end_x, end_y, steady, ahead = known.course.T
    if steady[a] and steady[b] and min(known.inside[a].min(), known.inside[b].min()) > 0.6:
        fast, slow = (a, b) if reach[a] > reach[b] else (b, a)
        if reach[fast] >= 1.8 * reach[slow]:
            yield Meaning("motion.faster", (fast,), noun)
            yield Meaning("motion.slower", (slow,), noun)
    if ahead[a] and ahead[b]:
        way = np.array([end_x[a] + end_x[b], end_y[a] + end_y[b]])
        length = math.hypot(*way)
        cosine = (end_x[a] * end_x[b] + end_y[a] * end_y[b]) / (reach[a] * reach[b])
        if cosine > 0.85:
            way = way / length
            lead = (known.x[a] - known.x[b]) * way[0] + (known.y[a] - known.y[b]) * way[1]
            if abs(lead[0]) > 0.09 and abs(lead[-1]) > 0.09 and lead[0] * lead[-1] < 0:
                winner, loser = (a, b) if lead[-1] > 0 else (b, a)
                yield Meaning("motion.overtakes", (winner,), noun)
                yield Meaning("motion.overtaken", (loser,), noun)


def _together(known: Facts, everything: list[int], hidden: list[bool]) -> Iterator[Meaning]:
    """Phrases about several objects."""
    classes = [m for m in known.classes.values() if not any(hidden[n] for n in m)]
    for members in classes:
        noun = (known.names[members[0]], known.plurals[members[0]])
        if len(members) > 1:
            yield Meaning("multiple.two" if len(members) == 2 else "multiple.all", tuple(members), noun)
    for i, first in enumerate(classes):
        for second in classes[i + 1 :]:
            nouns = [(known.names[m[0]], known.plurals[m[0]]) for m in (first, second)]
            both = tuple(sorted([*first, *second]))
            if len(first) == len(second) == 1:
                yield Meaning("multiple.and", both, nouns[0], nouns[1])
            elif len(second) == 1:
                yield Meaning("multiple.and_many", both, nouns[0], nouns[1])
            elif len(first) == 1:
                yield Meaning("multiple.and_many", both, nouns[1], nouns[0])
    if any(hidden):
        return
    for name in (*_MOTIONS[:6], "pos_left", "pos_right", "pos_top", "pos_bottom"):
        yes, no = known.yes[name], known.no[name]
        fits = tuple(n for n in everything if yes[n])
        if len(fits) > 1 and all(yes[n] or no[n] for n in everything):
            yield Meaning(f"multiple.{name.replace('pos_', 'side_')}", fits)
    for colour in COLOURS:
        fits = tuple(n for n in everything if known.colours[n][0] == colour)
        if len(fits) > 1 and all(n in fits or colour in known.colours[n][1] for n in everything):
            yield Meaning("multiple.colour", fits, colour=colour)


def _related(known: Facts, spec: ClipSpec, hidden: list[bool]) -> Iterator[Meaning]:
    """Where an object is, seen from one of another class, over the whole clip."""
    if len(known.classes) < 2:
        return
    here = known.inside.min(1) > 0.6
    for anchor in (m[0] for m in known.classes.values() if len(m) == 1):
        if not here[anchor] or hidden[anchor]:
            continue
        ex = known.x - known.x[anchor]
        ey = (known.y - known.y[anchor]) * spec.aspect
        gap = np.hypot(ex, ey) - 0.45 * (known.sizes + known.sizes[anchor])
        wide = np.abs(ex) - np.abs(ey)
        judged = {
            "left": ((ex.max(1) < -0.1) & (wide.min(1) > -0.05), ex.min(1) > 0.03),
            "right": ((ex.min(1) > 0.1) & (wide.min(1) > -0.05), ex.max(1) < -0.03),
            "above": ((ey.max(1) < -0.1) & (wide.max(1) < 0.05), ey.min(1) > 0.03),
            "below": ((ey.min(1) > 0.1) & (wide.max(1) < 0.05), ey.max(1) < -0.03),
            "near": (gap.max(1) < 0.08, gap.min(1) > 0.2),
        }
        other = (known.names[anchor], known.plurals[anchor])
        for name, (yes, no) in judged.items():
            for members in known.classes.values():
                if members[0] == anchor or any(hidden[n] for n in members):
                    continue
                fits = [n for n in members if yes[n] and here[n]]
                if len(fits) == 1 and all(no[n] for n in members if n != fits[0]):
                    noun = (known.names[fits[0]], known.plurals[fits[0]])
                    yield Meaning(f"relation.{name}", (fits[0],), noun, other, hard=len(members) > 1)


def _missing(known: Facts, sheet: Sprites, spec: ClipSpec, absent: Iterable[int]) -> Iterator[Meaning]:
    """Phrases that nothing in the scene fits."""
    groups = {sheet[o.sprite].group for o in spec.objects}
    for index in absent:
        if sheet[index].group not in groups:
            yield Meaning("none.absent", (), (sheet[index].name, sheet[index].plural))
    for members in known.classes.values():
        noun = (known.names[members[0]], known.plurals[members[0]])
        for name in _MISSING:
            no = known.no[name]
            if all(no[n] for n in members):
                yield Meaning(f"none.{name}", (), noun)
        for colour in PAINTS:
            if all(known.colours[n][0] is not None and colour in known.colours[n][1] for n in members):
                yield Meaning("none.colour", (), noun, colour=colour)


# --- saying ---------------------------------------------------------------------------------------------------------


def _fill(text: str, meaning: Meaning, thing: str) -> str:
    noun = meaning.noun
    if noun is _THING:
        noun = (thing, thing + "s")
    singular, plural = noun or ("", "")
    other, others = meaning.other or ("", "")
    article = "an" if singular[:1] in "aeio" else "a"  # "a unicorn", "a ufo", but "an umbrella"
    if singular.startswith(("um", "hour")):
        article = "an"
    text = text.replace("a {n}", article + " {n}") if text.startswith("a {n}") or " a {n}" in text else text
    return text.format(
        n=singular, p=plural, o=other, q=others, c=meaning.colour, k=_NUMBERS.get(len(meaning.objects), "")
    )


def _phrase(meaning: Meaning, wording: Wording, ask: Wording | None, thing: str) -> Phrase:
    text = _fill(wording.text, meaning, thing)
    template, held_out = wording.template, wording.held_out
    if ask is not None:
        text = ask.text.replace("{np}", text)
        template, held_out = f"{template}+{ask.template.rpartition('.')[2]}", held_out or ask.held_out
    return Phrase(text, meaning.kind, meaning.objects, template, held_out)


def _asking(meaning: Meaning) -> str:
    return "ask.several" if meaning.family in _NPS else "ask.one"


def say(meaning: Meaning, rng: np.random.Generator, *, templates: Templates = "train", asking: float = 0.4) -> Phrase:
    """Put a meaning into words.

    Args:
        meaning: what to say.
        rng: chooses.
        templates: "train" never uses a held-out wording or way of asking; "held_out" always uses a held-out wording.
        asking: share of the phrases that are asked ("show me the cat") rather than named ("the cat").
    """
    pool = _pool(meaning.family, templates)
    if not pool:
        raise SettingError(f"no {templates} wordings for {meaning.family}")
    dice = rng.random(4)
    ask = None
    if dice[0] < asking:
        ways = _pool(_asking(meaning), "train" if templates == "train" else "all")
        ask = ways[int(dice[1] * len(ways))]
    return _phrase(meaning, pool[int(dice[2] * len(pool))], ask, THINGS[int(dice[3] * len(THINGS))])


def all_phrases(
    spec: ClipSpec, sprites: Sprites | None = None, *, absent: Iterable[int] = (), asking: bool = False
) -> list[Phrase]:
    """Every true unambiguous phrase about a scene, each with a partner where there is one.

    Args:
        spec: the scene.
        sprites: the sheet it indexes.
        absent: see `meanings`.
        asking: also every way of asking for it, fourteen times as many.
    """
    out: list[Phrase] = []
    said: list[Meaning] = []
    for meaning in meanings(spec, sprites, absent=absent):
        ways: list[Wording | None] = [None]
        if asking:
            ways += wordings()[_asking(meaning)]
        things = THINGS if meaning.noun is _THING else THINGS[:1]
        for wording in wordings()[meaning.family]:
            for ask in ways:
                for thing in things:
                    out.append(_phrase(meaning, wording, ask, thing))
                    said.append(meaning)
    first: dict[tuple[str, tuple[int, ...]], int] = {}
    for n, phrase in enumerate(out):
        first.setdefault((phrase.kind, phrase.objects), n)
    return [replace(phrase, partner=_partner(phrase, said[n], said, first)) for n, phrase in enumerate(out)]


def _distance(one: Phrase, meant: Meaning, other: Phrase, other_meant: Meaning) -> int:
    """How ill `other` serves as the swapped phrase of `one`."""
    shared = bool(set(one.objects) & set(other.objects))
    return 4 * (one.kind != other.kind) + 2 * shared + (meant.noun != other_meant.noun)


def _partner(
    phrase: Phrase, meaning: Meaning, said: list[Meaning], first: dict[tuple[str, tuple[int, ...]], int]
) -> int | None:
    best: tuple[int, int] | None = None
    for (kind, objects), n in first.items():
        if objects != phrase.objects:
            rank = _distance(phrase, meaning, Phrase("", kind, objects, "", False), said[n])
            if best is None or rank < best[0]:
                best = (rank, n)
    return best and best[1]


def _rivals(one: Meaning, found: Sequence[Meaning]) -> list[Meaning]:
    """What may stand beside `one` as its swapped phrase: of the same kind; beside `none`, of another.

    Best are those of the same noun that share no object with it, then those that share none.
    """
    if one.kind == "none":
        others = [m for m in found if m.objects and m.hard and m.kind != "multiple"]
    else:
        others = [m for m in found if m.kind == one.kind and m.hard and m.objects != one.objects]
    apart = [m for m in others if not set(m.objects) & set(one.objects)] or others
    return [m for m in apart if m.noun == one.noun] or apart


def find_pair(
    found: Sequence[Meaning], rng: np.random.Generator, kind: str | None = None
) -> tuple[Meaning, Meaning] | None:
    """Two meanings of a kind (any, by default) about different objects, which the class alone would not tell apart.

    Two of one class are preferred ("the cat on the left", "the cat on the right") to two things. `none` is paired with
    a phrase of another kind.
    """
    ones = [m for m in found if m.hard and (kind is None or m.kind == kind)]
    ones = [ones[n] for n in rng.permutation(len(ones)).tolist()]
    second: tuple[Meaning, Meaning] | None = None
    for one in sorted(ones, key=lambda m: m.noun is _THING):
        rivals = _rivals(one, found)
        if rivals:
            pair = one, rivals[int(rng.random() * len(rivals))]
            if of_one_class(pair):
                return pair
            second = second or pair
    return second


def of_one_class(pair: tuple[Meaning, Meaning]) -> bool:
    """Whether both name the same class, rather than two classes or "the thing"."""
    return pair[0].noun == pair[1].noun and pair[0].noun not in (None, _THING)


def choose(found: Sequence[Meaning], rng: np.random.Generator, *, kind: str | None, most: int) -> list[Meaning]:
    """Up to `most` meanings, a pair first: of `kind` if that can be had; the others spread over kinds."""
    pair = find_pair(found, rng, kind) or find_pair(found, rng)
    chosen: list[Meaning] = list(pair or ())[:most]
    dice = rng.random(2 * most)
    by_kind: dict[str, list[Meaning]] = {}
    for meaning in found:
        by_kind.setdefault(meaning.kind, []).append(meaning)
    for meaning in chosen:
        by_kind[meaning.kind].remove(meaning)
    for n in range(len(chosen), most):
        left = [k for k, options in by_kind.items() if options]
        if not left:
            break
        options = by_kind[left[int(dice[2 * n] * len(left))]]
        hard = [m for m in options if m.hard] or options
        pick = hard[int(dice[2 * n + 1] * len(hard))]
        options.remove(pick)
        chosen.append(pick)
    return chosen


def with_partners(phrases: Sequence[Phrase], said: Sequence[Meaning]) -> list[Phrase]:
    """Fill in partners within a list: of the same kind first, then without a shared object, then of the same noun."""
    out = []
    for phrase, meaning in zip(phrases, said, strict=True):
        ranks = [
            (_distance(phrase, meaning, p, m), n)
            for n, (p, m) in enumerate(zip(phrases, said, strict=True))
            if p.objects != phrase.objects
        ]
        out.append(replace(phrase, partner=min(ranks)[1] if ranks else None))
    return out
