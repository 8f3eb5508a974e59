"""Synthetic referring-video clips: scenes composed at random, with phrases that tell their objects apart.

    clip = make_clip(7)                        # frames (24, 256, 256, 3), masks (N, 24, 256, 256), phrases
    Image.fromarray(contact_sheet(clip)).show()

Training draws on the device: `render([sample_clip(rng) for _ in range(64)], times, device="cuda")`. A clip composed
for a kind of phrase always has two phrases of that kind about different objects, so that a model which ignores the
words cannot be right on both. Everything random comes from the generator given; nothing here keeps any.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from glus.datasets.phrases import (
    KINDS,
    Meaning,
    Phrase,
    Templates,
    choose,
    facts_of,
    find_pair,
    meanings,
    of_one_class,
    say,
    with_partners,
)
from glus.datasets.scenes import Background, Camera, ClipSpec, Course, ObjectSpec, render
from glus.datasets.sprites import GAIN_JITTER, HUE_JITTER, Sprites, load_sprites
from glus.errors import SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Split = Literal["train", "novel"]
Purpose = Literal["train", "validation", "test"]
T = TypeVar("T")

SMALLEST: Final = 0.12
LARGEST: Final = 0.38
_DRIFT: Final = 0.25  # radians that a heading may be off
_TRIES: Final = 200  # a composition rarely needs more than two

MOTIONS: Final = (
    "direction", "still", "stops", "late", "order", "turns", "overtakes", "faster", "leaves", "enters",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mix:
    """What clips are made of.

    Attributes:
        kinds: weight of each kind of phrase that a clip is composed for.
        motions: weight of each way in which twins of kind `motion` differ, see `MOTIONS`.
        classes: how many of the names to use, everyday ones first; 0 for all. A smaller number is a subset. The built-in
            model knows the default.
        twins: share of the clips of kind colour, size, position and motion in which identical pictures have to be told
            apart; in the others the phrase is about "the thing that ..." among different ones.
        objects: fewest and most objects of a clip.
        displacement: how far things move, as a fraction of the picture.
        camera: scale of the camera's motion; 0 for a fixed one.
        styles: weight of each background style.
        photographs: how many photographs `render` will be given; a third of the clips use one. 0 for none.
    """

    kinds: tuple[tuple[str, float], ...] = (
        ("category", 0.12),
        ("colour", 0.10),
        ("size", 0.10),
        ("position", 0.12),
        ("motion", 0.30),
        ("relation", 0.08),
        ("multiple", 0.10),
        ("none", 0.08),
    )
    motions: tuple[tuple[str, float], ...] = (
        ("direction", 4.0),
        ("still", 1.5),
        ("stops", 1.0),
        ("late", 1.0),
        ("order", 1.0),
        ("turns", 1.5),
        ("overtakes", 1.0),
        ("faster", 0.7),
        ("leaves", 1.0),
        ("enters", 1.0),
    )
    classes: int = 96
    twins: float = 0.8
    objects: tuple[int, int] = (2, 5)
    displacement: tuple[float, float] = (0.25, 0.6)
    camera: float = 1.0
    styles: tuple[tuple[str, float], ...] = (("clouds", 3.0), ("gradient", 1.0), ("stripes", 1.0), ("checks", 1.0))
    photographs: int = 0


DEFAULT_MIX: Final = Mix()


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """A drawn clip.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        masks: (N, T, H, W) bool, the visible pixels of each object; disjoint.
        phrases: what is said of it; `partner` is an index into them.
        spec: the scene.
        seed: what it was made from.
        fps: frames per second, for those who write it to a file.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    phrases: tuple[Phrase, ...]
    spec: ClipSpec
    seed: int
    fps: float

    def mask_of(self, phrase: Phrase) -> NDArray[np.bool_]:
        """(T, H, W): all that a phrase refers to."""
        return np.asarray(self.masks[list(phrase.objects)].any(0))


def clip_rng(purpose: Purpose, seed: int) -> np.random.Generator:
    """The generator of one clip. The streams of different purposes never meet, whatever the seeds."""
    if purpose not in get_args(Purpose):
        raise SettingError(f"no purpose {purpose!r}; wanted one of {', '.join(get_args(Purpose))}")
    return np.random.default_rng([get_args(Purpose).index(purpose) + 1, seed])


class _Dice:
    """Single random numbers out of a generator, drawn in blocks: a call on the generator costs ten times as much."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block: list[float] = []

    def unit(self) -> float:
        if not self._block:
            self._block = self._rng.random(128).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def about(self, spread: float) -> float:
        return spread * (2 * self.unit() - 1)

    def chance(self, share: float) -> bool:
        return self.unit() < share

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.unit() * len(options))]

    def weighted(self, options: Sequence[tuple[str, float]]) -> str:
        left = self.unit() * sum(weight for _, weight in options)
        for name, weight in options:
            left -= weight
            if left < 0:
                return name
        return options[-1][0]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        keys = [self.unit() for _ in options]
        return [options[i] for i in sorted(range(len(options)), key=keys.__getitem__)]


@cache
def _pool(sheet: Sprites, novel: bool, classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sprites to use, and those of them that can be given at least two clear colours."""
    indices = sheet.novel if novel else sheet.train
    indices = indices[:classes] if classes else indices
    return indices, tuple(i for i in indices if len(sheet[i].paints) >= 2)


class _Composer:
    """Composes one scene: draws numbers until what it drew can be told apart as wanted."""

    def __init__(self, dice: _Dice, mix: Mix, sheet: Sprites, novel: bool, aspect: float) -> None:
        self.dice, self.mix, self.sheet, self.aspect = dice, mix, sheet, aspect
        self.indices, self.paintable = _pool(sheet, novel, mix.classes)
        self.objects: list[ObjectSpec] = []
        self.groups: set[int] = set()
        self.full = False  # nothing may be added: a phrase is about everything there is

    def sprite(self, options: Sequence[int] | None = None) -> int:
        """A picture of a class that is not there yet."""
        for _ in range(50):
            index = self.dice.pick(options or self.indices)
            if self.sheet[index].group not in self.groups:
                self.groups.add(self.sheet[index].group)
                return index
        raise _Again

    def looks(self, sprite: int, low: float = SMALLEST, high: float = 0.30) -> ObjectSpec:
        """An object without a place: what it looks like."""
        dice = self.dice
        return ObjectSpec(
            sprite=sprite,
            size=dice.between(low, high),
            x=0.5,
            y=0.5,
            flip=dice.chance(0.5),
            turn=dice.about(0.3),
            spin=dice.about(0.25),
            grow=dice.about(0.08),
            hue=dice.about(HUE_JITTER),
            gain=1 + dice.about(GAIN_JITTER),
        )

    def two(self, low: float = SMALLEST, high: float = 0.28) -> tuple[ObjectSpec, ObjectSpec]:
        """Twins, or two different things that look as if they were."""
        first = self.looks(self.sprite(), low, high)
        if self.dice.chance(self.mix.twins):
            return first, first
        self.full = self.dice.chance(0.5)
        return first, replace(first, sprite=self.sprite())

    def heading(self, options: Sequence[int] = (0, 1, 2, 3)) -> float:
        """An angle: 0 right, 1 down, 2 left, 3 up, in quarter turns, a little off."""
        return self.dice.pick(options) * math.pi / 2 + self.dice.about(_DRIFT)

    def step(self, heading: float, length: float) -> tuple[float, float]:
        """Displacement in fractions of the picture."""
        return length * math.cos(heading), length * math.sin(heading)

    def length(self) -> float:
        return self.dice.between(*self.mix.displacement)

    def course(self) -> Course:
        """Of something that moves in one go."""
        if self.dice.chance(0.3):
            return Course(bend=self.dice.between(0.3, 0.6))
        return Course()

    def place(
        self,
        o: ObjectSpec,
        dx: float = 0.0,
        dy: float = 0.0,
        course: Course | None = None,
        across: tuple[float, float] = (0.0, 1.0),
        down: tuple[float, float] = (0.0, 1.0),
    ) -> ObjectSpec:
        """Put an object where its whole way is in the picture, away from the others, and keep it.

        The middle of its way is drawn alike for a way and its opposite, so that where it is does not tell where it
        goes.
        """
        dice = self.dice
        half_x = 0.5 * o.size + 0.02
        half_y = half_x / self.aspect
        low_x, high_x = max(across[0], half_x), min(across[1], 1 - half_x)
        low_y, high_y = max(down[0], half_y), min(down[1], 1 - half_y)
        dx = math.copysign(min(abs(dx), max(0.0, high_x - low_x)), dx)
        dy = math.copysign(min(abs(dy), max(0.0, high_y - low_y)), dy)
        low_x, high_x = low_x + abs(dx) / 2, high_x - abs(dx) / 2
        low_y, high_y = low_y + abs(dy) / 2, high_y - abs(dy) / 2
        best, placed = -9.0, o
        for _ in range(8):
            x = dice.between(low_x, high_x) if high_x > low_x else (low_x + high_x) / 2
            y = dice.between(low_y, high_y) if high_y > low_y else (low_y + high_y) / 2
            option = replace(o, x=x - dx / 2, y=y - dy / 2, dx=dx, dy=dy, course=course or Course())
            room = self.room(option)
            if room > best:
                best, placed = room, option
            if room > 0:
                break
        self.objects.append(placed)
        return placed

    def room(self, o: ObjectSpec) -> float:
        """Least distance to another object's outline at four instants, in widths; about."""
        worst = 9.0
        for t in (0.0, 0.33, 0.67, 1.0):
            x, y = _at(o, t)
            for other in self.objects:
                ox, oy = _at(other, t)
                gap = math.hypot(x - ox, (y - oy) * self.aspect) - 0.42 * (o.size + other.size)
                worst = min(worst, gap)
        return worst

    def wander(self, o: ObjectSpec) -> None:
        """Add an object with any motion."""
        dice = self.dice
        if dice.chance(0.4):
            self.place(o)
            return
        dx, dy = self.step(self.heading(), self.length())
        style = dice.pick(("go", "go", "stops", "late", "turns"))
        self.place(o, dx, dy, self.timing(style))

    def timing(self, style: str) -> Course:
        if style == "stops":
            return Course.stops(self.dice.between(0.35, 0.58))
        if style == "late":
            return Course.starts_late(self.dice.between(0.42, 0.62))
        if style == "turns":
            return Course.turns_back(self.dice.between(0.4, 0.6), self.dice.between(0.75, 1.0))
        return self.course()

    # one method for each kind of phrase

    def category(self) -> None:
        for _ in range(2):
            self.wander(self.looks(self.sprite()))

    def colour(self) -> None:
        dice = self.dice
        if not self.paintable:
            raise SettingError("none of the sprites in this mix can be recoloured; use more classes")
        plain = replace(self.looks(self.sprite(self.paintable)), hue=dice.about(0.5 * HUE_JITTER))
        if dice.chance(self.mix.twins):
            names = dice.shuffled(tuple(self.sheet[plain.sprite].paints))
            for name in names[: dice.pick((2, 2, 3))]:
                self.wander(replace(plain, paint=name))
            return
        self.full = dice.chance(0.5)
        other = replace(plain, sprite=self.sprite(self.paintable))
        first = dice.pick(tuple(self.sheet[plain.sprite].paints))
        rest = [name for name in self.sheet[other.sprite].paints if name != first]
        self.wander(replace(plain, paint=first))
        self.wander(replace(other, paint=dice.pick(rest)))

    def size(self) -> None:
        dice = self.dice
        ratio = dice.between(1.5, 2.2)
        small = dice.between(SMALLEST, LARGEST / ratio)
        first, second = self.two()
        moves = self.step(self.heading(), self.length()) if dice.chance(0.4) else (0.0, 0.0)
        course = self.course()
        self.place(replace(first, size=small * ratio), *moves, course)
        self.place(replace(second, size=small), *moves, course)
        if first.sprite == second.sprite and dice.chance(0.25):
            self.place(replace(first, size=small * math.sqrt(ratio)), *moves, course)

    def position(self) -> None:
        dice = self.dice
        first, second = self.two(SMALLEST, 0.24)
        low, high, whole = (0.0, 0.42), (0.58, 1.0), (0.0, 1.0)
        style = dice.pick(("across", "across", "down", "down", "corners", "middle", "row"))
        along = self.length() * dice.pick((-1, 1)) if dice.chance(0.4) else 0.0
        course = self.course()
        if style == "across":
            self.place(first, 0, along, course, low, whole)
            self.place(second, 0, along, course, high, whole)
        elif style == "down":
            self.place(first, along, 0, course, whole, low)
            self.place(second, along, 0, course, whole, high)
        elif style == "corners":
            corners = dice.shuffled([(a, b) for a in (low, high) for b in (low, high)])
            self.place(first, across=corners[0][0], down=corners[0][1])
            for corner in corners[1 : dice.pick((2, 3, 4))]:
                self.place(second, across=corner[0], down=corner[1])
        elif style == "middle":
            self.place(replace(first, size=min(first.size, 0.2)), across=(0.44, 0.56), down=(0.44, 0.56))
            side = dice.pick((low, high))
            self.place(second, across=side, down=whole)
        else:
            for side in ((0.0, 0.3), (0.4, 0.6), (0.7, 1.0)):
                flat = dice.pick((first, second))
                self.place(replace(flat, size=min(first.size, 0.2)), 0, along, course, side, whole)

    def motion(self) -> None:
        dice = self.dice
        style = dice.weighted(self.mix.motions)
        first, second = self.two(SMALLEST, 0.26)
        turn = self.heading()
        length = self.length()
        step = self.step(turn, length)
        if style == "direction":
            other = turn + math.pi * dice.pick((1.0, 1.0, 0.5, -0.5))
            course = self.course()
            self.place(first, *step, course)
            self.place(second, *self.step(other, length), course)
        elif style == "still":
            self.place(first, *step, self.course())
            self.place(second)
        elif style in ("stops", "late", "turns"):
            self.place(first, *step, self.timing(style))
            self.place(second, *step, Course())
        elif style == "order":
            when = dice.between(0.4, 0.5)
            self.place(first, *step, Course.stops(when))
            self.place(second, *step, Course.starts_late(min(0.62, when + 0.08)))
        elif style == "overtakes":
            self.overtaking(first, second, turn)
        elif style == "faster":
            step = self.step(turn, max(length, 0.45))
            self.place(first, *step, Course())
            share = dice.between(0.3, 0.42)
            self.place(second, step[0] * share, step[1] * share, Course())
        else:
            self.crossing(first, second, style)

    def overtaking(self, first: ObjectSpec, second: ObjectSpec, turn: float) -> None:
        """Two in the same direction, on lanes that may touch; the first comes from behind and passes."""
        dice = self.dice
        size = min(first.size, 0.22)
        lead, gain = dice.between(0.12, 0.2), dice.between(0.12, 0.2)
        slow = dice.between(0.15, 0.25)
        fast = slow + lead + gain
        ahead = math.cos(turn), math.sin(turn)
        aside = dice.pick((-1, 1)) * dice.between(0.8, 1.3) * size
        scale = min(1.0, (0.94 - size) / max(fast, slow + lead))
        middle = (0.5 + dice.about(0.06), 0.5 + dice.about(0.06))
        for o, start, way, lane in ((first, -0.5 * fast, fast, 0.5), (second, lead - 0.5 * fast, slow, -0.5)):
            x = middle[0] + scale * start * ahead[0] - lane * aside * ahead[1]
            y = middle[1] + scale * start * ahead[1] + lane * aside * ahead[0]
            dx, dy = scale * way * ahead[0], scale * way * ahead[1]
            self.objects.append(replace(o, size=size, x=x, y=y, dx=dx, dy=dy, course=Course()))

    def crossing(self, first: ObjectSpec, second: ObjectSpec, style: str) -> None:
        """One leaves the picture, or comes into it; the other does not, or does the reverse."""
        dice = self.dice
        size = min(first.size, 0.24)
        beside = 0.6 * size + 0.06  # how far outside its middle has to be
        both = dice.chance(0.35)
        for n, o in enumerate((first, second)):
            leaving = (style == "leaves") == (n == 0)
            if n == 1 and not both:
                self.place(replace(o, size=size), *self.step(self.heading(), self.length()), self.course())
                continue
            side = int(dice.unit() * 4)
            inner = dice.between(0.5, 0.75)  # how far in from the edge it passes
            other = dice.between(size * 0.7, 1 - size * 0.7)
            drift = dice.about(0.1)
            tall = self.aspect if side % 2 else 1.0
            edge = -beside / tall
            near, far = ((edge, other), (inner, min(0.85, max(0.15, other + drift))))
            if side % 2:
                near, far = near[::-1], far[::-1]
            if side >= 2:
                near, far = (1 - near[0], 1 - near[1]), (1 - far[0], 1 - far[1])
            start, stop = (far, near) if leaving else (near, far)
            when = dice.between(0.7, 0.88)
            course = Course.stops(when) if leaving else Course.starts_late(1 - when)
            self.objects.append(
                replace(
                    o, size=size, x=start[0], y=start[1], dx=stop[0] - start[0], dy=stop[1] - start[1], course=course
                )
            )

    def relation(self) -> None:
        dice = self.dice
        twin = self.looks(self.sprite(), SMALLEST, 0.2)
        anchor = self.looks(self.sprite(), 0.14, 0.24)
        step = self.step(self.heading(), 0.5 * self.length()) if dice.chance(0.3) else (0.0, 0.0)
        around = (0.34, 0.66)
        if dice.chance(0.5):  # on two sides of one thing
            self.place(anchor, *step, None, around, around)
            middle = self.objects[-1]
            side = int(dice.unit() * 4)
            for quarter in (side, side + 2 if dice.chance(0.7) else side + 1):
                self.beside(twin, middle, quarter * math.pi / 2 + dice.about(0.35), dice.between(0.02, 0.2))
        else:  # next to one thing each
            other = self.looks(self.sprite(), 0.14, 0.24)
            sides = dice.shuffled([(0.0, 0.42), (0.58, 1.0)])
            flat = dice.chance(0.5)
            for thing, place in ((anchor, sides[0]), (other, sides[1])):
                self.place(thing, *step, None, *((place, (0.15, 0.85)) if flat else ((0.15, 0.85), place)))
                self.beside(twin, self.objects[-1], dice.between(0, 2 * math.pi), dice.between(0.0, 0.05))

    def beside(self, o: ObjectSpec, anchor: ObjectSpec, angle: float, gap: float) -> None:
        """Put an object at an angle from another, moving along with it."""
        distance = 0.5 * (o.size + anchor.size) + gap
        x = anchor.x + distance * math.cos(angle)
        y = anchor.y + distance * math.sin(angle) / self.aspect
        margin = 0.5 * o.size
        if not (margin < x < 1 - margin and margin < y * self.aspect < self.aspect - margin):
            raise _Again
        self.objects.append(replace(o, x=x, y=y, dx=anchor.dx, dy=anchor.dy, course=anchor.course))

    def multiple(self) -> None:
        dice = self.dice
        style = dice.pick(("twos", "twos", "and", "and", "moving", "moving", "sides", "colours"))
        high = 0.24
        if style == "twos":
            for count in dice.pick(((2, 2), (2, 2), (2, 3), (3, 2))):
                o = self.looks(self.sprite(), SMALLEST, high)
                for _ in range(count):
                    self.wander(o)
            return
        if style == "and":
            for _ in range(dice.pick((3, 4))):
                self.wander(self.looks(self.sprite(), SMALLEST, high))
            return
        self.full = True
        looks = [
            self.looks(self.sprite(self.paintable if style == "colours" else None), SMALLEST, 0.22) for _ in range(4)
        ]
        if dice.chance(0.5):
            looks[2] = looks[0]
        if dice.chance(0.3):
            looks[3] = looks[1]
        turn = int(dice.unit() * 4)
        opposite = turn + 2 if dice.chance(0.7) else turn + 1
        for n, o in enumerate(looks):
            if style == "moving":
                quarter = (turn, opposite)[n // 2]
                still = n // 2 == 1 and opposite == turn + 1
                step = (0.0, 0.0) if still else self.step(self.heading((quarter,)), 0.7 * self.length())
                self.place(o, *step, None if still else self.course())
            elif style == "sides":
                side = ((0.0, 0.42), (0.58, 1.0))[n // 2]
                self.place(o, 0, 0, None, *((side, (0.0, 1.0)) if turn % 2 else ((0.0, 1.0), side)))
            else:
                self.place(replace(o, paint=self.common_paint(looks, n)), 0, 0, None)

    def common_paint(self, looks: list[ObjectSpec], n: int) -> str:
        """The first two get one colour, the last two another."""
        pairs = (looks[0], looks[1]), (looks[2], looks[3])
        options = [[p for p in self.sheet[a.sprite].paints if p in self.sheet[b.sprite].paints] for a, b in pairs]
        first = options[0][0] if options[0] else ""
        second = next((p for p in options[1] if p != first), "")
        name = (first, second)[n // 2]
        if not name:
            raise _Again
        return name

    def none(self) -> None:
        style = self.dice.pick(("category", "colour", "position", "motion", "motion", "size"))
        getattr(self, style)()

    def backdrop(self) -> Background:
        dice = self.dice
        style = dice.weighted(self.mix.styles)
        if self.mix.photographs and dice.chance(1 / 3):
            style = "photograph"
        colours = [(dice.unit(), dice.unit(), dice.unit()) for _ in range(3)]
        grey = [sum(c) / 3 for c in colours]
        dull = dice.between(0.2, 0.9)  # how far towards grey
        return Background(
            style=style,
            seed=int(dice.unit() * 2**31),
            colours=tuple(
                (r + dull * (g - r), k + dull * (g - k), b + dull * (g - b))
                for (r, k, b), g in zip(colours, grey, strict=True)
            ),
            strength=dice.between(0.05, 0.4),
            decay=dice.between(0.45, 0.95),
            angle=dice.between(0, math.pi),
            pitch=dice.between(0.3, 0.9),
            period=dice.between(0.08, 0.3),
            photograph=int(dice.unit() * max(1, self.mix.photographs)),
        )

    def camera(self, kind: str) -> Camera:
        """Small where motion is judged: 3 % of the picture over the clip."""
        dice = self.dice
        if not self.mix.camera or dice.chance(0.4):
            return Camera()
        pan, zoom = (0.012, 0.02) if kind in ("motion", "multiple", "none") else (0.05, 0.06)
        amount = self.mix.camera
        return Camera(dice.about(pan * amount), dice.about(pan * amount), dice.about(zoom * amount))


class _Again(Exception):  # noqa: N818 - no error: the composition did not fit
    """Draw another one."""


def _at(o: ObjectSpec, t: float) -> tuple[float, float]:
    k1, k2 = o.course.knots
    s1, s2, s3 = o.course.speeds
    first, second = min(t, k1), min(t, k2)
    u = s1 * first + s2 * (second - first) + s3 * (t - second)
    way = u + o.course.bend * u * (abs(u) - 1)
    return o.x + o.dx * way, o.y + o.dy * way


def sample_clip(
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    split: Split = "train",
    mix: Mix = DEFAULT_MIX,
    aspect: float = 1.0,
    sprites: Sprites | None = None,
) -> ClipSpec:
    """Compose a clip in which two phrases of one kind are about different objects.

    Args:
        rng: the only source of chance.
        kind: one of `KINDS`; by default drawn by the mix.
        split: "train" uses the names of training, "novel" the held-out ones alone.
        mix: what clips are made of.
        aspect: height / width of the picture.
        sprites: the sheet; by default the package's.
    """
    sheet = sprites or load_sprites()
    dice = _Dice(rng)
    wanted = kind or dice.weighted(mix.kinds)
    if wanted not in KINDS:
        raise SettingError(f"no kind {wanted!r}; wanted one of {', '.join(KINDS)}")
    if split not in get_args(Split):
        raise SettingError(f"no split {split!r}; wanted one of {', '.join(get_args(Split))}")
    for _ in range(_TRIES):
        composer = _Composer(dice, mix, sheet, split == "novel", aspect)
        try:
            getattr(composer, wanted)()
            count = len(composer.objects)
            if not composer.full:
                total = max(mix.objects[0], int(dice.between(mix.objects[0], mix.objects[1] + 1)))
                for _ in range(total - count):
                    composer.wander(composer.looks(composer.sprite(), SMALLEST, 0.24))
        except _Again:
            continue
        if not mix.objects[0] <= len(composer.objects) <= max(mix.objects[1], count):
            continue
        spec = ClipSpec(
            objects=tuple(dice.shuffled(composer.objects)),
            background=composer.backdrop(),
            camera=composer.camera(wanted),
            aspect=aspect,
            kind=wanted,
            novel=split == "novel",
            classes=mix.classes,
        )
        facts = facts_of(spec, sheet)
        if facts.hidden.any():
            continue
        pair = find_pair(meanings(spec, sheet, facts=facts), rng, wanted)
        twins = wanted in ("colour", "size", "position", "motion") and len(facts.classes) < len(spec.objects)
        if pair is not None and (of_one_class(pair) or not twins):
            return spec
    raise SettingError(f"no clip of kind {wanted} could be composed in {_TRIES} tries: the mix leaves too little room")


def _absent(spec: ClipSpec, rng: np.random.Generator, sheet: Sprites, count: int = 3) -> list[int]:
    """Sprites that are not in the scene, out of those it was composed from."""
    indices, _ = _pool(sheet, spec.novel, spec.classes)
    return [indices[int(share * len(indices))] for share in rng.random(count)]


def sample_phrases(
    spec: ClipSpec,
    rng: np.random.Generator,
    *,
    templates: Templates = "train",
    most: int = 4,
    sprites: Sprites | None = None,
) -> list[Phrase]:
    """Some of what can be said of a clip: first a pair of the kind it was composed for, then others.

    Args:
        spec: the clip.
        rng: the only source of chance.
        templates: "train" leaves out the held-out wordings, "held_out" uses no others, "all" both.
        most: at most so many phrases.
        sprites: the sheet.
    """
    sheet = sprites or load_sprites()
    found = meanings(spec, sheet, absent=_absent(spec, rng, sheet))
    return _put(choose(found, rng, kind=spec.kind, most=most), rng, templates)


def _put(chosen: list[Meaning], rng: np.random.Generator, templates: Templates) -> list[Phrase]:
    return with_partners([say(meaning, rng, templates=templates) for meaning in chosen], chosen)


def make_clip(
    seed: int,
    *,
    frames: int = 24,
    size: tuple[int, int] = (256, 256),
    kind: str | None = None,
    split: Split = "train",
    templates: Templates = "all",
    fps: float = 12,
    purpose: Purpose = "test",
    mix: Mix = DEFAULT_MIX,
    most: int = 4,
    device: str | torch.device = "cpu",
    sprites: Sprites | None = None,
    photographs: Tensor | None = None,
) -> SyntheticClip:
    """A clip with its masks and phrases, the same for the same arguments.

    Args:
        seed: any number from 0.
        frames: how many, evenly spaced from the first instant to the last.
        size: (H, W).
        kind: as in `sample_clip`, like `split`, `mix` and `sprites`.
        split: whose names.
        templates: as in `sample_phrases`, like `most`.
        fps: kept for those who write a file.
        purpose: part of what the clip is made from: no clip for testing is ever one for training.
        mix: what it is made of.
        most: at most so many phrases.
        device: where to draw; CPU and GPU agree up to rounding.
        sprites: the sheet.
        photographs: as in `render`.
    """
    sheet = sprites or load_sprites()
    rng = clip_rng(purpose, seed)
    spec = sample_clip(rng, kind=kind, split=split, mix=mix, aspect=size[0] / size[1], sprites=sheet)
    phrases = sample_phrases(spec, rng, templates=templates, most=most, sprites=sheet)
    times = np.linspace(0, 1, frames) if frames > 1 else np.full(1, 0.5)
    drawn = render([spec], times, size, device, sheet, photographs=photographs)
    return SyntheticClip(
        frames=drawn.frames[0].permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        masks=drawn.masks[0].cpu().numpy(),
        phrases=tuple(phrases),
        spec=spec,
        seed=seed,
        fps=fps,
    )


def write_mevis(
    folder: Path | str,
    clips: int,
    seed: int,
    *,
    frames: int = 24,
    size: tuple[int, int] = (256, 256),
    kind: str | None = None,
    split: Split = "train",
    templates: Templates = "all",
    purpose: Purpose = "test",
    mix: Mix = DEFAULT_MIX,
    most: int = 4,
) -> Path:
    """Write clips `seed`, `seed + 1`, ... as a data set folder in the layout of MeViS.

    JPEGImages/<video>/<frame>.jpg, mask_dict.json (annotation id to one COCO RLE a frame, null where nothing of it is
    seen) and meta_expressions.json. The folder appears whole or not at all.
    """
    from PIL import Image

    from glus.masks import encode_rle

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} exists and is not an empty folder; give a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        rles: dict[str, list[Any]] = {}
        videos: dict[str, Any] = {}
        for n in range(clips):
            clip = make_clip(
                seed + n, frames=frames, size=size, kind=kind, split=split, templates=templates, purpose=purpose, mix=mix,
                most=most,
            )  # fmt: skip
            name = f"{purpose}_{seed + n:08d}"
            names = [f"{t:05d}" for t in range(frames)]
            pictures = work / "JPEGImages" / name
            pictures.mkdir(parents=True)
            for frame, label in zip(clip.frames, names, strict=True):
                Image.fromarray(frame).save(pictures / f"{label}.jpg", quality=95, subsampling=0)
            first = len(rles)
            for mask in clip.masks:
                rles[str(len(rles))] = [encode_rle(m) if m.any() else None for m in mask]
            videos[name] = {
                "vid_id": n,
                "expressions": {
                    str(i): {
                        "exp": phrase.text,
                        "obj_id": list(phrase.objects),
                        "anno_id": [first + o for o in phrase.objects],
                        "kind": phrase.kind,
                        "template": phrase.template,
                    }
                    for i, phrase in enumerate(clip.phrases)
                },
                "frames": names,
            }
        (work / "mask_dict.json").write_text(json.dumps(rles), encoding="utf-8")
        (work / "meta_expressions.json").write_text(json.dumps({"videos": videos}, indent=1), encoding="utf-8")
        work.chmod(0o755)  # mkdtemp's folders are private
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder


_TINTS: Final = ((255, 70, 70), (70, 160, 255), (80, 220, 90), (255, 190, 40), (220, 90, 255), (60, 220, 220))


def contact_sheet(clip: SyntheticClip, *, columns: int = 6) -> NDArray[np.uint8]:
    """(H, W, 3) picture for people: a strip of frames, the same with every object's mask outlined, and the phrases.

    Objects carry their index; a phrase is followed by the indices it refers to and its template.
    """
    import cv2

    shown = np.linspace(0, len(clip.frames) - 1, columns).round().astype(int)
    plain = [clip.frames[t] for t in shown]
    marked = []
    for t in shown:
        picture = clip.frames[t].copy()
        for n, mask in enumerate(clip.masks[:, t]):
            tint = _TINTS[n % len(_TINTS)]
            outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, tint, 1)
            ys, xs = np.nonzero(mask)
            if len(ys):
                at = (int(xs.mean()) - 4, int(ys.mean()) + 4)
                cv2.putText(picture, str(n), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 3, cv2.LINE_AA)
                cv2.putText(picture, str(n), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        marked.append(picture)
    width = sum(p.shape[1] for p in plain)
    strip = np.concatenate([np.concatenate(plain, 1), np.concatenate(marked, 1)], 0)
    text = np.full((22 * (len(clip.phrases) + 1), width, 3), 24, np.uint8)
    lines = [f"seed {clip.seed}, composed for {clip.spec.kind}, background {clip.spec.background.style}"]
    for i, p in enumerate(clip.phrases):
        swapped = "-" if p.partner is None else p.partner
        flag = " held out" if p.held_out else ""
        lines.append(f"{i}: {p.text}   -> {list(p.objects)}  [{p.template}{flag}; swapped {swapped}]")
    for i, line in enumerate(lines):
        cv2.putText(text, line, (6, 16 + 22 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.46, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([strip, text], 0)
