"""ReVOS: referring and reasoning expressions. Knows its folders and annotation files; not models.

ReVOS/JPEGImages/VIDEO/FRAME.jpg                 video names hold slashes ("UVO/all/2E4T5NCywcE")
ReVOS/meta_expressions_{train,valid}_.json
ReVOS/mask_dict.json
ReVOS/mask_dict_foreground.json                  union of all objects of a video, for the robustness score
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glus.masks import BoolMask

from .base import DataError, Expression, Json, MaskDictDataset, VideoRecord, decode, read_json

TYPES = {0: "referring", 1: "reason"}  # as the released script names its two groups


class Revos(MaskDictDataset):
    """One split of ReVOS. An expression's category is its type: "referring", "reason", else "type N"."""

    NAME, FOLDER, SPLITS = "revos", "ReVOS", ("train", "valid")

    def _annotation_file(self) -> Path:
        return self.root / f"meta_expressions_{self.split}_.json"

    def _mask_file(self) -> Path:
        return self.root / "mask_dict.json"

    @property
    def foreground_file(self) -> Path:
        """Where the union of all objects of each video is."""
        return self.root / "mask_dict_foreground.json"

    @cached_property
    def _foregrounds(self) -> dict[str, Any]:
        data = read_json(self.foreground_file)
        if not isinstance(data, dict):
            raise DataError(f"{self.foreground_file} holds {type(data).__name__}; wanted an object of videos")
        return data

    def foreground(self, video: int, t: int) -> BoolMask:
        """(H, W) bool: all annotated objects of a video on frame `t`. Raises DataError."""
        record = self.videos[video]
        entry = self._foregrounds.get(record.name)
        listed = entry.get("masks_rle") if isinstance(entry, dict) else None
        where = f"{self.foreground_file}: video {record.name!r}"
        if not isinstance(listed, list) or len(listed) != len(record.frames):
            had = len(listed) if isinstance(listed, list) else "no"
            raise DataError(
                f"{where} has {had} masks under 'masks_rle'; wanted one for each of {len(record.frames)} frames"
            )
        if listed[t] is None:
            return np.zeros(self.size(video), dtype=bool)
        return decode(listed[t], f"{where}, frame {t}")

    def _video(self, name: str, entry: Json) -> VideoRecord:
        def expression(key: str, each: Json) -> Expression:
            where = f"video {name!r}, expression {key!r}"
            kind = each.get("type_id")
            if isinstance(kind, str) and kind.isdecimal():
                kind = int(kind)
            if isinstance(kind, bool) or not isinstance(kind, int):
                raise self.broken(where, f"has {kind!r} for 'type_id'; wanted 0 (referring) or 1 (reasoning)")
            category = TYPES.get(kind, f"type {kind}")
            return Expression(key, self._text(where, each), self._ids(where, each, "anno_id"), category)

        frames = self._frames(name, entry, self.root / "JPEGImages" / name)
        return VideoRecord(name, frames, self._expressions(name, entry, expression))
