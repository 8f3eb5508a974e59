"""MeViS: motion expressions, several targets or none. Knows its folders and annotation file; not models.

mevis/{train,valid_u,valid}/JPEGImages/VIDEO/FRAME.jpg
mevis/{train,valid_u,valid}/meta_expressions.json
mevis/{train,valid_u}/mask_dict.json             valid has none: its masks are on the evaluation server
"""

from __future__ import annotations

from pathlib import Path

from .base import Expression, Json, MaskDictDataset, VideoRecord


class Mevis(MaskDictDataset):
    """One split of MeViS."""

    NAME, FOLDER, SPLITS = "mevis", "mevis", ("train", "valid", "valid_u")

    @property
    def _place(self) -> Path:
        return self.root if (self.root / "meta_expressions.json").is_file() else self.root / self.split

    def _annotation_file(self) -> Path:
        return self._place / "meta_expressions.json"

    def _mask_file(self) -> Path:
        return self._place / "mask_dict.json"

    def _video(self, name: str, entry: Json) -> VideoRecord:
        def expression(key: str, each: Json) -> Expression:
            where = f"video {name!r}, expression {key!r}"
            text = self._text(where, each)
            objects: tuple[str, ...] = ()
            if "anno_id" in each or self.has_masks:  # valid does not tell
                objects = self._ids(where, each, "anno_id")
            kind = each.get("kind")  # in generated folders
            category = kind if isinstance(kind, str) else count(objects) if self.has_masks else None
            return Expression(key, text, objects, category)

        frames = self._frames(name, entry, self._place / "JPEGImages" / name)
        return VideoRecord(name, frames, self._expressions(name, entry, expression))


def count(objects: tuple[str, ...]) -> str:
    """Category of an expression: how many objects it refers to."""
    return ("no target", "one target")[len(objects)] if len(objects) < 2 else "several targets"
