"""Video as frames in presentation order: video files, and the door to every source. Not torch or models.

The index of a frame is its place among the pictures that a decoder yields when the whole video is played once
from its beginning, however it is reached: decoders check it against the file's table of frames, and where they
disagree the table is made anew.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np

from .errors import VideoError, VideoNotFound
from .frame_source import (
    DEFAULT_FPS,
    BaseSource,
    FrameArrays,
    FrameSource,
    Image8,
    ImageFolder,
    as_rate,
    frozen,
)
from .read_ahead import AHEAD, read_ahead
from .video_decoder import Decoder
from .video_index import (
    PLAIN_CODECS,
    PLAIN_CONTAINERS,
    DisagreementError,
    Table,
    claimed_frames,
    counted,
    opened,
    picture_stream,
    reencode,
    remapped,
    scan_packets,
)
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

STRETCH = 32  # most frames held at once when going backward


class VideoWarning(UserWarning):
    """A video was readable only in part; the message says how many of how many frames."""


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
            raise VideoNotFound(f"{source} is an address; wanted a path: download the video and open the file")
        return ImageFolder(path, fps=fps) if path.is_dir() else VideoFile(path, fps=fps)
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, np.ndarray) or (isinstance(source, Sequence) and not isinstance(source, bytes | bytearray)):
        return FrameArrays(source, fps=fps)
    raise VideoError(
        f"cannot read frames from a {type(source).__name__}; wanted a path, a sequence of (H, W, 3) uint8 "
        "arrays or an open FrameSource"
    )


class VideoFile(BaseSource):
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
        self._rate = as_rate(fps, None)
        self._lock = threading.Lock()  # the decoder of random access
        self._table_lock = threading.Lock()
        self._unsaid: str | None = None
        self._closed = False
        self._look()
        self._decoder = Decoder(self.path, self._table)
        self._tell()

    def __len__(self) -> int:
        return self._table.count

    def frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[Image8]:
        """As `FrameSource.frames`, from a decoder and on a thread of its own; VideoError once closed."""
        self._check_open()
        table, wanted = self._table, self._span(start, stop, step)
        return read_ahead(lambda stopped: self._walk(wanted, table, stopped), self._depth, self._tell)

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
                except DisagreementError:
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

    def _walk(self, wanted: range, table: Table, stopped: threading.Event) -> Iterator[Image8]:
        """The frames of `wanted`; backward one stretch at a time, decoded forward, then turned round."""
        with closing(Decoder(self.path, table, stopped)) as decoder:
            while wanted:
                first = wanted[0]
                low = first
                if wanted.step == -1:
                    low = max(decoder.start_of(first), first - STRETCH + 1, wanted[-1])
                try:
                    stretch = [decoder.frame_at(index) for index in range(low, first + 1)]
                except DisagreementError:
                    old = decoder.table
                    decoder.restart(self._recount(old))
                    wanted = remapped(wanted, old, decoder.table)
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
        with opened(self.path) as container:
            stream = picture_stream(container, self.path)
            scan = scan_packets(container, stream)
            self._tick = stream.time_base
            self._rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
            claimed = claimed_frames(container, stream, scan)
            codec, form = stream.codec_context.name, container.format.name
        self._scan, self._claimed = scan, max(claimed, scan.count)
        cut = scan.broken or claimed > scan.count
        plain = codec in PLAIN_CODECS and form in PLAIN_CONTAINERS and scan.plain
        if plain and not cut:
            self._set_table(Table(scan.count, np.sort(scan.pts), scan, careful=False))
        else:
            self._set_table(counted(self.path, scan, careful=cut))
        if not len(self) and not self._table.careful:
            self._set_table(counted(self.path, scan, careful=True))
        self._measure()
        self._note_loss()

    def _measure(self) -> None:
        """Size and rotation, from the first frame that decodes."""
        frame = None
        with closing(Decoder(self.path, self._table)) as decoder:
            while frame is None:
                if not self._table.count:
                    raise VideoError(
                        f"{self.path} names a video, but no frame of it can be decoded; wanted a playable "
                        f"video; upload it again, or re-encode it: {reencode(self.path)}"
                    )
                try:
                    frame = decoder.frame_at(0)
                except DisagreementError:
                    decoder.restart(self._recount(decoder.table))
        self._turns = round(frame.rotation / 90) % 4
        sides = (frame.width, frame.height)
        self.width, self.height = sides if self._turns % 2 == 0 else sides[::-1]

    def _recount(self, known: Table) -> Table:
        """Decoding disagreed with `known`: count what the decoder yields, once for all readers."""
        with self._table_lock:
            if self._table is known:
                if known.careful:
                    raise VideoError(f"{self.name} decodes differently each time; re-encode it: {reencode(self.path)}")
                self._set_table(counted(self.path, self._scan, careful=True))
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

    def _set_table(self, table: Table) -> None:
        """Take `table`, and the times and rates that follow from it."""
        self._table, self.variable_rate = table, False
        if table.pts is None or not self._tick:
            # The average that FFmpeg gives for a stream without times is its own default; the guess heeds the
            # codec.
            self.fps = self._rate or (self._rates or [DEFAULT_FPS])[-1]
            self.times = frozen(np.arange(table.count) / float(self.fps))
            return
        self.times = frozen(table.pts.astype(np.float64) * float(self._tick))
        self.fps = (self._rates or [self._rate or DEFAULT_FPS])[0]
        if table.count > 1:
            steps = np.diff(table.pts)
            middle = float(np.median(steps))
            # Containers round times to their tick (1 ms in Matroska), so neighbours may differ by one.
            self.variable_rate = bool(np.any(np.abs(steps - middle) > max(1.01, 0.01 * middle)))
            measured = Fraction(len(steps)) / (int(steps.sum()) * self._tick)
            near = max(0.005, 1 / float(steps.sum()))
            stated = [rate for rate in self._rates if abs(rate / measured - 1) <= near and not self.variable_rate]
            self.fps = (stated or [measured.limit_denominator(100_000)])[0]
