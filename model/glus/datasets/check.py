"""What data sets lie under a folder, how much is in them, and what is broken. Reads annotations; not tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from glus.errors import GlusError

from .base import LOADERS, DataError, Dataset, MaskDictDataset, Reference, decode, open_dataset, read_objects
from .folder import META, SampleDataset
from .lvvis import LvVis
from .mevis import Mevis
from .reason_vos import ReasonVos
from .ref_davis import RefDavis17
from .ref_youtube_vos import YoutubeLayout
from .revos import Revos

Level = Literal["found", "note", "broken"]
SAID = 20  # broken entries of one split that are said one by one; the rest is counted


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        dataset: name and split, such as "mevis valid_u".
        level: "found" (with counts), "note" (not wrong, worth knowing) or "broken".
        message: what, naming file and entry.
        counts: of a "found": videos, expressions, frames, ...
    """

    dataset: str
    level: Level
    message: str
    counts: dict[str, int] = field(default_factory=dict)


def check(
    root: Reference, *, images: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> list[Finding]:
    """Look through a folder that holds data sets under their usual names, or through the folder of one.

    Every annotation entry is checked, and that each picture it names is there. With `images` every picture and mask
    is decoded too, which takes long on full data sets.

    Args:
        root: the folder.
        images: whether to decode all pictures and masks.
        progress: called with the name of a split, videos done and videos in all.

    Returns:
        Findings in the order of data sets; no "broken" among them means that all that was found can be used.

    Raises:
        DataError: no such folder.
    """
    place = Path(root)
    if not place.is_dir():
        raise DataError(f"no folder {place}; wanted the one that holds mevis, Refer-YouTube-VOS and so on")
    findings: list[Finding] = []
    for dataset in _found(place, findings):
        _Check(dataset, images, progress, findings).run()
    if not findings:
        wanted = "folders mevis, Refer-YouTube-VOS, DAVIS17, ReVOS, ReasonVOS or LVVIS in the released layout"
        findings.append(Finding("", "note", f"no data set in {place}; wanted {wanted}, or sample folders"))
    return findings


def _found(root: Path, findings: list[Finding]) -> Iterator[Dataset]:
    """Each split whose annotation file is there; a note for those that are not, where their data set is."""
    for name in LOADERS:
        if name == "folder":
            if not any(finding.level == "found" for finding in findings) and _has_samples(root):
                yield SampleDataset(root)
            continue
        whole = open_dataset(name, root)
        named = whole.root != root
        # Without the usual name only a layout that no other data set has can be told.
        if not named and not _is_itself(whole, root):
            continue
        by_file = {each.annotation_file: each for each in (open_dataset(name, root, split) for split in whole.SPLITS)}
        splits = list(by_file.values())  # one file for all: the last
        there = [split for split in splits if split.annotation_file.is_file()]
        for split in splits:
            if split in there:
                yield split
            elif named or there:
                findings.append(Finding(f"{name} {split.split}", "note", f"not here: no {split.annotation_file}"))


def _is_itself(dataset: Dataset, root: Path) -> bool:
    """Whether the folder given is this data set: by its usual name, else by what is in it."""
    names = {open_dataset(name, root).FOLDER.lower(): name for name in LOADERS if name != "folder"}
    if root.resolve().name.lower() in names:
        return names[root.resolve().name.lower()] == dataset.name
    if not any(type(dataset)(root, split).annotation_file.is_file() for split in dataset.SPLITS):
        return False
    if isinstance(dataset, RefDavis17):  # divided by split it looks like Refer-YouTube-VOS
        there = dataset.annotation_file.parent == root and (root / "JPEGImages").is_dir()
        return there and not (root / "mask_dict.json").is_file() and not _has_sources(dataset)
    if isinstance(dataset, ReasonVos):
        return _has_sources(dataset)
    flat = (root / "JPEGImages").is_dir()
    if isinstance(dataset, Mevis):
        return dataset.annotation_file.parent != root or (flat and dataset.has_masks)
    return (root / "train" / "JPEGImages").is_dir() if isinstance(dataset, LvVis) else True


def _has_sources(dataset: Dataset) -> bool:
    try:
        return any(isinstance(entry, dict) and "source" in entry for entry in dataset.raw_videos.values())
    except DataError:
        return False


def _has_samples(root: Path) -> bool:
    return next((True for path in root.rglob(META) if '"format"' in path.read_text(errors="replace")[:200]), False)


class _Check:
    def __init__(
        self,
        dataset: Dataset,
        images: bool,
        progress: Callable[[str, int, int], None] | None,
        findings: list[Finding],
    ) -> None:
        self.dataset, self.images, self.progress, self.findings = dataset, images, progress, findings
        self.title = f"{dataset.name} {dataset.split}"
        self.broken = 0

    def run(self) -> None:
        counts = dict.fromkeys(("videos", "expressions", "frames", "without_target"), 0)
        place = len(self.findings)
        try:
            names = list(self.dataset.raw_videos)
        except GlusError as error:
            self._break(error)
            names = []
        good = []
        for name in names:
            try:
                good.append(self.dataset.record(name))
            except GlusError as error:
                self._break(error)
        # The rest is asked by index; videos whose entry is broken are left out of it.
        self.dataset.__dict__["videos"] = good
        for index, record in enumerate(good):
            if self.progress is not None:
                self.progress(self.title, index, len(good))
            counts["videos"] += 1
            counts["expressions"] += len(record.expressions)
            counts["frames"] += len(record.frames)
            if self.dataset.has_masks:
                counts["without_target"] += sum(not one.objects for one in record.expressions)
            for part in (self._pictures, self._masks):
                try:
                    part(index)
                except GlusError as error:
                    self._break(error)
        if self.broken > SAID:
            self.findings.append(Finding(self.title, "broken", f"and {self.broken - SAID} more"))
        self._notes()
        told = f"{counts['videos']} videos, {counts['expressions']} expressions, {counts['frames']} frames"
        masks = "with masks" if self.dataset.has_masks else "without masks (for the evaluation server)"
        self.findings.insert(place, Finding(self.title, "found", f"{told}, {masks}: {self.dataset.root}", counts))

    def _break(self, error: GlusError) -> None:
        self.broken += 1
        if self.broken <= SAID:
            self.findings.append(Finding(self.title, "broken", str(error)))

    def _notes(self) -> None:
        if isinstance(self.dataset, Revos) and not self.dataset.foreground_file.is_file():
            self.findings.append(
                Finding(self.title, "note", f"no {self.dataset.foreground_file}: the robustness score needs it")
            )
        if isinstance(self.dataset, RefDavis17) and self.dataset.split == "valid":
            ungrouped = [
                record.name
                for index, record in enumerate(self.dataset.videos)
                if self.dataset.annotators(index) is None
            ]
            if ungrouped:
                self.findings.append(
                    Finding(
                        self.title,
                        "note",
                        f"video {ungrouped[0]!r} and {len(ungrouped) - 1} others lack four expressions an object: "
                        "only the per-expression protocol applies",
                    )
                )

    def _pictures(self, index: int) -> None:
        record = self.dataset.videos[index]
        if isinstance(self.dataset, SampleDataset) and record.frames[0].parent.is_file():
            if self.images:
                self.dataset.frame(index, len(record.frames) - 1)
            return
        folders = {path.parent for path in record.frames}
        there = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
        absent = [path for path in record.frames if path not in there]
        if absent:
            raise DataError(
                f"no picture {absent[0]} ({len(absent)} of the {len(record.frames)} of its video are missing)"
            )
        if self.images:
            sizes = {self.dataset.frame(index, t).shape for t in range(len(record.frames))}
            if len(sizes) > 1:
                raise DataError(f"pictures of {len(sizes)} sizes in {record.frames[0].parent}; wanted one")

    def _masks(self, index: int) -> None:
        dataset = self.dataset
        if not dataset.has_masks:
            return
        record = dataset.videos[index]
        if isinstance(dataset, MaskDictDataset):
            for number in range(len(record.expressions)):
                for annotation in dataset.annotations(index, number):
                    listed = len(dataset.mask_dict[annotation])
                    if listed != len(record.frames):
                        raise DataError(
                            f"{dataset.mask_file}: annotation {annotation!r} has masks for {listed} frames, "
                            f"video {record.name!r} has {len(record.frames)}"
                        )
        elif isinstance(dataset, YoutubeLayout | ReasonVos):
            wanted = self._mask_pictures(index)
            there = {
                path for folder in {each.parent for each in wanted} if folder.is_dir() for path in folder.iterdir()
            }
            absent = [path for path in wanted if path not in there]
            if absent:
                raise DataError(f"no mask {absent[0]} ({len(absent)} of the {len(wanted)} of its video are missing)")
        if self.images or isinstance(dataset, SampleDataset):
            self._decode(index)

    def _mask_pictures(self, index: int) -> list[Path]:
        dataset, record = self.dataset, self.dataset.videos[index]
        if isinstance(dataset, ReasonVos):
            objects = {each for one in record.expressions for each in one.objects}
            folders = [dataset.mask_folder(index, each) for each in sorted(objects)]
            return [folder / f"{name}.png" for folder in folders for name in record.frame_names]
        if isinstance(dataset, RefDavis17) and not dataset.has_object_pictures:
            return []
        assert isinstance(dataset, YoutubeLayout)
        return [dataset.annotations_folder / record.name / f"{name}.png" for name in record.frame_names]

    def _decode(self, index: int) -> None:
        dataset, record = self.dataset, self.dataset.videos[index]
        if isinstance(dataset, MaskDictDataset):
            wanted = (np.zeros(dataset.size(index)).shape, record.name)
            for annotation in {each for n in range(len(record.expressions)) for each in dataset.annotations(index, n)}:
                for t, rle in enumerate(dataset.mask_dict[annotation]):
                    where = f"{dataset.mask_file}: annotation {annotation!r}, frame {t}"
                    if rle is not None and decode(rle, where).shape != wanted[0]:
                        raise DataError(f"{where} is not of the size of video {wanted[1]!r}, {wanted[0]}")
        elif isinstance(dataset, YoutubeLayout | ReasonVos) and self._mask_pictures(index):
            size = dataset.size(index)
            for path in self._mask_pictures(index):
                if read_objects(path).shape != size:
                    raise DataError(f"mask {path} is not of the size of its pictures, {size}")
        else:
            for number in range(len(record.expressions)):
                dataset.masks(index, number)
