"""MaskTrack to Label Studio result JSON and back. Pure: knows no HTTP, files or models.

Label Studio's brush RLE is `@thi.ng/rle-pack` over the flattened RGBA image: a 32-bit count of values, 5 bits
of word size - 1, four times 4 bits of run size - 1, then runs. A run is one bit (1: one value repeated, 0:
values as they are), two bits that choose a run size, that many bits of length - 1, and the 8-bit value or
values. Only alpha counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glus_backend.contracts import BoolMask, MaskTrack, ObjectMask, TextField, VideoTask
from glus_backend.errors import ResultError

STATUS_ID = "glus-status"

_WORD = 8
_RUN_SIZES = (3, 4, 8, 16)
_LONGEST_RUN = 1 << 16
_HEADER_BITS = 32 + 5 + 4 * 4
_SEEN = 128  # edited masks have soft edges, alpha 1..254; this is where Label Studio's own export cuts


def encode_brush(mask: BoolMask) -> list[int]:
    """(H, W) bool mask to brush RLE bytes, all four channels 0 or 255.

    0 and 1 would be stored just as well, and be invisible in the editor.
    """
    flat = np.ascontiguousarray(mask).ravel()
    if not flat.size:
        raise ResultError(f"a mask of {mask.shape[1]} x {mask.shape[0]} pixels cannot be shown; wanted at least 1 x 1")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    lengths = np.diff(edges) * 4
    return list(_pack(flat.size * 4, *_split(lengths, np.where(flat[edges[:-1]], 255, 0))))


def decode_alpha(rle: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Brush RLE bytes to the (H, W) uint8 alpha channel."""
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise ResultError("a brush mask must be a list of bytes, 0 to 255 (value.rle of the region)") from error
    header = int.from_bytes(data[:7].ljust(7, b"\0"), "big") >> 3
    count = header >> 21
    if len(data) >= 7 and count != height * width * 4:
        raise ResultError(
            f"a brush mask holds {count} values, wanted {height * width * 4} for {width} x {height} pixels "
            "RGBA; its original_width and original_height do not belong to it"
        )
    word = (header >> 16 & 31) + 1
    if len(data) >= 7 and word != _WORD:
        raise ResultError(f"a brush mask has {word} bits a value; Label Studio writes {_WORD}")
    sizes = [(header >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    padded = data + bytes(8)  # room for the window to reach over the end
    end, at = 8 * len(data), _HEADER_BITS
    values: list[int] = []
    repeats: list[int] = []
    filled = 0
    while filled < count or at > end:
        # One look at 64 bits takes in a whole token: 7 bits before it, then at most 3 + 16 + 8.
        window = int.from_bytes(padded[at >> 3 : (at >> 3) + 8], "big") << (at & 7)
        size = sizes[window >> 61 & 3]
        length = (window >> (61 - size) & ((1 << size) - 1)) + 1
        start = at + 3 + size
        at = start + (_WORD if window >> 63 & 1 else _WORD * length)
        if at > end:
            raise ResultError(f"a brush mask ends after {len(data)} bytes, in the middle of a run: it is damaged")
        if window >> 63 & 1:
            values.append(window >> (53 - size) & 255)
            repeats.append(length)
        else:
            piece = int.from_bytes(padded[start >> 3 : (start >> 3) + length + 1], "big") >> (8 - (start & 7))
            values += (piece & ((1 << _WORD * length) - 1)).to_bytes(length, "big")
            repeats += [1] * length
        filled += length
    if filled != count:
        raise ResultError(f"a brush mask has runs for {filled} values, its header says {count}: it is damaged")
    rgba = np.repeat(np.array(values, dtype=np.uint8), np.array(repeats, dtype=np.int64))
    return rgba.reshape(height, width, 4)[..., 3]


def decode_brush(rle: Sequence[int], height: int, width: int) -> BoolMask:
    """Brush RLE bytes to a (H, W) bool mask: alpha of at least 128."""
    return decode_alpha(rle, height, width) >= _SEEN


def brush_regions(task: VideoTask, tracks: Iterable[MaskTrack]) -> list[dict[str, Any]]:
    """One brush region per object and frame on which the object is; frames without it get none.

    Label Studio's `item_index` counts frames from 0, as we do (its <Video> counts from 1).
    """
    return [
        _region(task, track, mask)
        for track in tracks
        for mask in sorted(track.masks, key=lambda m: m.frame_index)
        if mask.present
    ]


def tracks_from_result(result: Iterable[Mapping[str, Any]], task: VideoTask) -> tuple[MaskTrack, ...]:
    """The way back: our brush regions in a result to tracks, one per prompt of the task.

    Other results are passed over, also those under the right name without a mask: Label Studio adds such to
    texts that were accepted while a label was selected.
    """
    masks: dict[int, list[ObjectMask]] = {number: [] for number in range(1, len(task.prompts) + 1)}
    for region in result:
        value = region.get("value")
        if region.get("from_name") != task.from_name or not isinstance(value, Mapping) or "rle" not in value:
            continue
        object_id = _glus(region, "object_id")
        if object_id not in masks:
            raise ResultError(
                f"region {region.get('id')!r} is of object {object_id}, task {task.task_id} has prompts for "
                f"{len(task.prompts)}"
            )
        frame_index = region.get("item_index")
        if not isinstance(frame_index, int) or not 0 <= frame_index < len(task.frames):
            raise ResultError(
                f"region {region.get('id')!r} is on item_index {frame_index!r}, task {task.task_id} has "
                f"{len(task.frames)} frames, counted from 0"
            )
        score = region.get("score")
        masks[object_id].append(
            ObjectMask.from_mask(
                frame_index,
                region_mask(region),
                float(score) if isinstance(score, int | float) else 1.0,
                present=True,
            )
        )
    return tuple(
        MaskTrack(number, prompt, tuple(sorted(masks[number], key=lambda m: m.frame_index)))
        for number, prompt in enumerate(task.prompts, start=1)
    )


def region_mask(region: Mapping[str, Any]) -> BoolMask:
    """The (H, W) bool mask of a brush region.

    Strokes that Label Studio has not yet merged (`value.touches`) are refused: the mask without them is not
    what the person sees.
    """
    name = region.get("id")
    value = region.get("value")
    width, height = region.get("original_width"), region.get("original_height")
    if not isinstance(value, Mapping) or not value.get("rle"):
        raise ResultError(f'region {name!r} has no mask; wanted {{"value": {{"format": "rle", "rle": [...]}}}}')
    if not isinstance(width, int) or not isinstance(height, int):
        raise ResultError(
            f"region {name!r} has no original_width and original_height, without which its mask has no shape"
        )
    if value.get("touches"):
        raise ResultError(
            f"region {name!r} has {len(value['touches'])} brush strokes that are not merged into its mask "
            "yet; submit or update the annotation, which merges them"
        )
    return decode_brush(value["rle"], height, width)


def text_region(field: TextField, text: str) -> dict[str, Any]:
    """A sentence for a TextArea. One fixed id, so that each replaces the last."""
    return {
        "id": STATUS_ID,
        "from_name": field.name,
        "to_name": field.to_name,
        "type": "textarea",
        "value": {"text": [text]},
    }


def mean_score(regions: Iterable[Mapping[str, Any]]) -> float:
    """The mean score of the regions that have one; 0 when there is nothing."""
    scores = [float(region["score"]) for region in regions if "score" in region]
    return round(sum(scores) / len(scores), 6) if scores else 0.0


def _region(task: VideoTask, track: MaskTrack, mask: ObjectMask) -> dict[str, Any]:
    if mask.frame_index >= len(task.frames):
        # Label Studio would show it nowhere, and its Submit button would do nothing at all.
        raise ResultError(
            f"there is a mask for frame {mask.frame_index} (counted from 0), task {task.task_id} has "
            f"{len(task.frames)} frames"
        )
    return {
        "id": f"obj{track.object_id}-frame{mask.frame_index:05d}",
        "from_name": task.from_name,
        "to_name": task.to_name,
        "type": "brushlabels",
        "origin": "prediction",
        "score": round(float(mask.score), 6),
        "image_rotation": 0,
        "value": {
            "format": "rle",
            "rle": encode_brush(mask.mask()),
            "brushlabels": [task.labels[track.object_id - 1]],
        },
        "original_width": mask.width,
        "original_height": mask.height,
        "item_index": mask.frame_index,
        "meta": {"glus": {"object_id": track.object_id, "frame": mask.frame_index}},
    }


def _glus(region: Mapping[str, Any], key: str) -> int:
    """Our own note in a region's `meta`, the one place that Label Studio passes on; 1 if drawn by hand."""
    meta = region.get("meta")
    ours = meta.get("glus") if isinstance(meta, Mapping) else None
    number = ours.get(key) if isinstance(ours, Mapping) else None
    return number if isinstance(number, int) else 1


def _header(count: int) -> bytes:
    bits = count
    for size, width in ((_WORD, 5), *((size, 4) for size in _RUN_SIZES)):
        bits = (bits << width) | (size - 1)
    padding = -_HEADER_BITS % 8
    return (bits << padding).to_bytes((_HEADER_BITS + padding) // 8, "big")


def _split(lengths: NDArray[np.int64], values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut runs into pieces of at most 65,536, the longest that 16 bits can say."""
    pieces = -(-lengths // _LONGEST_RUN)
    cut = np.full(int(pieces.sum()), _LONGEST_RUN, dtype=np.int64)
    last = np.cumsum(pieces) - 1
    cut[last] = lengths - (pieces - 1) * _LONGEST_RUN
    return cut, np.repeat(values, pieces)


def _pack(count: int, lengths: NDArray[np.int64], values: NDArray[np.int64]) -> bytes:
    """Every run is a code of 14 to 27 bits: build 32-bit numbers, then drop their unused leading bits."""
    choice = np.searchsorted(np.array([1 << size for size in _RUN_SIZES]), lengths)
    size = np.array(_RUN_SIZES)[choice]
    codes = (((0b100 | choice) << size | (lengths - 1)) << _WORD) | values
    width = 3 + size + _WORD
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8)).reshape(-1, 32)
    used = np.arange(32) >= 32 - width[:, None]
    head = np.unpackbits(np.frombuffer(_header(count), dtype=np.uint8))[:_HEADER_BITS]
    return np.packbits(np.concatenate((head, bits[used]))).tobytes()
