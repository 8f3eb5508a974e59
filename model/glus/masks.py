"""Masks as values: what one step of segmentation returns, and COCO RLE both ways. Knows numpy; not torch or video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

BoolMask = NDArray[np.bool_]

NO_OBJECT_LOGIT = -1024.0  # everywhere, where the model gave no [SEG]


class CocoRle(TypedDict):
    """Compressed COCO run-length encoding: `size` is [height, width], `counts` the ASCII string."""

    size: list[int]
    counts: str


@dataclass(frozen=True, eq=False)
class FrameMask:
    """The mask of one expression on one frame.

    Attributes:
        frame_index: index of the frame in presentation order, from 0 at the first frame of the video.
        expression_index: position of the expression in the list that was asked.
        mask: (H, W) bool, at the size of the video's frames.
        logits: (h, w) float32, the decoder's mask logits before they are resized to the video; h = w = a quarter
            of the segmenter's input (256 at the published size). `mask` is the bilinear resize of them, > 0.
            `NO_OBJECT_LOGIT` everywhere when the model gave no [SEG].
        score: 0..1, the probability of [SEG] in the answer times the IoU that the decoder predicts for the mask;
            0 when nothing is there.
        present: whether there is an object: [SEG] was answered and at least one pixel is set.
    """

    frame_index: int
    expression_index: int
    mask: BoolMask
    logits: NDArray[np.float32]
    score: float
    present: bool


def encode_rle(mask: BoolMask) -> CocoRle:
    """(H, W) bool mask to compressed COCO RLE."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    height, width = (int(n) for n in encoded["size"])
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: CocoRle) -> BoolMask:
    """Compressed COCO RLE to (H, W) bool mask."""
    from pycocotools import mask as coco

    decoded: BoolMask = coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)
    return decoded
