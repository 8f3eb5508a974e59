"""The frames that a video file holds, by its packets or by playing it once. Knows PyAV; not pixels or threads.

The table of frames comes from reading the file's packets, which decodes nothing, wherever container and codec
promise one picture per packet; otherwise, and whenever decoding disagrees with the table, the file is decoded
once to count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from numpy.typing import NDArray

from .errors import NoVideoStream, VideoError, VideoNotFound
from .frame_source import DEFAULT_FPS

# One picture per packet holds for these; VP8 (hidden reference frames), MPEG-4 in AVI (packed B-frames), raw
# streams and transport streams (fields, missing times) are counted by decoding them once.
PLAIN_CODECS = frozenset({"h264", "hevc", "vp9", "av1", "libdav1d", "ffv1", "prores", "mjpeg"})
_MATROSKA = "matroska,webm"
PLAIN_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", _MATROSKA})
# FFmpeg "plays" text as ANSI art and follows playlists to other files: neither is a video of ours.
_TEXT_FORMATS = frozenset({"tty", "hls", "dash", "concat", "ffmetadata", "bin"})


class DisagreementError(Exception):
    """The decoder yields other frames than the table says."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What the packets say: frames' pts in file order, key packets, byte position of each packet."""

    pts: NDArray[np.int64]  # packets without one are left out
    keys: NDArray[np.int64]  # (K, 2) pts, dts, by pts
    where: dict[int, int]  # byte position -> pts
    count: int
    plain: bool  # every packet has its own pts, and the first one starts the pictures
    broken: bool  # demuxing ended in an error
    end: float  # seconds, over all streams


@dataclass(frozen=True, eq=False)
class Table:
    """The index space: how many frames, their pts when usable, and where decoding may start."""

    count: int
    pts: NDArray[np.int64] | None  # (count,) strictly increasing
    scan: Scan
    careful: bool  # damaged: decode without frame threads, whose errors swallow neighbours, and carry on
    key_index: NDArray[np.int64] = field(init=False)  # (K,) frame index of each key

    def __post_init__(self) -> None:
        keys = self.scan.keys[:, 0]
        usable = self.pts is not None and len(self.scan.pts) == len(np.unique(self.scan.pts)) == self.scan.count
        index = np.searchsorted(cast("Any", self.pts), keys) if usable else np.zeros(0, np.int64)
        object.__setattr__(self, "key_index", index)


def decoded(container: Any, stream: Any, careful: bool, landing: tuple[Scan, int] | None = None) -> Iterator[Any]:
    """Frames in the decoder's order. Errors raise DisagreementError, or when careful are passed over.

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
                if packet.pts is None or scan.where.get(packet.pos) != packet.pts or (waiting and packet.pts > want):
                    raise DisagreementError
                waiting = False
        except av.FFmpegError as error:
            if not careful:
                raise DisagreementError from error
            packet = None  # the file ends here: have the decoder give what it holds
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            if not careful:
                raise DisagreementError from error
            frames = []
        yield from frames
        if packet is None:
            return


def opened(path: Path) -> Any:
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
            f"or re-encode it: {reencode(path)}"
        ) from error
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise NoVideoStream(f"{path} is text or a playlist; wanted a video file such as mp4, webm or mkv")
    return container


def picture_stream(container: Any, path: Path) -> Any:
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
            f"or mkv; upload it again if it was cut short, or re-encode it: {reencode(path)}"
        )
    return stream


def scan_packets(container: Any, stream: Any) -> Scan:
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
    return Scan(times, np.array(sorted(keys), np.int64).reshape(-1, 2), where, count, plain, broken, end)


def claimed_frames(container: Any, stream: Any, scan: Scan) -> int:
    """How many frames the file says it has, as far as it says so; 0 otherwise."""
    if container.format.name == _MATROSKA:
        rate = stream.average_rate or DEFAULT_FPS
        seconds = (container.duration or 0) / 1_000_000
        missing = seconds - scan.end
        return scan.count + round(missing * rate) if missing > max(0.1, 2 / rate) else 0
    if container.format.name in PLAIN_CONTAINERS:
        # The header's own number counts frames that an edit list hides; the index does not.
        return sum(not entry.is_discard for entry in stream.index_entries)
    return int(stream.frames) if container.format.name == "avi" else 0


def counted(path: Path, scan: Scan, *, careful: bool) -> Table:
    """Play the whole file once and note what comes. Falls back to careful when anything is wrong."""
    pts: list[int | None] = []
    with opened(path) as container:
        stream = picture_stream(container, path)
        stream.thread_type = "SLICE" if careful else "AUTO"
        try:
            pts.extend(frame.pts for frame in decoded(container, stream, careful))
        except DisagreementError:
            return counted(path, scan, careful=True)
    known = np.array([value for value in pts if value is not None], np.int64)
    usable = len(known) == len(pts) and bool(np.all(np.diff(known) > 0))
    return Table(len(pts), known if usable else None, scan, careful)


def remapped(wanted: range, old: Table, new: Table) -> range:
    """The frames still wanted, by their times, after the table changed; none twice."""
    low, high = sorted((wanted[0], wanted[-1]))
    if old.pts is not None and new.pts is not None:
        low = int(np.searchsorted(new.pts, old.pts[low]))
        high = int(np.searchsorted(new.pts, old.pts[high], side="right")) - 1
    kept = range(min(low, new.count), min(high, new.count - 1) + 1)
    return kept if wanted.step == 1 else kept[::-1]


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        return b"\0" not in head and bool(head[:-4].decode("utf-8") or head)
    except (OSError, UnicodeDecodeError):
        return False


def reencode(path: Path) -> str:
    """The command that makes a sound copy of the video, for messages."""
    return f"ffmpeg -i {path.name} -c:v libx264 -pix_fmt yuv420p {path.stem}-fixed.mp4"
