"""Ref-DAVIS17: four annotators for each object. Knows its folders and annotation files; not models.

    DAVIS17/meta_expressions/{train,valid}/meta_expressions.json
    DAVIS17/{train,valid}/JPEGImages/VIDEO/FRAME.jpg
    DAVIS17/{train,valid}/Annotations/VIDEO/FRAME.png        object numbers, 255 is void
    DAVIS17/{train,valid}/mask_dict.json                     in place of Annotations: RLE by a count of expressions

A folder with meta_expressions.json, JPEGImages and Annotations right in it is read too (one more folder between these
and the videos, such as 480p, does no harm).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from glus.masks import BoolMask

from .base import DataError, Image8, MaskDict, decode
from .ref_youtube_vos import YoutubeLayout

ANNOTATORS = 4


class RefDavis17(YoutubeLayout):
    """One split of Ref-DAVIS17."""

    NAME, FOLDER, SPLITS = "ref-davis17", "DAVIS17", ("train", "valid")

    @property
    def _flat(self) -> bool:
        return (self.root / "meta_expressions.json").is_file()

    def _annotation_file(self) -> Path:
        return self.root / "meta_expressions.json" if self._flat else super()._annotation_file()

    @cached_property
    def pictures(self) -> Path:
        """Folder of the videos' pictures."""
        return self._holding_videos(self.root / "JPEGImages") if self._flat else super().pictures

    @cached_property
    def annotations_folder(self) -> Path:
        """Folder of the masks."""
        return self._holding_videos(self.root / "Annotations") if self._flat else super().annotations_folder

    def _holding_videos(self, folder: Path) -> Path:
        """The folder itself, or the one in it that has all the videos."""
        names = list(self.raw_videos)
        if folder.is_dir() and not all((folder / name).is_dir() for name in names):
            for inner in sorted(folder.iterdir()):
                if inner.is_dir() and all((inner / name).is_dir() for name in names):
                    return inner
        return folder

    @property
    def has_masks(self) -> bool:
        """Whether the masks are here, in either form."""
        return self.has_object_pictures or self._mask_file.is_file()

    @property
    def _mask_file(self) -> Path:
        return (self.root if self._flat else self.root / self.split) / "mask_dict.json"

    @cached_property
    def _mask_dict(self) -> MaskDict | None:
        return None if self.has_object_pictures else MaskDict(self._existing(self._mask_file))

    @cached_property
    def _running(self) -> dict[tuple[str, str], str]:
        """The released script's annotation ids: a count over videos and expression ids, both sorted as strings."""
        pairs = sorted((record.name, one.id) for record in self.videos for one in record.expressions)
        return {pair: str(number) for number, pair in enumerate(pairs)}

    def mask(self, video: int, expression: int, t: int) -> BoolMask:
        """(H, W) bool: union of the objects of an expression on frame `t`. Raises DataError."""
        if self._mask_dict is None:
            return super().mask(video, expression, t)
        record = self.videos[video]
        number = self._running[record.name, record.expressions[expression].id]
        listed = self._mask_dict[number]
        where = f"{self._mask_file}: annotation {number!r} (video {record.name!r})"
        if len(listed) != len(record.frames):
            raise DataError(f"{where} has masks for {len(listed)} frames, the video has {len(record.frames)}")
        return np.zeros(self.size(video), bool) if listed[t] is None else decode(listed[t], f"{where}, frame {t}")

    # ---- the four annotators ---------------------------------------------------------------------------------------

    def annotators(self, video: int) -> list[list[int]] | None:
        """For each annotator, places of the expressions that name each object in turn; None where there are not four.

        Expressions come object by object, the four annotators of an object together.
        """
        expressions = self.videos[video].expressions
        count = len(expressions)
        together = [expressions[first : first + ANNOTATORS] for first in range(0, count, ANNOTATORS)]
        fits = count and not count % ANNOTATORS and all(len({one.objects for one in group}) == 1 for group in together)
        return [list(range(number, count, ANNOTATORS)) for number in range(ANNOTATORS)] if fits else None

    def objects_picture(self, video: int, t: int) -> Image8:
        """(H, W) uint8 object numbers of frame `t`. Raises DataError."""
        if self._mask_dict is not None:
            raise DataError(f"{self.annotations_folder} is missing; the protocol of four annotators needs its pictures")
        return super().objects_picture(video, t)
