"""Values that cross files: tasks, masks, access. Knows numpy; not JSON, HTTP, files or torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolMask = NDArray[np.bool_]

_OFFSET = 48  # COCO writes six bits a character, starting at "0"
_MORE = 0x20
_SIGN = 0x10


@dataclass(frozen=True)
class TextField:
    """A <TextArea> of the labelling config, by its name and the name of the tag it belongs to."""

    name: str
    to_name: str


@dataclass(frozen=True)
class VideoTask:
    """One clip to segment and the names under which its masks go back.

    Attributes:
        task_id: Label Studio's id; it is used again after a delete, so nothing is keyed on it alone.
        project: the project as the request names it ("<id>.<creation time>").
        frames: addresses of the frames, in order; a mask's `frame_index` is a position in here.
        prompts: what to segment, one expression per object; object 1 is the first.
        labels: the label value of each object, as many as `prompts`.
        from_name: name of the tag that holds masks.
        to_name: name of the tag that shows the frames.
        video: address of the clip that the frames were taken from, where the task has one.
        status: where a sentence for the person can be shown, where the config has such a place.
        frame_size: (height, width) in pixels where the sender knew it; masks bring their own.
    """

    task_id: int
    project: str
    frames: tuple[str, ...]
    prompts: tuple[str, ...]
    labels: tuple[str, ...]
    from_name: str
    to_name: str
    video: str | None = None
    status: TextField | None = None
    frame_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ObjectMask:
    """The mask of one object on one frame, losslessly as COCO run lengths.

    Attributes:
        frame_index: position of the frame, from 0.
        height: of the frame, in pixels.
        width: of the frame, in pixels.
        counts: COCO's compressed run lengths, column by column, as ASCII.
        score: 0..1.
        present: whether the object is on this frame.
    """

    frame_index: int
    height: int
    width: int
    counts: str
    score: float
    present: bool

    @classmethod
    def from_mask(cls, frame_index: int, mask: BoolMask, score: float, *, present: bool | None = None) -> ObjectMask:
        """From a (H, W) bool mask; without `present`, a mask is present when a pixel of it is set."""
        height, width = mask.shape
        return cls(
            frame_index=frame_index,
            height=height,
            width=width,
            counts=encode_counts(mask),
            score=score,
            present=bool(mask.any()) if present is None else present,
        )

    def mask(self) -> BoolMask:
        """(H, W) bool."""
        return decode_counts(self.counts, self.height, self.width)


@dataclass(frozen=True)
class MaskTrack:
    """The masks of one object through a clip; `object_id` counts from 1, in the order of the prompts."""

    object_id: int
    prompt: str
    masks: tuple[ObjectMask, ...]


@dataclass(frozen=True)
class StudioAccess:
    """Where a Label Studio is and what opens it. The key is kept out of `repr`, hence out of logs."""

    url: str | None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Project:
    """What Label Studio said about a project in /setup."""

    project: str
    hostname: str | None = None
    access_token: str | None = field(default=None, repr=False)
    extra_params: dict[str, Any] = field(default_factory=dict)
    schema: str = ""


def encode_counts(mask: BoolMask) -> str:
    """(H, W) bool mask to COCO's compressed counts; the same characters that pycocotools writes.

    pycocotools belongs to the model half, which the web process runs without.
    """
    column_major = np.ascontiguousarray(mask.T).ravel()
    changes = np.flatnonzero(column_major[1:] != column_major[:-1]) + 1
    edges = np.concatenate(([0], changes, [column_major.size]))
    runs = np.diff(edges)
    if column_major.size and column_major[0]:
        runs = np.concatenate(([0], runs))  # the first run is always of zeros
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]  # from the fourth on, the difference to the run two before
    groups = np.zeros((values.size, 13), dtype=np.uint8)  # 13 groups of 5 bits hold any 64-bit value
    lengths = np.zeros(values.size, dtype=np.int64)
    open_ = np.ones(values.size, dtype=bool)
    rest = values.copy()
    column = 0
    while open_.any():
        chunk = rest & 0x1F
        rest = rest >> 5
        more = np.where(chunk & _SIGN, rest != -1, rest != 0) & open_
        groups[:, column] = (chunk | np.where(more, _MORE, 0)) + _OFFSET
        lengths[open_] += 1
        open_ = more
        column += 1
    used = np.arange(13) < lengths[:, None]
    return groups[used].tobytes().decode("ascii")


def decode_counts(counts: str, height: int, width: int) -> BoolMask:
    """COCO's compressed counts to a (H, W) bool mask; ValueError when they do not fill it exactly."""
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - _OFFSET
    if codes.size == 0 or (codes[-1] & _MORE) or codes.min() < 0 or codes.max() > 0x3F:
        raise ValueError(f"these {len(counts)} characters are no COCO run lengths")
    ends = np.flatnonzero((codes & _MORE) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 12:
        raise ValueError(f"a run length of {lengths.max()} characters in COCO counts; 12 hold any mask")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & _SIGN, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.sum() != height * width:
        raise ValueError(f"COCO counts cover {values.sum()} pixels, wanted {height} x {width}")
    flat = np.repeat(np.arange(values.size) % 2 == 1, values)
    return flat.reshape(width, height).T
