"""Masks drawn over frames, frames written as H.264 in MP4. Knows PyAV; not where frames come from."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import av
import numpy as np
from numpy.typing import NDArray

from .errors import SettingError, VideoError
from .masks import BoolMask

if TYPE_CHECKING:
    from .frame_source import FrameSource

Image8 = NDArray[np.uint8]

# Okabe and Ito's colours, told apart with any common colour blindness; black is left out, it reads as a hole.
OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_FINEST_TICK = 90_000  # per second: MP4's customary clock, 11 microseconds
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers


def object_colour(index: int) -> tuple[int, int, int]:
    """RGB, 0..255, of object `index`: seven hues, then the same darker, then lighter, then again."""
    hue, shade = OKABE_ITO[index % 7], index // 7 % 3
    if shade == 0:
        return hue
    red, green, blue = (c * 11 // 20 if shade == 1 else (c + 255) // 2 for c in hue)
    return red, green, blue


# x264 by itself holds dozens of pictures to look ahead: 80 MB at 720p. These cost a fifth in file size instead.
_FEW_PICTURES = "rc-lookahead=4:sync-lookahead=0:sliced-threads=1:bframes=0:ref=1"


class VideoWriter:
    """Writes (H, W, 3) uint8 RGB frames as H.264, yuv420p, in a fast-start MP4. A context manager.

    The file appears under its name when the `with` block ends well (or `close()` is called) and not at all
    otherwise: it grows beside it under a temporary name. H.264 in yuv420p needs even sides, so an odd width
        or height
    is padded by one pixel, the last column or row repeated; `encoded_size` is what the file has.

    Args:
        path: the file to write; an existing one is replaced on success.
        width: pixels, at least 1.
        height: pixels, at least 1.
        fps: frames per second, exact (29.97 is Fraction(30000, 1001)); where `write` is given times it only
            labels.

    Raises SettingError for sizes and rates out of range, VideoError when the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], width: int, height: int, fps: Fraction) -> None:
        if width < 1 or height < 1 or not 0 < fps <= 1000:
            raise SettingError(
                f"{width}x{height} at {fps} frames per second; wanted sides of 1 or more, 0 < fps <= 1000"
            )
        self.path = Path(path)
        self.width, self.height = width, height
        self.encoded_size = (width + width % 2, height + height % 2)
        self.frames_written = 0
        rate = Fraction(fps).limit_denominator(100_000)
        # A clock in which a frame's duration is a whole number, fine enough for times given by hand.
        multiple = max(1, math.ceil(_FINEST_TICK / rate.numerator))
        self._clock = rate.numerator * multiple if rate.numerator <= 1_000_000 else _FINEST_TICK
        self._step = self._clock / rate
        self._due = Fraction(0)  # pts of the next frame when no time is given
        self._last: int | None = None
        try:
            self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
            self._partial.open("xb").close()
        except OSError as error:
            raise VideoError(
                f"cannot write {self.path} ({error.strerror}); wanted a folder that exists and is writable"
            ) from error
        try:
            self._container = av.open(
                str(self._partial),
                "w",
                format="mp4",
                options={"movflags": "+faststart", "movie_timescale": str(self._clock)},
            )
            self._stream = self._container.add_stream(
                "libx264", rate=rate, options={"crf": "18", "preset": "veryfast", "x264-params": _FEW_PICTURES}
            )
            self._stream.width, self._stream.height = self.encoded_size
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.time_base = Fraction(1, self._clock)
            # Untagged colours are guessed from the size by players: say which they are.
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        self._open = True

    def write(self, frame: Image8, time: float | None = None) -> None:
        """Append a frame.

        Args:
            frame: (height, width, 3) uint8 RGB.
            time: seconds, 0 or more and above the previous frame's; None follows the previous frame at the
                rate.

        Raises SettingError for another shape or dtype or a time out of order, VideoError when encoding fails.
        """
        if not self._open:
            raise VideoError(f"{self.path} is closed; wanted frames before that")
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise SettingError(
                f"frame {self.frames_written} has shape {frame.shape} and dtype {frame.dtype}; "
                f"wanted ({self.height}, {self.width}, 3) uint8 RGB"
            )
        pts = round(self._due if time is None else time * self._clock)
        if pts < 0 or (self._last is not None and pts <= self._last):
            before = "" if self._last is None else f", after {self._last / self._clock:.6f} s"
            raise SettingError(f"frame {self.frames_written} at {time} s{before}; wanted times from 0 that increase")
        wide, high = self.encoded_size
        if (wide, high) != (self.width, self.height):
            frame = np.pad(frame, ((0, high - self.height), (0, wide - self.width), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED)
        picture.pts, picture.time_base = pts, Fraction(1, self._clock)
        picture.duration = round(self._step)
        self._due = (self._due if time is None else Fraction(pts)) + self._step
        self._last = pts
        self._encode(picture)
        self.frames_written += 1

    def close(self) -> None:
        """Finish the file and give it its name. Raises VideoError when no frame was written."""
        if not self._open:
            return
        try:
            if self.frames_written == 0:
                raise VideoError(f"no frame was written to {self.path}; wanted at least one")
            self._encode(None)
            self._open = False
            self._container.close()
            self._partial.replace(self.path)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot write {self.path} ({error})") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop what was written; no file remains."""
        self._open = False
        try:
            self._container.close()
        except (av.FFmpegError, OSError, ValueError):
            pass  # an MP4 without frames cannot be finished, and need not be
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot write {self.path} ({error}); is the disk full?") from error


def draw_overlay(
    frame: Image8, masks: Sequence[BoolMask], labels: Sequence[str] | None = None, alpha: float = 0.5
) -> Image8:
    """A copy of a frame with masks tinted and outlined, a colour per object, and a legend in the top left
    corner.

    Args:
        frame: (H, W, 3) uint8 RGB; left as it is.
        masks: (H, W) bool each; the position decides the colour, so an object keeps its own when others are
            empty.
        labels: one line of text per mask; longer than the picture is wide, they end in an ellipsis. None for
            no legend.
        alpha: 0..1, share of the colour inside a mask.

    Raises SettingError for a mask of another shape, a label too few or many, alpha out of range.
    """
    import cv2

    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha {alpha}; wanted 0 to 1")
    if labels is not None and len(labels) != len(masks):
        raise SettingError(f"{len(labels)} labels for {len(masks)} masks; wanted one each")
    height, width = frame.shape[:2]
    drawn = frame.copy()
    thickness = max(1, round(min(height, width) / 300))
    for index, mask in enumerate(masks):
        if mask.shape != (height, width) or mask.dtype != np.bool_:
            raise SettingError(
                f"mask {index} has shape {mask.shape} and dtype {mask.dtype}; wanted ({height}, {width}) bool"
            )
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            continue
        colour = np.array(object_colour(index), np.float32)
        inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        shape, part = mask[inside], drawn[inside]
        part[shape] = (part[shape] * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)
        side = 2 * thickness + 1
        core = cv2.erode(
            np.pad(shape.astype(np.uint8), side),  # so that the box's own border counts as outline
            np.ones((side, side), np.uint8),
        )[side:-side, side:-side]
        part[shape & (core == 0)] = colour.astype(np.uint8)
    if labels:
        legend = _legend(tuple(labels), width, height)
        top, left = min(4, height - legend.shape[0]), min(4, width - legend.shape[1])
        below = drawn[top : top + legend.shape[0], left : left + legend.shape[1]]
        share = legend[..., 3:] / np.float32(255)
        below[:] = (below * (1 - share) + legend[..., :3] * share + 0.5).astype(np.uint8)
    return drawn


def write_overlay(
    path: str | os.PathLike[str],
    source: FrameSource,
    masks: Callable[[int], Sequence[BoolMask]],
    labels: Sequence[str] | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a source's frames with their masks drawn over them, at its rate and times, as H.264 in MP4.

    Args:
        path: the MP4 to write; it appears whole or not at all.
        source: the frames.
        masks: called with 0, 1, 2, ...; returns the (H, W) bool masks of that frame, the same objects in the
            same order.
        labels: one text per object, or None.
        progress: called with the number of frames written so far, after each.

    Raises VideoError, SettingError; and whatever `masks` and `progress` raise.
    """
    # Times are passed on where the rate alone does not say them. MP4 has none below 0: such clips start at 0.
    own_times = source.variable_rate or source.times[0] > 0
    shift = min(0.0, float(source.times[0]))
    with VideoWriter(path, source.width, source.height, source.fps) as writer:
        for index, frame in enumerate(source.frames()):
            drawn = draw_overlay(frame, masks(index), labels)
            writer.write(drawn, float(source.times[index]) - shift if own_times else None)
            if progress is not None:
                progress(index + 1)


@lru_cache(maxsize=8)
def _legend(labels: tuple[str, ...], width: int, height: int) -> Image8:
    """(h, w, 4) RGBA, no larger than the frame: a swatch and a line of text per object, on a dark ground."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(10, round(min(width, height) / 28))  # pixels; below 10 letters run together
    line, margin = round(size * 1.35), max(2, size // 4)
    fit = max(1, (height - 2 * margin) // line)
    shown = list(labels)
    if len(shown) > fit:
        shown = [*shown[: fit - 1], f"+{len(shown) - fit + 1} more"]
    font = ImageFont.load_default(size)
    room = width - 3 * margin - size
    texts = [_shortened(" ".join(text.split()), room, font.getlength) for text in shown]
    wide = min(width, math.ceil(3 * margin + size + max(font.getlength(text) for text in texts)))
    high = min(height, 2 * margin + line * len(texts))
    image = Image.new("RGBA", (wide, high), (0, 0, 0, 170))
    draw = ImageDraw.Draw(image)
    for row, text in enumerate(texts):
        top = margin + row * line
        if row < len(labels) and not (len(labels) > fit and row == fit - 1):
            draw.rectangle((margin, top + line // 5, margin + size - 1, top + line // 5 + size - 1), object_colour(row))
        draw.text((2 * margin + size, top + line / 2), text, (255, 255, 255, 255), font, anchor="lm")
    legend: Image8 = np.asarray(image).copy()
    legend.setflags(write=False)
    return legend


def _shortened(text: str, room: float, length: Callable[[str], float]) -> str:
    """As much of the text as fits, ending in an ellipsis when cut; nothing when not even that fits."""
    if length(text) <= room:
        return text
    low, high = 0, len(text)
    while low < high:  # most characters that fit; binary search, since sentences may be long
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(text[:middle].rstrip() + "…") <= room else (low, middle - 1)
    return text[:low].rstrip() + "…" if low else ""
