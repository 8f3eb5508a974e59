"""Video as frames in presentation order: files, picture folders, arrays. Knows PyAV; not torch or models.

The index of a frame is its place among the pictures that a decoder yields when the whole video is played once
from its beginning. A file's table of frames comes from reading its packets, which decodes nothing, wherever
container and codec promise one picture per packet; otherwise, and whenever decoding disagrees with the table,
the file is decoded once to count. Jumps are checked against the table, so an index means the same frame
however it is reached.
"""

from __future__ import annotations

import operator
import os
import queue
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from .errors import NoVideoStream, SettingError, VideoError, VideoNotFound
from .video_writer import VideoWriter, draw_overlay, write_overlay

__all__ = [
    "FrameArrays",
    "FrameSource",
    "ImageFolder",
    "VideoFile",
    "VideoWarning",
    "VideoWriter",
    "draw_overlay",
    "open_video",
    "write_overlay",
]

Image8 = NDArray[np.uint8]

DEFAULT_FPS = Fraction(30)
AHEAD = 8  # frames decoded ahead of the reader: 50 MB at 1080p
STRETCH = 32  # most frames held at once when going backward
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

# One picture per packet holds for these; VP8 (hidden reference frames), MPEG-4 in AVI (packed B-frames), raw
# streams and transport streams (fields, missing times) are counted by decoding them once.
_PLAIN_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "libdav1d", "ffv1", "prores", "mjpeg"})
_MATROSKA = "matroska,webm"
_PLAIN_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", _MATROSKA})
# FFmpeg "plays" text as ANSI art and follows playlists to other files: neither is a video of ours.
_TEXT_FORMATS = frozenset({"tty", "hls", "dash", "concat", "ffmetadata", "bin"})
_READ_ON = 8  # frames; a jump costs more than decoding these


class VideoWarning(UserWarning):
    """A video was readable only in part; the message says how many of how many frames."""


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


class _Source:
    """What the three sources share: indices, spans, reading ahead."""

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
        return _ahead(lambda _: map(self._read, wanted))

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
        self.fps = _as_rate(fps, DEFAULT_FPS)
        self.times = _frozen(np.arange(count) / float(self.fps))


def open_video(source: object, *, fps: Fraction | float | None = None) -> FrameSource:
    """Open whatever holds frames.

    Args:
        source: path of a video file or of a folder of pictures, a sequence of (H, W, 3) uint8 RGB arrays or
            one (N, H, W, 3) array, or an open FrameSource, which is returned as it is.
        fps: frames per second of sources that carry no times of their own (folders, arrays, raw streams); 30
            when None. Ignored for others.

    Raises VideoNotFound, NoVideoStream, VideoError.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(os.fspath(source))
        if "://" in str(source):
            raise VideoNotFound(
                f"{source} is an address; wanted a path: download the video and open the file"
            )
        return ImageFolder(path, fps=fps) if path.is_dir() else VideoFile(path, fps=fps)
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, np.ndarray) or (
        isinstance(source, Sequence) and not isinstance(source, bytes | bytearray)
    ):
        return FrameArrays(source, fps=fps)
    raise VideoError(
        f"cannot read frames from a {type(source).__name__}; wanted a path, a sequence of (H, W, 3) uint8 "
        "arrays or an open FrameSource"
    )


class FrameArrays(_Source):
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
            raise VideoError(
                f"{name}: an array of shape {arrays.shape}; wanted (N, H, W, 3), or a list of (H, W, 3)"
            )
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


class ImageFolder(_Source):
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
            raise NoVideoStream(
                f"no pictures in {folder}; wanted jpg, png, webp, bmp or tiff files directly in it"
            )
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


class VideoFile(_Source):
    """A video file, anything that FFmpeg reads, as 8-bit RGB frames in presentation order.

    Rotation metadata is applied, alpha lies over black, sample aspect ratio and mirroring are left alone;
    frames of another size midway are scaled to the first one's. Random access and iterators have decoders of
    their own, so any number may be in use at once. Streams without times (raw H.264) can only be reached by
    decoding from their beginning. When part of the file cannot be decoded, the frames that can are the video:
    one VideoWarning says how many of how many, at the latest when the damage is met, and `len()`, `times`
    shrink.

    Raises VideoNotFound; NoVideoStream for sound or text; VideoError when nothing can be decoded.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fps: Fraction | float | None = None, ahead: int = AHEAD
    ) -> None:
        self.path = Path(path).absolute()
        self.name = self.path.name
        self._depth = ahead
        self._rate = _as_rate(fps, None)
        self._lock = threading.Lock()  # the decoder of random access
        self._table_lock = threading.Lock()
        self._unsaid: str | None = None
        self._closed = False
        self._look()
        self._decoder = _Decoder(self.path, self._table)
        self._tell()

    def __len__(self) -> int:
        return self._table.count

    def frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Image8]:
        """As `FrameSource.frames`, from a decoder and on a thread of its own; VideoError once closed."""
        self._check_open()
        table, wanted = self._table, self._span(start, stop, step)
        return _ahead(lambda stopped: self._walk(wanted, table, stopped), self._depth, self._tell)

    def __getitem__(self, index: int, /) -> Image8:
        """Frame `index`, (H, W, 3) uint8 RGB; negative as in a list. Raises IndexError, VideoError."""
        with self._lock:
            self._check_open()
            if self._decoder.table is not self._table:  # an iterator has met damage
                self._decoder.restart(self._table)
            while True:
                try:
                    frame = self._decoder.frame_at(self._position(index))
                    return self._decoder.picture(frame, self.width, self.height, self._turns)
                except _DisagreementError:
                    self._decoder.restart(self._recount(self._decoder.table))
                    self._tell()

    def close(self) -> None:
        """Close the decoder of random access. Iterators under way keep theirs and finish."""
        with self._lock:
            self._closed = True
            self._decoder.close()

    def _check_open(self) -> None:
        if self._closed:
            raise VideoError(f"{self.name} has been closed; open it again to read frames")

    def _walk(self, wanted: range, table: _Table, stopped: threading.Event) -> Iterator[Image8]:
        """The frames of `wanted`; backward one stretch at a time, decoded forward, then turned round."""
        with closing(_Decoder(self.path, table, stopped)) as decoder:
            while wanted:
                first = wanted[0]
                low = first
                if wanted.step == -1:
                    low = max(decoder.start_of(first), first - STRETCH + 1, wanted[-1])
                try:
                    stretch = [decoder.frame_at(index) for index in range(low, first + 1)]
                except _DisagreementError:
                    old = decoder.table
                    decoder.restart(self._recount(old))
                    wanted = _remapped(wanted, old, decoder.table)
                    continue
                while stretch:
                    yield decoder.picture(stretch.pop(), self.width, self.height, self._turns)
                wanted = wanted[first - low + 1 :]

    def _tell(self) -> None:
        message, self._unsaid = self._unsaid, None
        if message:
            warnings.warn(message, VideoWarning, stacklevel=3)

    def _look(self) -> None:
        """Read the packets, decide whether they can be trusted, and decode at least the first frame."""
        with _opened(self.path) as container:
            stream = _picture_stream(container, self.path)
            scan = _scan(container, stream)
            self._tick = stream.time_base
            self._rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
            claimed = _claimed(container, stream, scan)
            codec, form = stream.codec_context.name, container.format.name
        self._scan, self._claimed = scan, max(claimed, scan.count)
        cut = scan.broken or claimed > scan.count
        plain = codec in _PLAIN_CODECS and form in _PLAIN_CONTAINERS and scan.plain
        if plain and not cut:
            self._set_table(_Table(scan.count, np.sort(scan.pts), scan, careful=False))
        else:
            self._set_table(_counted(self.path, scan, careful=cut))
        if not len(self) and not self._table.careful:
            self._set_table(_counted(self.path, scan, careful=True))
        self._measure()
        self._note_loss()

    def _measure(self) -> None:
        """Size and rotation, from the first frame that decodes."""
        frame = None
        with closing(_Decoder(self.path, self._table)) as decoder:
            while frame is None:
                if not self._table.count:
                    raise VideoError(
                        f"{self.path} names a video, but no frame of it can be decoded; wanted a playable "
                        f"video; upload it again, or re-encode it: {_reencode(self.path)}"
                    )
                try:
                    frame = decoder.frame_at(0)
                except _DisagreementError:
                    decoder.restart(self._recount(decoder.table))
        self._turns = round(frame.rotation / 90) % 4
        sides = (frame.width, frame.height)
        self.width, self.height = sides if self._turns % 2 == 0 else sides[::-1]

    def _recount(self, known: _Table) -> _Table:
        """Decoding disagreed with `known`: count what the decoder yields, once for all readers."""
        with self._table_lock:
            if self._table is known:
                if known.careful:
                    raise VideoError(
                        f"{self.name} decodes differently each time; re-encode it: {_reencode(self.path)}"
                    )
                self._set_table(_counted(self.path, self._scan, careful=True))
                self._note_loss()
            return self._table

    def _note_loss(self) -> None:
        # Packets without a picture of their own (hidden reference frames) are no loss.
        if self._table.careful and self._table.count < self._claimed:
            self._unsaid = (
                f"{self.name}: {self._table.count} of {self._claimed} frames are readable, "
                f"the rest is damaged or cut off; those are used. To get all of them, upload the "
                "file again or re-encode its source."
            )
            self._claimed = self._table.count  # said once

    def _set_table(self, table: _Table) -> None:
        """Take `table`, and the times and rates that follow from it."""
        self._table, self.variable_rate = table, False
        if table.pts is None or not self._tick:
            # The average that FFmpeg gives for a stream without times is its own default; the guess heeds the
            # codec.
            self.fps = self._rate or (self._rates or [DEFAULT_FPS])[-1]
            self.times = _frozen(np.arange(table.count) / float(self.fps))
            return
        self.times = _frozen(table.pts.astype(np.float64) * float(self._tick))
        self.fps = (self._rates or [self._rate or DEFAULT_FPS])[0]
        if table.count > 1:
            steps = np.diff(table.pts)
            middle = float(np.median(steps))
            # Containers round times to their tick (1 ms in Matroska), so neighbours may differ by one.
            self.variable_rate = bool(np.any(np.abs(steps - middle) > max(1.01, 0.01 * middle)))
            measured = Fraction(len(steps)) / (int(steps.sum()) * self._tick)
            near = max(0.005, 1 / float(steps.sum()))
            stated = [
                rate for rate in self._rates if abs(rate / measured - 1) <= near and not self.variable_rate
            ]
            self.fps = (stated or [measured.limit_denominator(100_000)])[0]


class _DisagreementError(Exception):
    """The decoder yields other frames than the table says."""


class _StoppedError(Exception):
    """The reader went away."""


@dataclass(frozen=True, eq=False)
class _Scan:
    """What the packets say: frames' pts in file order, key packets, byte position of each packet."""

    pts: NDArray[np.int64]  # packets without one are left out
    keys: NDArray[np.int64]  # (K, 2) pts, dts, by pts
    where: dict[int, int]  # byte position -> pts
    count: int
    plain: bool  # every packet has its own pts, and the first one starts the pictures
    broken: bool  # demuxing ended in an error
    end: float  # seconds, over all streams


@dataclass(frozen=True, eq=False)
class _Table:
    """The index space: how many frames, their pts when usable, and where decoding may start."""

    count: int
    pts: NDArray[np.int64] | None  # (count,) strictly increasing
    scan: _Scan
    careful: bool  # damaged: decode without frame threads, whose errors swallow neighbours, and carry on
    key_index: NDArray[np.int64] = field(init=False)  # (K,) frame index of each key

    def __post_init__(self) -> None:
        keys = self.scan.keys[:, 0]
        usable = (
            self.pts is not None and len(self.scan.pts) == len(np.unique(self.scan.pts)) == self.scan.count
        )
        index = np.searchsorted(cast("Any", self.pts), keys) if usable else np.zeros(0, np.int64)
        object.__setattr__(self, "key_index", index)


class _Decoder:
    """One open decoder: frames by index, reading on where that is nearer than a jump. For one thread."""

    def __init__(self, path: Path, table: _Table, stopped: threading.Event | None = None) -> None:
        self._path, self.table, self._stopped = path, table, stopped
        self._container: Any = None
        self._reformatter = VideoReformatter()
        self.restart(table)

    def restart(self, table: _Table) -> None:
        """Forget everything; the next frame comes by `table`."""
        self.close()
        self.table = table
        self._next = 0
        self._from_start = True

    def close(self) -> None:
        self._frames: Iterator[Any] | None = None
        self._last: tuple[int, Any] | None = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def start_of(self, index: int) -> int:
        """The last frame at or before `index` from which decoding may start."""
        key = int(np.searchsorted(self.table.key_index, index, side="right")) - 1
        return max(0, int(self.table.key_index[key])) if key >= 0 else 0

    def frame_at(self, index: int) -> Any:
        """The decoded frame `index`, 0 <= index < table.count. Raises _DisagreementError, _StoppedError."""
        if self._last is None or self._last[0] != index:
            frame = self._reached(index)
            self._last, self._next = (index, frame), index + 1
        return self._last[1]

    def _reached(self, index: int) -> Any:
        ahead = self._frames is not None and self._next <= index
        if not (ahead and (index - self._next <= _READ_ON or self.start_of(index) <= self._next)):
            frame = self._jumped(index)
            if frame is not None:
                self._from_start = False
                return frame
            self.restart(self.table)
        elif not self._from_start:
            try:
                return self._read_on(index)
            except _DisagreementError:  # damage may look otherwise from here; the beginning decides
                self.restart(self.table)
        return self._read_on(index)

    def _read_on(self, index: int) -> Any:
        """Decode forward through `index`, every frame being the one that the table names."""
        if self._frames is None:
            self._open()
            self._frames = _decoded(self._container, self._stream, self.table.careful)
        pts = self.table.pts
        for at in range(self._next, index + 1):
            frame = self._pull()
            if frame is None or (pts is not None and frame.pts != pts[at]):
                self._frames = None
                raise _DisagreementError
        return frame

    def _jumped(self, index: int) -> Any:
        """Seek to a key at or before `index` and decode up to it; None when not surely the same frame."""
        table = self.table
        key = int(np.searchsorted(table.key_index, index, side="right")) - 1
        if table.pts is None or key < 0 or table.key_index[key] <= 0:
            return None
        # Matroska finds keys by pts, MP4 by dts, where a pts may land one key too far. The keys before are
        # for streams whose keys only begin a gradual refresh.
        pts, dts = (int(value) for value in table.scan.keys[key])
        earlier = [int(table.scan.keys[k].min()) for k in (key - 1, key - 4) if k >= 0]
        for target in dict.fromkeys([pts, min(pts, dts), *earlier]):
            self._open()
            want = int(table.pts[index])
            try:
                self._container.seek(target, backward=True, stream=self._stream)
                self._frames = _decoded(self._container, self._stream, table.careful, (table.scan, want))
                while (frame := self._pull()) is not None and frame.pts is not None and frame.pts < want:
                    pass
            except (_DisagreementError, av.FFmpegError):
                continue
            if frame is not None and frame.pts == want:
                return frame
        return None

    def _open(self) -> None:
        if self._container is None:
            self._container = _opened(self._path)
            self._stream = _picture_stream(self._container, self._path)
            self._stream.thread_type = "SLICE" if self.table.careful else "AUTO"

    def _pull(self) -> Any:
        if self._stopped is not None and self._stopped.is_set():
            raise _StoppedError
        return None if self._frames is None else next(self._frames, None)

    def picture(self, frame: Any, width: int, height: int, turns: int) -> Image8:
        """(height, width, 3) uint8 RGB of a decoded frame; `turns` are quarter turns counterclockwise."""
        alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
        sides = (width, height) if turns % 2 == 0 else (height, width)
        frame = self._reformatter.reformat(frame, *sides, format="rgba" if alpha else "rgb24")
        image = frame.to_ndarray()
        if alpha:
            image = _over_black(image)
        return cast("Image8", np.ascontiguousarray(np.rot90(image, turns)))


def _decoded(
    container: Any, stream: Any, careful: bool, landing: tuple[_Scan, int] | None = None
) -> Iterator[Any]:
    """Frames in the decoder's order. Errors raise _DisagreementError, or when careful are passed over.

    After a seek, `landing` is what the packets were in the first pass and the pts wanted: decoding starts at
    a key at or before that pts, and every packet must have the pts that it had then.
    """
    waiting = landing is not None
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            if landing is not None and packet.size:
                scan, want = landing
                if waiting and not packet.is_keyframe:
                    continue
                if (
                    packet.pts is None
                    or scan.where.get(packet.pos) != packet.pts
                    or (waiting and packet.pts > want)
                ):
                    raise _DisagreementError
                waiting = False
        except av.FFmpegError as error:
            if not careful:
                raise _DisagreementError from error
            packet = None  # the file ends here: have the decoder give what it holds
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            if not careful:
                raise _DisagreementError from error
            frames = []
        yield from frames
        if packet is None:
            return


def _opened(path: Path) -> Any:
    """The container, open. Errors say what to try."""
    if not path.is_file():
        raise VideoNotFound(f"no file {path}; wanted the path of a video, or of a folder of pictures")
    try:
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty (0 bytes); wanted a video; upload or copy it again")
        # No protocol but file: a file must not make FFmpeg fetch addresses.
        container = av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        if _is_text(path):
            raise NoVideoStream(f"{path} is text; wanted a video file such as mp4, webm or mkv") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path} cannot be opened as a video ({reason}); wanted a complete mp4, webm, mkv or "
            f"another file that FFmpeg reads; upload it again if it was cut short, "
            f"or re-encode it: {_reencode(path)}"
        ) from error
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise NoVideoStream(f"{path} is text or a playlist; wanted a video file such as mp4, webm or mkv")
    return container


def _picture_stream(container: Any, path: Path) -> Any:
    """The video stream to play; cover pictures of sound files do not count."""
    moving = [s for s in container.streams.video if not s.disposition & type(s.disposition).attached_pic]
    if not moving:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise NoVideoStream(f"{path} holds {kinds} and no video; wanted a file with a video stream")
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    if stream.codec_context is None:
        container.close()
        raise VideoError(
            f"{path}: its header is damaged, or there is no decoder for it; wanted a complete mp4, webm "
            f"or mkv; upload it again if it was cut short, or re-encode it: {_reencode(path)}"
        )
    return stream


def _scan(container: Any, stream: Any) -> _Scan:
    """Read every packet once, decoding none."""
    pts: list[int] = []
    keys: list[tuple[int, int]] = []
    where: dict[int, int] = {}
    count, end, broken, starts = 0, 0.0, False, True
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            broken = True
            break
        if packet is None:
            break
        if packet.size and packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index or not packet.size:
            continue
        broken = broken or packet.is_corrupt
        if not (pts or packet.is_discard):
            starts = packet.is_keyframe
        if packet.pts is not None:
            where[packet.pos] = packet.pts
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if packet.is_discard:
            continue
        count += 1
        if packet.pts is not None:
            pts.append(packet.pts)
    times = np.array(pts, np.int64)
    # Pictures shown before the first key may never come out of the decoder.
    plain = starts and len(np.unique(times)) == count > 0 and int(times.min()) >= min(keys, default=(0, 0))[0]
    return _Scan(times, np.array(sorted(keys), np.int64).reshape(-1, 2), where, count, plain, broken, end)


def _claimed(container: Any, stream: Any, scan: _Scan) -> int:
    """How many frames the file says it has, as far as it says so; 0 otherwise."""
    if container.format.name == _MATROSKA:
        rate = stream.average_rate or DEFAULT_FPS
        seconds = (container.duration or 0) / 1_000_000
        missing = seconds - scan.end
        return scan.count + round(missing * rate) if missing > max(0.1, 2 / rate) else 0
    if container.format.name in _PLAIN_CONTAINERS:
        # The header's own number counts frames that an edit list hides; the index does not.
        return sum(not entry.is_discard for entry in stream.index_entries)
    return int(stream.frames) if container.format.name == "avi" else 0


def _counted(path: Path, scan: _Scan, *, careful: bool) -> _Table:
    """Play the whole file once and note what comes. Falls back to careful when anything is wrong."""
    pts: list[int | None] = []
    with _opened(path) as container:
        stream = _picture_stream(container, path)
        stream.thread_type = "SLICE" if careful else "AUTO"
        try:
            pts.extend(frame.pts for frame in _decoded(container, stream, careful))
        except _DisagreementError:
            return _counted(path, scan, careful=True)
    known = np.array([value for value in pts if value is not None], np.int64)
    usable = len(known) == len(pts) and bool(np.all(np.diff(known) > 0))
    return _Table(len(pts), known if usable else None, scan, careful)


def _remapped(wanted: range, old: _Table, new: _Table) -> range:
    """The frames still wanted, by their times, after the table changed; none twice."""
    low, high = sorted((wanted[0], wanted[-1]))
    if old.pts is not None and new.pts is not None:
        low = int(np.searchsorted(new.pts, old.pts[low]))
        high = int(np.searchsorted(new.pts, old.pts[high], side="right")) - 1
    kept = range(min(low, new.count), min(high, new.count - 1) + 1)
    return kept if wanted.step == 1 else kept[::-1]


def _ahead(
    produce: Callable[[threading.Event], Iterator[Image8]],
    depth: int = AHEAD,
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[Image8]:
    """Iterate over `produce(stopped)` from a thread of its own, at most `depth` items ahead.

    The thread starts with the first `next()` and ends with this generator, whether it is exhausted, closed or
    collected. What `produce` raises is raised here, with its traceback.
    """
    items: queue.Queue[tuple[Image8 | None, BaseException | None]] = queue.Queue(max(1, depth))
    stopped = threading.Event()

    def fill() -> None:
        end: BaseException | None = None
        try:
            for item in produce(stopped):
                if stopped.is_set():  # asked before putting: this thread itself may have collected the reader
                    return
                items.put((item, None))
        except BaseException as caught:  # noqa: BLE001 - raised again by the reader
            end = caught
        if not stopped.is_set():
            items.put((None, end))

    thread = threading.Thread(target=fill, name="glus-video-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            before_each()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        error = None
        stopped.set()
        while thread.is_alive() and thread is not threading.current_thread():
            try:
                items.get_nowait()  # a full queue would hold the thread
            except queue.Empty:
                thread.join(0.02)


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
            return _over_black(np.asarray(image.convert("RGBA")))
        return np.array(image.convert("RGB"))


def _over_black(image: Image8) -> Image8:
    """(H, W, 4) uint8 with straight alpha to (H, W, 3)."""
    colour, alpha = image[..., :3], image[..., 3:]
    if alpha.min() == 255:
        return colour
    return ((colour.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _natural(name: str) -> list[str | int]:
    # re.split alternates text and digits, so that neighbours compare like with like
    return [int(part) if at % 2 else part.casefold() for at, part in enumerate(re.split(r"(\d+)", name))]


def _as_rate(fps: Fraction | float | None, default: Any) -> Any:
    if fps is None:
        return default
    if not 0 < fps < float("inf"):
        raise SettingError(f"fps {fps}; wanted frames per second above 0")
    return fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(1001)


def _frozen(times: NDArray[np.float64]) -> NDArray[np.float64]:
    times.setflags(write=False)
    return times


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        return b"\0" not in head and bool(head[:-4].decode("utf-8") or head)
    except (OSError, UnicodeDecodeError):
        return False


def _reencode(path: Path) -> str:
    return f"ffmpeg -i {path.name} -c:v libx264 -pix_fmt yuv420p {path.stem}-fixed.mp4"
