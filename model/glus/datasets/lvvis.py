"""LV-VIS: category names as expressions, over a thousand classes. Knows its folders and annotation file; not models.

LVVIS/train/JPEGImages/VIDEO/FRAME.jpg
LVVIS/meta_expressions.json
LVVIS/mask_dict.json
"""

from __future__ import annotations

from pathlib import Path

from .base import Expression, Json, MaskDictDataset, VideoRecord


class LvVis(MaskDictDataset):
    """The training split of LV-VIS, the only one in use."""

    NAME, FOLDER, SPLITS = "lvvis", "LVVIS", ("train",)

    def _annotation_file(self) -> Path:
        return self.root / "meta_expressions.json"

    def _mask_file(self) -> Path:
        return self.root / "mask_dict.json"

    def _video(self, name: str, entry: Json) -> VideoRecord:
        def expression(key: str, each: Json) -> Expression:
            where = f"video {name!r}, expression {key!r}"
            category = each.get("category")
            return Expression(
                key,
                self._text(where, each),
                self._ids(where, each, "anno_id"),
                category if isinstance(category, str) else None,
            )

        frames = self._frames(name, entry, self.root / "train" / "JPEGImages" / name)
        return VideoRecord(name, frames, self._expressions(name, entry, expression))
