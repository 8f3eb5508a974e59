"""Refer-YouTube-VOS: one object an expression. Knows its folders and annotation files; not models.

Refer-YouTube-VOS/meta_expressions/{train,valid}/meta_expressions.json
Refer-YouTube-VOS/{train,valid}/JPEGImages/VIDEO/FRAME.jpg
Refer-YouTube-VOS/train/Annotations/VIDEO/FRAME.png      object numbers; valid's are on the evaluation server
Refer-YouTube-VOS/train/meta.json                        category of each object
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from .base import DataError, Expression, Json, PictureDataset, VideoRecord, read_json


class YoutubeLayout(PictureDataset):
    """What Refer-YouTube-VOS and the Ref-DAVIS17 made to look like it have in common."""

    def _annotation_file(self) -> Path:
        return self.root / "meta_expressions" / self.split / "meta_expressions.json"

    @property
    def pictures(self) -> Path:
        """Folder of the videos' pictures."""
        return self.root / self.split / "JPEGImages"

    @property
    def annotations_folder(self) -> Path:
        """Folder of the masks."""
        return self.root / self.split / "Annotations"

    @cached_property
    def has_object_pictures(self) -> bool:
        """Whether the folder of masks, pictures of object numbers, is here."""
        return self.annotations_folder.is_dir()

    @property
    def has_masks(self) -> bool:
        """Whether the masks are here."""
        return self.has_object_pictures

    @cached_property
    def _objects(self) -> dict[str, Any]:
        """Objects by video, from meta.json; empty without that file."""
        path = self.root / self.split / "meta.json"
        if not path.is_file():
            return {}
        data = read_json(path)
        videos = data.get("videos") if isinstance(data, dict) else None
        if not isinstance(videos, dict):
            raise DataError(f'{path} has no object "videos"')
        return videos

    def _category(self, name: str, objects: tuple[str, ...]) -> str | None:
        entry = self._objects.get(name)
        listed = entry.get("objects") if isinstance(entry, dict) else None
        found = listed.get(objects[0]) if isinstance(listed, dict) and objects else None
        category = found.get("category") if isinstance(found, dict) else None
        return category if isinstance(category, str) else None

    def _mask_picture(self, record: VideoRecord, t: int) -> Path:
        return self.annotations_folder / record.name / f"{record.frames[t].stem}.png"

    def _video(self, name: str, entry: Json) -> VideoRecord:
        def expression(key: str, each: Json) -> Expression:
            where = f"video {name!r}, expression {key!r}"
            text = self._text(where, each)
            objects: tuple[str, ...] = ()
            if "obj_id" in each or self.has_masks:
                objects = self._ids(where, each, "obj_id")
                for one in objects if self.has_object_pictures else ():
                    self._number(name, one)
            return Expression(key, text, objects, self._category(name, objects))

        return VideoRecord(
            name, self._frames(name, entry, self.pictures / name), self._expressions(name, entry, expression)
        )


class RefYoutubeVos(YoutubeLayout):
    """One split of Refer-YouTube-VOS. Videos that its valid file lists and its test file too are test, and left out."""

    NAME, FOLDER, SPLITS = "ref-youtube-vos", "Refer-YouTube-VOS", ("train", "valid")

    @cached_property
    def raw_videos(self) -> dict[str, Any]:
        """Entries of the annotation file by video, unchecked, without those of the test split."""
        videos = super().raw_videos
        test = self.root / "meta_expressions" / "test" / "meta_expressions.json"
        if self.split != "valid" or not test.is_file():
            return videos
        data = read_json(test)
        held_back = data.get("videos", {}) if isinstance(data, dict) else {}
        return {name: entry for name, entry in videos.items() if name not in held_back}
