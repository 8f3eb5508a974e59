"""Scenes as numbers, and the pictures and masks of them. Knows sprites and torch; not text.

A `ClipSpec` holds everything that is needed to draw any instant 0..1 of a clip. Places are fractions of the picture,
x to the right and y down, (0, 0) the corner of the top left pixel; sizes are fractions of the picture's width.
Objects are listed back to front: a later one covers an earlier one.

Shape alphabet: B clips, N objects, T instants, H W pixels, S sprites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glus.datasets.sprites import CONTENT, TILE, Sprites, hue_matrix, load_sprites
from glus.errors import SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = NDArray[np.float64]

WORLD: Final = 0.2  # how far a background reaches beyond the picture on each side, for the camera's sake


@dataclass(frozen=True, slots=True)
class Course:
    """How far along its way an object is at each instant: three stretches of constant speed, then a bend.

    `u(t)` is piecewise linear with speeds `speeds` changing at `knots`; the way is `(1 - bend) u + bend u |u|`.
    """

    knots: tuple[float, float] = (0.4, 0.7)
    speeds: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bend: float = 0.0

    @classmethod
    def stops(cls, when: float) -> Course:
        """Moves from the start, arrives at `when` and stays."""
        return cls((when, when), (1 / when, 0.0, 0.0))

    @classmethod
    def starts_late(cls, when: float) -> Course:
        """Waits until `when`."""
        return cls((when, when), (0.0, 0.0, 1 / (1 - when)))

    @classmethod
    def turns_back(cls, when: float, back: float) -> Course:
        """Reaches the far end at `when`, then comes back over a share `back` of the way."""
        return cls((when, when), (1 / when, 0.0, -back / (1 - when)))


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One object over the whole clip.

    Attributes:
        sprite: index into the sheet.
        size: the larger side of its bounding box, unrotated, at mid-clip, as a fraction of the picture's width.
        x, y: its place where its course is 0, before the camera.
        dx, dy: from there to where its course is 1.
        course: how it gets there.
        flip: mirrored left to right.
        turn, spin: rotation at mid-clip and its change over the clip, radians, clockwise.
        grow: logarithm of the change of size over the clip.
        hue, gain: recolouring on top of `paint`: small for all, so that names and colours stay true.
        paint: name of a recolouring of the sprite, or None for its own colours.
    """

    sprite: int
    size: float
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0
    course: Course = Course()
    flip: bool = False
    turn: float = 0.0
    spin: float = 0.0
    grow: float = 0.0
    hue: float = 0.0
    gain: float = 1.0
    paint: str | None = None


@dataclass(frozen=True, slots=True)
class Camera:
    """Slow pan (fractions of the picture over the clip) and zoom (logarithm of the change over the clip)."""

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 0.0


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the objects.

    Attributes:
        style: a key of `STYLES`, or "photograph".
        seed: of its noise.
        colours: three RGB colours, 0..1.
        strength: contrast of the cloud noise, 0..1.
        decay: amplitude of each finer noise relative to the next coarser.
        angle, pitch: direction of stripes and gradients, and how strongly they recede.
        period: width of a stripe as a fraction of the picture.
        photograph: index of the photograph, for that style.
    """

    style: str = "clouds"
    seed: int = 0
    colours: tuple[tuple[float, float, float], ...] = ((0.5, 0.5, 0.5), (0.3, 0.3, 0.3), (0.7, 0.7, 0.7))
    strength: float = 0.4
    decay: float = 0.6
    angle: float = 0.0
    pitch: float = 0.0
    period: float = 0.15
    photograph: int = 0


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """All numbers of a clip.

    Attributes:
        objects: back to front.
        background, camera: what is behind them, and how the picture moves.
        aspect: height / width of the picture it was composed for; what is said of it is judged at that.
        kind: the kind of phrase it was composed for.
        novel, classes: which names it was composed from, and absent ones are taken from: the held-out ones, or the
            first so many of training (0: all).
    """

    objects: tuple[ObjectSpec, ...]
    background: Background = field(default_factory=Background)
    camera: Camera = field(default_factory=Camera)
    aspect: float = 1.0  # height / width of the picture it was composed for
    kind: str = "category"
    novel: bool = False
    classes: int = 0

    def without(self, *indices: int) -> ClipSpec:
        """The same scene with some objects taken out."""
        return replace(self, objects=tuple(o for n, o in enumerate(self.objects) if n not in indices))


class Tracks(NamedTuple):
    """Where objects are in the picture: (N, T) each; `angle` in radians, `size` a fraction of the width."""

    x: Floats
    y: Floats
    size: Floats
    angle: Floats


_FIELDS = 19  # numbers of an object that its track needs, then those of the camera


def _row(o: ObjectSpec, c: Camera) -> tuple[float, ...]:
    return (
        o.x, o.y, o.dx, o.dy, *o.course.knots, *o.course.speeds, o.course.bend, o.size, o.grow, o.turn, o.spin,
        -1.0 if o.flip else 1.0, c.pan_x, c.pan_y, c.zoom, float(o.sprite),
    )  # fmt: skip


def _tracks(rows: Floats, times: Floats) -> Tracks:
    """(M, _FIELDS) numbers at (M or 1, T) instants."""
    x, y, dx, dy, k1, k2, s1, s2, s3, bend, size, grow, turn, spin, _, pan_x, pan_y, zoom, _ = rows.T[..., None]
    first, second = np.minimum(times, k1), np.minimum(times, k2)
    u = s1 * first + s2 * (second - first) + s3 * (times - second)
    way = u + bend * u * (np.abs(u) - 1)
    late = times - 0.5
    scale = np.exp(zoom * late)
    return Tracks(
        (x + dx * way - 0.5 - pan_x * late) * scale + 0.5,
        (y + dy * way - 0.5 - pan_y * late) * scale + 0.5,
        size * np.exp(grow * late) * scale,
        turn + spin * late,
    )


def tracks(spec: ClipSpec, times: ArrayLike) -> Tracks:
    """Where the objects of a clip are at instants (T,)."""
    rows = np.array([_row(o, spec.camera) for o in spec.objects]).reshape(-1, _FIELDS)
    return _tracks(rows, np.asarray(times, np.float64)[None])


class Rendered(NamedTuple):
    """Pictures of B clips.

    Attributes:
        frames: (B, T, 3, H, W), uint8, or float 0..1 when asked for.
        masks: (B, N, T, H, W) bool: the pixels that are each object's, what covers it taken off. Disjoint.
        present: (B, N) bool: whether the clip has such an object (clips of a batch may have fewer than N).
    """

    frames: Tensor
    masks: Tensor
    present: Tensor


def render(
    specs: Sequence[ClipSpec],
    times: ArrayLike,
    size: tuple[int, int] = (256, 256),
    device: str | torch.device = "cpu",
    sprites: Sprites | None = None,
    *,
    photographs: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Rendered:
    """Draw clips.

    A pixel is an object's when at least half of it is, and no object in front has at least half of it.

    Args:
        specs: B clips.
        times: (T,) or (B, T) instants, 0..1, in any order.
        size: (H, W).
        device: where to draw.
        sprites: the sheet that the specs index; by default the package's.
        photographs: (P, 3, h, w) uint8 on any device, for backgrounds of that style.
        dtype: of the frames: uint8, or a float type for 0..1.
    """
    import torch
    from torch.nn import functional

    sheet = sprites or load_sprites()
    device = torch.device(device)
    height, width = size
    clips = len(specs)
    instants = np.broadcast_to(np.atleast_2d(np.asarray(times, np.float64)), (clips, np.shape(times)[-1]))
    count = instants.shape[1]

    packed = _pack(specs, instants, size, sheet)
    most = packed.sprites.shape[1]

    def send(array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return tensor.to(device, non_blocking=True)

    places, edges, recolour = send(packed.affine), send(packed.limits), send(packed.matrices)
    tiles = sheet.texture(device)[send(packed.sprites)].float() / 255  # (B, N, 4, 96, 144)
    colour = torch.einsum("bnij,bnjhw->bnihw", recolour, tiles[:, :, :3])
    tiles[:, :, :3] = torch.minimum(colour.clamp_(min=0), tiles[:, :, 3:])

    across = (torch.arange(width, device=device) + 0.5) / width
    down = ((torch.arange(height, device=device) + 0.5) / height)[:, None]
    grid = torch.empty(clips, count, height, width, 2, device=device)

    def sample(texture: Tensor, numbers: Tensor, lowest: Tensor | None, highest: Tensor | None) -> Tensor:
        for axis in (0, 1):
            a, b, c = numbers[..., 3 * axis : 3 * axis + 3, None, None].unbind(-3)
            torch.add(a * across, b * down + c, out=grid[..., axis])
        if lowest is not None:
            torch.clamp(grid, lowest, highest, out=grid)
        flat = grid.view(clips, count * height, width, 2)
        found = functional.grid_sample(texture, flat, "bilinear", "border", align_corners=False)
        return found.view(clips, texture.shape[1], count, height, width)

    backdrop = _backdrop(specs, (height, width), device, photographs)
    canvas = sample(backdrop, send(_behind(specs, instants)), None, None)
    labels = torch.full((clips, count, height, width), -1, dtype=torch.int8, device=device)
    for n in range(most):
        near = edges[:, n, None, None, None]  # (B, 1, 1, 1, 4)
        layer = sample(tiles[:, n], places[:, n], near[..., :2], near[..., 2:])
        canvas.addcmul_(canvas, layer[:, 3:], value=-1).add_(layer[:, :3])
        labels.masked_fill_(layer[:, 3] >= 0.5, n)
    numbers = torch.arange(most, dtype=torch.int8, device=device)
    masks = labels[:, None] == numbers[:, None, None, None]
    canvas = canvas.clamp_(0, 1).transpose(1, 2)
    if dtype is None or dtype == torch.uint8:
        frames = canvas.mul(255).add_(0.5).to(torch.uint8, memory_format=torch.contiguous_format)
    else:
        frames = canvas.to(dtype, memory_format=torch.contiguous_format)
    return Rendered(frames, masks, send(packed.present))


class _Packed(NamedTuple):
    """The objects of B clips as arrays, (B, N, ...): sprite, recolouring, affine map and its clamp, whether there."""

    sprites: NDArray[np.int64]
    matrices: Floats
    affine: Floats
    limits: Floats
    present: NDArray[np.bool_]


def _pack(specs: Sequence[ClipSpec], instants: Floats, size: tuple[int, int], sheet: Sprites) -> _Packed:
    shape = (len(specs), max(len(s.objects) for s in specs))
    which = np.array([b for b, s in enumerate(specs) for _ in s.objects], np.int64)
    slot = np.array([n for s in specs for n in range(len(s.objects))], np.int64)
    rows = np.array([_row(o, s.camera) for s in specs for o in s.objects]).reshape(-1, _FIELDS)
    matrices = np.zeros((*shape, 3, 3))
    recolourings = [_recolouring(o, sheet) for s in specs for o in s.objects]
    matrices[which, slot] = np.array(recolourings).reshape(-1, 3, 3)
    affine = np.zeros((*shape, instants.shape[1], 6))
    affine[..., 2] = affine[..., 5] = -9.0  # an absent object: the transparent corner of a tile everywhere
    limits = np.broadcast_to(np.array([-1.0, -1.0, 1.0, 1.0]), (*shape, 4)).copy()
    affine[which, slot], limits[which, slot] = _affine(rows, instants[which], size)
    index = np.zeros(shape, np.int64)
    index[which, slot] = rows[:, -1].astype(np.int64)
    present = np.zeros(shape, np.bool_)
    present[which, slot] = True
    return _Packed(index, matrices, affine, limits, present)


def _recolouring(o: ObjectSpec, sheet: Sprites) -> Floats:
    if o.paint is None:
        return hue_matrix(o.hue, o.gain)
    paint = sheet[o.sprite].paints[o.paint]
    return hue_matrix(o.hue + paint.angle, o.gain * paint.gain, paint.chroma)


def _affine(rows: Floats, times: Floats, size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Picture fraction to atlas coordinate of `grid_sample`: (M, T, 6), and the clamp (M, 4): low u, v, high u, v.

    The mipmap level is chosen once for an object, from its size at mid-clip, so it does not change while one looks.
    """
    height, width = size
    track = _tracks(rows, times)
    pixels = rows[:, 10] * width
    level = np.clip(np.round(np.log2(CONTENT / pixels) - 0.1), 0, 2)
    side = TILE / 2**level
    left = np.where(level > 0, TILE, 0)
    top = np.where(level > 1, TILE // 2, 0)
    texels = (side[:, None] * CONTENT / TILE) / track.size  # texels of that level to a picture width
    cosine, sine = np.cos(track.angle) * texels, np.sin(track.angle) * texels
    tall = height / width
    flip = rows[:, 14, None]
    # rotate back by the object's angle; y grows downwards, so a positive angle is clockwise
    ux, uy = flip * cosine, flip * sine * tall
    vx, vy = -sine, cosine * tall
    half = side[:, None] / 2
    u0 = half + left[:, None] - ux * track.x - uy * track.y
    v0 = half + top[:, None] - vx * track.x - vy * track.y
    wide = 2 / (TILE + TILE // 2)
    high = 2 / TILE
    numbers = np.stack([ux * wide, uy * wide, u0 * wide - 1, vx * high, vy * high, v0 * high - 1], -1)
    bounds = np.stack([left + 0.5, top + 0.5, left + side - 0.5, top + side - 0.5], -1)
    return numbers, bounds * [wide, high, wide, high] - 1


def _behind(specs: Sequence[ClipSpec], times: Floats) -> Floats:
    """Picture fraction to coordinate of the backdrop, which spans -WORLD..1+WORLD: (B, T, 6)."""
    pan_x, pan_y, zoom = np.array([(s.camera.pan_x, s.camera.pan_y, s.camera.zoom) for s in specs]).T[..., None]
    late = times - 0.5
    scale = np.exp(-zoom * late)
    span = 2 / (1 + 2 * WORLD)
    out = np.zeros((*times.shape, 6))
    out[..., 0] = out[..., 4] = scale * span
    out[..., 2] = (0.5 - 0.5 * scale + pan_x * late + WORLD) * span - 1
    out[..., 5] = (0.5 - 0.5 * scale + pan_y * late + WORLD) * span - 1
    return out


# Backgrounds. A style is a function of its clips' numbers and of noise, to (B, 3, h, w); add one by adding a key.


class Ground(NamedTuple):
    """What a style may use, for its B clips.

    Attributes:
        x, y: (1, w) and (h, 1): world coordinates of the texels, in widths and heights of the picture.
        colours: (B, 3, 3): three colours, RGB.
        clouds: (B, 3, h, w) smooth noise of several scales, about -1..1.
        numbers: (B, 5): strength, angle, pitch, period, aspect.
    """

    x: Tensor
    y: Tensor
    colours: Tensor
    clouds: Tensor
    numbers: Tensor

    def number(self, place: int) -> Tensor:
        """One of the numbers as (B, 1, 1)."""
        return self.numbers[:, place, None, None]


Style = Callable[[Ground], "Tensor"]


def _blend(ground: Ground, share: Tensor) -> Tensor:
    """(B, h, w) share to colours: from the first to the second."""
    first, second = ground.colours[:, 0, :, None, None], ground.colours[:, 1, :, None, None]
    return first + (second - first) * share[:, None]


def _clouds(ground: Ground) -> Tensor:
    strength = ground.number(0)[:, None]
    return ground.colours[:, 0, :, None, None] + strength * ground.clouds


def _along(ground: Ground) -> Tensor:
    """Distance along the direction of the gradient or of the stripes' normal, from the middle, in widths."""
    angle = ground.number(1)
    return (ground.x - 0.5) * angle.cos() + (ground.y - 0.5) * ground.number(4) * angle.sin()


def _gradient(ground: Ground) -> Tensor:
    return _blend(ground, (0.5 + 0.8 * _along(ground)).clamp(0, 1)) + 0.25 * ground.number(0)[:, None] * ground.clouds


def _wave(phase: Tensor, blur: Tensor) -> Tensor:
    """A soft square wave 0..1 of period 1; `blur` is how much of a period one texel is."""
    import torch

    edge = torch.sin(2 * math.pi * phase) / (0.12 + 3 * blur)
    return 0.5 + 0.5 * edge.clamp(-1, 1) * (1 - 2 * blur).clamp(0, 1)


def _receding(ground: Ground) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates on a floor that recedes towards the top of the picture, and texels to a period."""
    depth = 1 / (1.25 + ground.number(2) * (ground.y - 1.2)).clamp(min=0.15)  # larger is farther
    angle, period = ground.number(1), ground.number(3)
    side = (ground.x - 0.5) * depth
    along = depth * ground.number(4) / ground.number(2).clamp(min=0.2)
    blur = depth.square() / (period * ground.x.shape[-1]) * (1 + 0 * side)
    u = (side * angle.cos() + along * angle.sin()) / period
    v = (along * angle.cos() - side * angle.sin()) / period
    return u, v, blur


def _stripes(ground: Ground) -> Tensor:
    u, _, blur = _receding(ground)
    return _blend(ground, _wave(u, blur)) + 0.3 * ground.number(0)[:, None] * ground.clouds


def _checks(ground: Ground) -> Tensor:
    u, v, blur = _receding(ground)
    a, b = _wave(u, blur), _wave(v, blur)
    return _blend(ground, a + b - 2 * a * b) + 0.3 * ground.number(0)[:, None] * ground.clouds


STYLES: dict[str, Style] = {"clouds": _clouds, "gradient": _gradient, "stripes": _stripes, "checks": _checks}


def _backdrop(
    specs: Sequence[ClipSpec], size: tuple[int, int], device: torch.device, photographs: Tensor | None
) -> Tensor:
    """(B, 3, h, w) float, the world around each picture; texels as large as pixels, up to 640 of them."""
    import torch
    from torch.nn import functional

    height, width = (min(640, 2 * round(n * (0.5 + WORLD))) for n in size)
    x = ((torch.arange(width, device=device) + 0.5) / width * (1 + 2 * WORLD) - WORLD)[None]
    y = ((torch.arange(height, device=device) + 0.5) / height * (1 + 2 * WORLD) - WORLD)[:, None]
    out = torch.empty(len(specs), 3, height, width, device=device)
    styles: dict[str, list[int]] = {}
    for b, spec in enumerate(specs):
        styles.setdefault(spec.background.style, []).append(b)
    for style, members in styles.items():
        grounds = [specs[b].background for b in members]
        rows = torch.tensor(members, device=device)
        if style == "photograph":
            if photographs is None:
                raise SettingError("a clip has a photograph behind it, but render() was given no photographs")
            chosen = photographs[[g.photograph % len(photographs) for g in grounds]].to(device).float() / 255
            out[rows] = functional.interpolate(chosen, (height, width), mode="bilinear", align_corners=False)
            continue
        if style not in STYLES:
            raise SettingError(f"no background style {style!r}; there are {', '.join(STYLES)} and photograph")
        numbers = [
            (g.strength, g.angle, g.pitch, g.period, specs[b].aspect) for g, b in zip(grounds, members, strict=True)
        ]
        seeds = torch.tensor([g.seed for g in grounds], device=device)
        decay = torch.tensor([g.decay for g in grounds], device=device)
        out[rows] = STYLES[style](
            Ground(
                x,
                y,
                torch.tensor([g.colours for g in grounds], device=device),
                _noise(seeds, decay, (height, width)),
                torch.tensor(numbers, device=device),
            )
        )
    return out.clamp_(0, 1)


def _noise(seeds: Tensor, decay: Tensor, size: tuple[int, int]) -> Tensor:
    """Colour clouds (B, 3, h, w): noise on lattices of 4 to 64 points, up-sampled and summed; about -1..1.

    The lattice values are integer hashes, so they are the same on every device.
    """
    import torch
    from torch.nn import functional

    out = torch.zeros(len(seeds), 3, *size, device=seeds.device)
    total = torch.zeros(len(seeds), device=seeds.device)
    for octave in range(5):
        side = 4 << octave
        place = torch.arange(3 * side * side, device=seeds.device)
        mixed = (seeds[:, None] * 2654435761 + place * 40503 + octave * 97531 + 12345) & 0xFFFFFFFF
        for factor in (0x45D9F3B, 0x119DE1F3):  # products stay below 2^63
            mixed = ((mixed ^ (mixed >> 16)) * factor) & 0xFFFFFFFF
        lattice = ((mixed ^ (mixed >> 15)) & 0xFFFF).float().view(-1, 3, side, side) / 32767.5 - 1
        weight = decay**octave
        total += weight.square()
        smooth = functional.interpolate(lattice, size, mode="bilinear", align_corners=True)
        out.addcmul_(smooth, weight[:, None, None, None])
    return out / total.sqrt()[:, None, None, None]
