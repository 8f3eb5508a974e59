"""Where to start: the key frame from a published score file, or by the model's own confidence. Knows frames and scores.

The paper's key-frame selector is a second language model whose weights were not released; what it leaves behind is a
file of its choices, and that is what people exchange.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glus.errors import SettingError
from glus.processing import context_indices

if TYPE_CHECKING:
    from glus.modeling.glus import Glus
    from glus.streaming import Video

CANDIDATES = 8


def read_scores(path: str | os.PathLike[str]) -> dict[str, int]:
    """Key frames of a score file: {"video_expression": frame}, where expression is the id in the data set.

    Raises:
        SettingError: missing, not such a file, or an entry that is not a frame number; names the entry.
    """
    place = Path(path)
    if not place.is_file():
        raise SettingError(f"no key frame file {place}; wanted JSON such as {{'video1_0': 12}}")
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{place} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise SettingError(f"{place} holds {type(data).__name__}; wanted an object such as {{'video1_0': 12}}")
    for name, frame in data.items():
        if isinstance(frame, bool) or not isinstance(frame, int) or frame < 0:
            raise SettingError(f"{place}: {name!r} has {frame!r}; wanted a frame number from 0")
    return data


def look_up(scores: Mapping[str, int], video: str, expression: str | int) -> int | None:
    """Key frame of one expression of one video, or None if the file does not have it. Ids may be numbers or strings."""
    return scores.get(f"{video}_{expression}")


def spread(length: int, count: int = CANDIDATES) -> list[int]:
    """Up to `count` frames spread over a clip of `length`, first and last among them."""
    if length <= count:
        return list(range(length))
    if count < 2:  # too few for both ends
        return [0] * count
    return sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})


def choose(
    model: Glus,
    video: Video,
    expressions: str | Sequence[str],
    *,
    candidates: Sequence[int] | None = None,
) -> int:
    """The frame on which the model is surest, among a few spread over the clip.

    Each candidate is segmented by itself, without memory; sure means a high probability of [SEG] and a high predicted
    IoU, averaged over the expressions. The first of equals wins.

    Args:
        model: from `glus.load`.
        video: as for `glus.segment`.
        expressions: a phrase or several that are to share a pass.
        candidates: frame indices; by default eight, spread.

    Returns:
        Frame index, for `key_frame=` of `glus.segment`.
    """
    from glus.streaming import VideoSession
    from glus.video import open_video

    source = open_video(video)
    length = len(source)
    frames = spread(length) if candidates is None else list(candidates)
    if not frames or not all(0 <= frame < length for frame in frames):
        raise SettingError(f"candidates {frames} are not all within the clip, which has frames 0 to {length - 1}")
    context = [source[i] for i in context_indices(length, model.config.window.context_frames)]
    start = VideoSession(model, expressions, context, memory=False)
    scores = {frame: start.fresh().step(source[frame]) for frame in frames}
    return max(frames, key=lambda frame: sum(mask.score for mask in scores[frame]))
