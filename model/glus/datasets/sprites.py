"""The pictures that synthetic clips are made of, with what can be said of each. Knows numpy; not scenes or torch.

`assets/sprites/` holds one WebP sheet and `names.json`; `scripts/make_sprites` writes both and explains how. A sprite
is a square tile of `TILE` texels: the object fills at most `CONTENT` of them, centred by its bounding box, so the
border texels are transparent, at every mipmap level.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from glus.errors import SettingError

if TYPE_CHECKING:
    import torch

FOLDER: Final = Path(__file__).parent.parent / "assets" / "sprites"
TILE: Final = 96
CONTENT: Final = 88  # a margin of 4 texels: still one of them at the mipmap level of a quarter
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
PAINTS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
HUE_JITTER: Final = 0.07  # radians; colour names were checked to hold within it
GAIN_JITTER: Final = 0.10

_CLEAR = 0.55  # share of the pixels that earns a colour's name, with margins between the hues
_ABSENT = 0.12  # share of the pixels, with the ranges of hue made wide, below which a colour is surely not there

_NEIGHBOURS: Final = {
    "pink red", "orange red", "orange yellow", "blue purple", "pink purple", "brown orange", "brown red", "grey white",
    "black grey", "black brown",
}  # fmt: skip

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paint:
    """A recolouring after which the sprite has a clear colour, see `hue_matrix`; and the colours not in it then."""

    angle: float
    gain: float
    chroma: float
    absent: frozenset[str]


@dataclass(frozen=True)
class Sprite:
    """What is known of one picture.

    Attributes:
        name: singular noun of one to three words.
        plural: the same for several.
        code: Unicode code points, as in the package's file names.
        novel: held out from training.
        group: sprites of one group are never two classes of one clip ("bird" is true of a duck too).
        width, height: bounding box as a fraction of `CONTENT`; the larger is 1.
        area: opaque texels as a fraction of `CONTENT` squared.
        colour: its one clear colour, or None.
        absent: colours that are surely not in it.
        paints: colour names it can be given.
    """

    name: str
    plural: str
    code: str
    novel: bool
    group: int
    width: float
    height: float
    area: float
    colour: str | None
    absent: frozenset[str]
    paints: dict[str, Paint]


class Sprites:
    """All sprites of the sheet. `sprites[7].name`; pixels and texture are read when first asked for."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        table = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        if table["tile"] != TILE or table["content"] != CONTENT:
            raise SettingError(f"{folder}/names.json is for tiles of {table['tile']} texels, wanted {TILE}")
        self.columns = int(table["columns"])
        self.items = tuple(_sprite(row) for row in table["sprites"])
        self.train: tuple[int, ...] = tuple(table["train"])  # indices, everyday names first: a prefix is a subset
        self.novel: tuple[int, ...] = tuple(table["novel"])
        self._textures: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sprite:
        return self.items[index]

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """(S, 96, 96, 4) RGBA, premultiplied."""
        from PIL import Image

        with Image.open(self.folder / "sheet.webp") as picture:
            sheet = np.asarray(picture.convert("RGBA"))
        rows = sheet.shape[0] // TILE
        tiles = sheet.reshape(rows, TILE, self.columns, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4)
        tiles = tiles[: len(self)].astype(np.uint16)
        tiles[..., :3] = (tiles[..., :3] * tiles[..., 3:] + 127) // 255
        return tiles.astype(np.uint8)

    @cached_property
    def atlas(self) -> NDArray[np.uint8]:
        """(S, 4, 96, 144): level 0 on the left, level 1 (48 texels) right of it, level 2 (24) below level 1."""
        full = self.pixels.transpose(0, 3, 1, 2)
        out = np.zeros((len(self), 4, TILE, TILE + TILE // 2), np.uint8)
        out[..., :TILE] = full
        level = full.astype(np.uint16)
        for top, side in ((0, TILE // 2), (TILE // 2, TILE // 4)):
            level = level[..., ::2, ::2] + level[..., ::2, 1::2] + level[..., 1::2, ::2] + level[..., 1::2, 1::2]
            level = (level + 2) // 4
            out[..., top : top + side, TILE : TILE + side] = level
        return out

    def texture(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """The atlas as a uint8 tensor on `device`, kept for the next call."""
        import torch

        key = str(torch.device(device))
        if key not in self._textures:
            self._textures[key] = torch.from_numpy(self.atlas).to(device)
        return self._textures[key]


@cache
def load_sprites() -> Sprites:
    """The sheet that ships with the package, read once."""
    return Sprites()


def hue_matrix(angle: float, gain: float, chroma: float = 1.0) -> Floats:
    """(3, 3) matrix on RGB columns.

    Args:
        angle: rotation of the hue about grey, in radians; luma is kept.
        gain: factor on everything.
        chroma: factor on the distance from grey.
    """
    c, s = math.cos(angle), math.sin(angle)
    luma = np.array([[0.299, 0.587, 0.114]] * 3)
    cosine = np.array([[0.701, -0.587, -0.114], [-0.299, 0.413, -0.114], [-0.299, -0.587, 0.886]])
    sine = np.array([[0.168, 0.330, -0.497], [-0.328, 0.035, 0.292], [1.250, -1.050, -0.203]])
    return np.asarray(gain * (luma + chroma * (c * cosine + s * sine)))


def colour_shares(rgb: Floats, *, wide: bool) -> dict[str, float]:
    """Share of the pixels (P, 3), 0..1 each, that are called each colour.

    With `wide` the ranges overlap and touch: what might be called red. Without, gaps lie between them: what must be.
    """
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    saturation = chroma / np.maximum(high, 1e-6)
    r, g, b = rgb.T
    safe = np.maximum(chroma, 1e-6)
    sector = np.where(high == r, ((g - b) / safe) % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = sector * 60
    more = 7.0 if wide else 0.0  # degrees
    slack = 0.08 if wide else 0.0

    def between(start: float, stop: float) -> NDArray[np.bool_]:
        return np.asarray((hue - start + more) % 360 <= stop - start + 2 * more)

    vivid = (saturation > 0.30 - slack) & (high > 0.30 - slack)
    bright = vivid & (high > 0.62 - slack)
    pale = (saturation < 0.55 + slack) & (high > 0.78 - slack)
    strong = saturation > 0.60 - slack
    masks = {
        "red": vivid & strong & (high > 0.45 - slack) & between(338, 373),
        "orange": bright & (saturation > 0.5 - slack) & between(17, 38),
        "yellow": bright & (high > 0.70 - slack) & between(43, 64),
        "green": vivid & between(80, 160),
        "blue": vivid & between(195, 241),
        "purple": vivid & between(249 if wide else 257, 288),  # indigo might be called either
        "pink": bright & (between(298, 331) | (pale & between(331, 366))),
        "brown": (saturation > 0.25 - slack) & (high < 0.68 + slack) & (high > 0.2 - slack) & between(8, 38),
        "black": high < 0.26 + slack,
        "white": (saturation < 0.14 + slack) & (high > 0.84 - slack),
        "grey": (saturation < 0.14 + slack) & (high > 0.32 - slack) & (high < 0.76 + slack),
    }
    return {name: float(mask.mean()) for name, mask in masks.items()}


def colours_of(
    rgb: Floats, *, angle: float = 0.0, gain: float = 1.0, chroma: float = 1.0
) -> tuple[str | None, frozenset[str]]:
    """The one clear colour of pixels (P, 3) after a recolouring, or None; and the colours that are surely not there.

    Both hold over the jitter that a scene may add.
    """
    clear: set[str | None] = set()
    absent = set(COLOURS)
    for turn in (-HUE_JITTER, 0.0, HUE_JITTER):
        for more in (1 - GAIN_JITTER, 1 + GAIN_JITTER):
            seen = np.clip(rgb @ hue_matrix(angle + turn, gain * more, chroma).T, 0, 1)
            sure, maybe = colour_shares(seen, wide=False), colour_shares(seen, wide=True)
            best = max(sure, key=sure.__getitem__)
            rivals = [share for name, share in maybe.items() if name != best and not _alike(name, best)]
            clear.add(best if sure[best] >= _CLEAR and max(rivals) <= 0.3 else None)
            absent -= {name for name, share in maybe.items() if share > _ABSENT}
    colour = clear.pop() if len(clear) == 1 else None
    return colour, frozenset(absent - {colour or ""})


def _alike(a: str, b: str) -> bool:
    """Neighbours whose wide ranges overlap by construction: no rivals."""
    return " ".join(sorted((a, b))) in _NEIGHBOURS


def _sprite(row: dict[str, Any]) -> Sprite:
    def names(bits: int) -> frozenset[str]:
        return frozenset(name for place, name in enumerate(COLOURS) if bits >> place & 1)

    return Sprite(
        name=row["name"],
        plural=row["plural"],
        code=row["code"],
        novel=row["split"] == "novel",
        group=row["group"],
        width=row["width"],
        height=row["height"],
        area=row["area"],
        colour=row["colour"],
        absent=names(row["absent"]),
        paints={
            name: Paint(angle, gain, chroma, names(bits)) for name, (angle, gain, chroma, bits) in row["paints"].items()
        },
    )
