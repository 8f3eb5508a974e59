"""What frames are read from: the protocol, folders of pictures, arrays, and their checks. Not video files.

The index of a frame is its place in presentation order, from 0.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import NoVideoStream, SettingError, VideoError, VideoNotFound
from .read_ahead import read_ahead

Image8 = NDArray[np.uint8]

DEFAULT_FPS = Fraction(30)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


@runtime_checkable
class FrameSource(Protocol):
    """What the model reads from: (H, W, 3) uint8 RGB pictures by index, 0 at the first frame presented.

    Attributes:
        name: short name for messages.
        fps: average rate, frames per second.
        width: pixels, after rotation.
        height: pixels, after rotation.
        times: (N,) float64 seconds in presentation order; the first need not be 0.
        variable_rate: whether the spacing of `times` varies beyond the container's rounding.
    """

    name: str
    fps: Fraction
    width: int
    height: int
    times: NDArray[np.float64]
    variable_rate: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image8: ...

    def frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Image8]:
        """The frames that `range(len(self))[start:stop:step]` names, in that order; step is 1 or -1."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class BaseSource:
    """What all sources share: indices, spans, reading ahead."""

    name: str
    fps: Fraction
    width: int
    height: int
    times: NDArray[np.float64]
    variable_rate: bool = False

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int, /) -> Image8:
        """Frame `index`, (H, W, 3) uint8 RGB; negative as in a list. Raises IndexError, VideoError."""
        return self._read(self._position(index))

    def frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Image8]:
        """The frames that `range(len(self))[start:stop:step]` names, in that order, as (H, W, 3) uint8 RGB.

        Args:
            start: index of the first frame; negative counts from the end, as in a slice.
            stop: index before which to stop, exclusive; None goes through the last frame (step 1) or frame 0
                (-1).
            step: 1 or -1.

        Frames are prepared on a background thread, at most 8 ahead; the thread ends with the iterator.
        Raises SettingError for another step; the iterator raises VideoError where a frame cannot be read.
        """
        wanted = self._span(start, stop, step)
        return read_ahead(lambda _: map(self._read, wanted))

    def close(self) -> None:
        """Let go of files. Iterators under way keep their own and finish."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self, index: int) -> Image8:
        raise NotImplementedError

    def _position(self, index: int) -> int:
        index, count = operator.index(index), len(self)
        if not -count <= index < count:
            raise IndexError(f"frame {index} of {self.name}, which has {count} frames")
        return index % count

    def _span(self, start: int, stop: int | None, step: int) -> range:
        if step not in {1, -1}:
            raise SettingError(f"step {step!r}; wanted 1 (forward) or -1 (backward)")
        return range(len(self))[start:stop:step]

    def _set_even_times(self, count: int, fps: Fraction | float | None) -> None:
        self.fps = as_rate(fps, DEFAULT_FPS)
        self.times = frozen(np.arange(count) / float(self.fps))


class FrameArrays(BaseSource):
    """A sequence of (H, W, 3) uint8 RGB arrays, or one (N, H, W, 3) array; not copied, checked when read.

    Raises NoVideoStream when empty, VideoError where an array is of another shape or dtype than the first.
    """

    def __init__(
        self,
        arrays: Sequence[Any] | NDArray[Any],
        *,
        fps: Fraction | float | None = None,
        name: str = "arrays",
    ) -> None:
        if isinstance(arrays, np.ndarray) and arrays.ndim != 4:
            raise VideoError(f"{name}: an array of shape {arrays.shape}; wanted (N, H, W, 3), or a list of (H, W, 3)")
        if len(arrays) == 0:
            raise NoVideoStream(f"{name}: no frames; wanted at least one (H, W, 3) uint8 array")
        self.name = name
        self._arrays = arrays
        self._set_even_times(len(arrays), fps)
        self.width = self.height = 0
        self.height, self.width = self._read(0).shape[:2]

    def _read(self, index: int) -> Image8:
        array = np.asarray(self._arrays[index])
        wanted = (self.height or "H", self.width or "W", 3)
        fits = array.ndim == 3 and array.shape[2] == 3 and 0 not in array.shape and array.dtype == np.uint8
        if not fits or (self.width and array.shape != wanted):
            raise VideoError(
                f"{self.name}: frame {index} has shape {array.shape} and dtype {array.dtype}; "
                f"wanted ({', '.join(map(str, wanted))}) uint8 RGB"
            )
        return cast("Image8", array)


class ImageFolder(BaseSource):
    """A folder of pictures of one size, in the natural order of their names (frame2 before frame10).

    Reads jpg, png, webp, bmp and tiff; hidden files, other files and folders are passed over. EXIF
    orientation is applied; grey, palette, 16-bit and CMYK pictures become 8-bit RGB, transparent ones lie
    over black. Raises VideoNotFound, NoVideoStream when it holds no picture; VideoError, naming the file,
    when one cannot be read or differs in size from the first.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: Fraction | float | None = None) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise VideoNotFound(f"no folder {folder}; wanted a folder of pictures")
        self.name = folder.name or str(folder)
        self.paths = sorted(
            (
                file
                for file in folder.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
            ),
            key=lambda file: (_natural(file.name), file.name),
        )
        if not self.paths:
            raise NoVideoStream(f"no pictures in {folder}; wanted jpg, png, webp, bmp or tiff files directly in it")
        self._set_even_times(len(self.paths), fps)
        self.width = self.height = 0
        self.height, self.width = self._read(0).shape[:2]

    def _read(self, index: int) -> Image8:
        path = self.paths[index]
        try:
            image = _read_image(path)
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
            raise VideoError(
                f"cannot read picture {path} ({error}); wanted an 8- or 16-bit jpg, png, webp, bmp or tiff; "
                "save it again, or take it out of the folder"
            ) from error
        if self.width and image.shape != (self.height, self.width, 3):
            raise VideoError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, the first picture {self.paths[0].name} is "
                f"{self.width}x{self.height}; wanted one size throughout"
            )
        return image


def _read_image(path: Path) -> Image8:
    """(H, W, 3) uint8 RGB, upright."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey
            grey = (np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode == "F":
            raise ValueError("a picture of floating-point numbers, whose range is unknown")
        if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
            return over_black(np.asarray(image.convert("RGBA")))
        return np.array(image.convert("RGB"))


def over_black(image: Image8) -> Image8:
    """(H, W, 4) uint8 with straight alpha to (H, W, 3)."""
    colour, alpha = image[..., :3], image[..., 3:]
    if alpha.min() == 255:
        return colour
    return ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _natural(name: str) -> list[str | int]:
    # re.split alternates text and digits, so that neighbours compare like with like
    return [int(part) if at % 2 else part.casefold() for at, part in enumerate(re.split(r"(\d+)", name))]


def as_rate(fps: Fraction | float | None, default: Any) -> Any:
    """Frames per second as a fraction; `default` for None. Raises SettingError unless above 0 and finite."""
    if fps is None:
        return default
    if not 0 < fps < float("inf"):
        raise SettingError(f"fps {fps}; wanted frames per second above 0")
    return fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(1001)


def frozen(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same array, no longer writable."""
    times.setflags(write=False)
    return times
