"""ReasonVOS: questions and descriptions over clips of four other data sets. Knows its files; not models.

ReasonVOS/JPEGImages/VIDEO/FRAME.jpg
ReasonVOS/Annotations/SOURCE_VIDEO_OBJECT/FRAME.png      one object: 0 is background; SOURCE may be in small letters
ReasonVOS/meta_expressions.json
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from glus.masks import BoolMask

from .base import Dataset, Expression, Json, VideoRecord, read_objects


class ReasonVos(Dataset):
    """All of ReasonVOS; it is for evaluation only. An expression's category is the data set that its clip is from."""

    NAME, FOLDER, SPLITS = "reasonvos", "ReasonVOS", ("valid",)

    def _annotation_file(self) -> Path:
        return self.root / "meta_expressions.json"

    @property
    def has_masks(self) -> bool:
        """Whether the folder of masks is here."""
        return (self.root / "Annotations").is_dir()

    def source(self, video: int) -> str:
        """The data set that a clip is from, as written in the annotation file."""
        return self._sources[self.videos[video].name]

    @cached_property
    def _sources(self) -> dict[str, str]:
        return {name: self._text(f"video {name!r}", entry, "source") for name, entry in self.raw_videos.items()}

    def score_name(self, video: int, expression: int) -> str:
        """SOURCE_VIDEO_OBJECT_EXPRESSION, by which published results list their lines."""
        record = self.videos[video]
        asked = record.expressions[expression]
        return f"{self.source(video)}_{record.name}_{'_'.join(asked.objects)}_{asked.id}"

    def mask_folder(self, video: int, object_id: str) -> Path:
        """Where the masks of an object are."""
        source, name = self.source(video), self.videos[video].name
        usual = self.root / "Annotations" / f"{source.lower()}_{name}_{object_id}"
        as_written = self.root / "Annotations" / f"{source}_{name}_{object_id}"
        return as_written if as_written.is_dir() else usual

    def mask(self, video: int, expression: int, t: int) -> BoolMask:
        """(H, W) bool: the object of an expression on frame `t`. Raises DataError."""
        record = self.videos[video]
        parts = [
            read_objects(self.mask_folder(video, each) / f"{record.frames[t].stem}.png") > 0
            for each in record.expressions[expression].objects
        ]
        union: BoolMask = parts[0]
        for part in parts[1:]:
            union = union | part
        return union

    def _video(self, name: str, entry: Json) -> VideoRecord:
        source = self._text(f"video {name!r}", entry, "source")
        self._safe(source, f"the source of video {name!r}")

        def expression(key: str, each: Json) -> Expression:
            where = f"video {name!r}, expression {key!r}"
            objects = self._ids(where, each, "obj_id")
            for one in objects:
                self._safe(one, f"an object of {where}")
            text = self._text(where, each, "exp_text" if "exp_text" in each else "exp")
            return Expression(key, text, objects, source)

        frames = self._frames(name, entry, self.root / "JPEGImages" / name)
        return VideoRecord(name, frames, self._expressions(name, entry, expression))
