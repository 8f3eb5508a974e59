"""A video file's frames, decoded by index and turned into pictures. Knows PyAV; not what the table was made from.

Jumps are checked against the table, so an index means the same frame however it is reached.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .frame_source import Image8, over_black
from .video_index import DisagreementError, Table, decoded, opened, picture_stream

_READ_ON = 8  # frames; a jump costs more than decoding these


class _StoppedError(Exception):
    """The reader went away."""


class Decoder:
    """One open decoder: frames by index, reading on where that is nearer than a jump. For one thread."""

    def __init__(self, path: Path, table: Table, stopped: threading.Event | None = None) -> None:
        self._path, self.table, self._stopped = path, table, stopped
        self._container: Any = None
        self._reformatter = VideoReformatter()
        self.restart(table)

    def restart(self, table: Table) -> None:
        """Forget everything; the next frame comes by `table`."""
        self.close()
        self.table = table
        self._next = 0
        self._from_start = True

    def close(self) -> None:
        """Let go of the file; the next frame opens it again."""
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
        """The decoded frame `index`, 0 <= index < table.count. Raises DisagreementError, _StoppedError."""
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
            except DisagreementError:  # damage may look otherwise from here; the beginning decides
                self.restart(self.table)
        return self._read_on(index)

    def _read_on(self, index: int) -> Any:
        """Decode forward through `index`, every frame being the one that the table names."""
        if self._frames is None:
            self._open()
            self._frames = decoded(self._container, self._stream, self.table.careful)
        pts = self.table.pts
        for at in range(self._next, index + 1):
            frame = self._pull()
            if frame is None or (pts is not None and frame.pts != pts[at]):
                self._frames = None
                raise DisagreementError
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
                self._frames = decoded(self._container, self._stream, table.careful, (table.scan, want))
                while (frame := self._pull()) is not None and frame.pts is not None and frame.pts < want:
                    pass
            except (DisagreementError, av.FFmpegError):
                continue
            if frame is not None and frame.pts == want:
                return frame
        return None

    def _open(self) -> None:
        if self._container is None:
            self._container = opened(self._path)
            self._stream = picture_stream(self._container, self._path)
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
            image = over_black(image)
        return cast("Image8", np.ascontiguousarray(np.rot90(image, turns)))
