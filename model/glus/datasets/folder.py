"""Our own sample folders: a clip, a phrase, masks, and which of them a human drew. Knows files; not Label Studio.

    SAMPLE/meta.json
    SAMPLE/frames/00000.jpg ...          or, in place of pictures, a reference to a video file

meta.json:

    {"format": 1, "expression": "the dog", "size": [480, 854], "frames": ["frames/00000.jpg", ...], "video": null,
     "masks": {"12": {"size": [480, 854], "counts": "..."}, ...}, "human": [12], "source": {...}}

With a video, `frames` is the number of its frames and `video` its path, absolute or from the sample folder. Frames
without an entry in `masks` are not labelled, which is not the same as empty. A sample appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glus.errors import SettingError
from glus.masks import BoolMask, CocoRle, encode_rle

from .base import DataError, Dataset, Expression, Image8, Json, Reference, VideoRecord, decode, read_json

if TYPE_CHECKING:
    from glus.video import FrameSource

FORMAT = 1
META = "meta.json"


@dataclass(frozen=True)
class Sample:
    """A clip, a phrase, and the masks that are known.

    Attributes:
        expression: the phrase.
        size: (height, width) of frames and masks.
        frames: pictures, paths from the sample folder; or, with `video`, how many frames that has.
        video: path of a video file, absolute or from the sample folder.
        masks: COCO RLE by frame index; an empty mask says that nothing is there.
        human: frames, among those with masks, that a human drew or confirmed.
        source: where it came from, for people and for sorting; anything that JSON holds.
    """

    expression: str
    size: tuple[int, int]
    frames: tuple[str, ...] | int
    masks: Mapping[int, CocoRle]
    human: frozenset[int] = frozenset()
    video: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """How many frames the clip has."""
        return self.frames if isinstance(self.frames, int) else len(self.frames)


def make_sample(
    expression: str,
    masks: Mapping[int, BoolMask],
    *,
    frames: Sequence[str] | int,
    human: Iterable[int] = (),
    video: Reference | None = None,
    source: Mapping[str, Any] | None = None,
) -> Sample:
    """A sample from (H, W) bool masks by frame index. Raises SettingError where the parts do not fit together."""
    sizes = {mask.shape for mask in masks.values()}
    if len(sizes) != 1:
        raise SettingError(f"masks of {len(sizes)} sizes ({sorted(sizes)}); wanted one or more masks of one size")
    height, width = sizes.pop()
    sample = Sample(
        expression=expression,
        size=(height, width),
        frames=frames if isinstance(frames, int) else tuple(frames),
        masks={index: encode_rle(mask) for index, mask in sorted(masks.items())},
        human=frozenset(human),
        video=None if video is None else os.fspath(video),
        source=dict(source or {}),
    )
    problem = _problem(sample)
    if problem:
        raise SettingError(f"this sample {problem}")
    return sample


def write_sample(folder: Reference, sample: Sample, pictures: Mapping[str, bytes | Path] | None = None) -> Path:
    """Write a sample folder, whole or not at all; an earlier one of that name is replaced.

    Args:
        folder: where; its parent is made if missing.
        sample: what.
        pictures: content, or a file to copy, of each picture that `sample.frames` names and that is to lie in the
            folder.

    Raises:
        SettingError: parts that do not fit together, or a picture that is not given.
    """
    place = Path(folder)
    problem = _problem(sample)
    if problem:
        raise SettingError(f"{place}: this sample {problem}")
    given = pictures or {}
    named = () if isinstance(sample.frames, int) else sample.frames
    absent = [name for name in named if name not in given and not Path(name).is_absolute()]
    if absent:
        raise SettingError(f"{place}: no picture given for {absent[0]!r} ({len(absent)} of {len(named)} are missing)")
    work = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    work.mkdir(parents=True)
    try:
        for name, content in given.items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)
        text = json.dumps(_to_json(sample), ensure_ascii=False, separators=(",", ":"))
        (work / META).write_text(text + "\n", encoding="utf-8")
        if place.exists():  # a folder cannot be renamed over another that has files in it
            old = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.old")
            place.rename(old)
            work.rename(place)
            shutil.rmtree(old, ignore_errors=True)
        else:
            work.rename(place)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return place


def read_sample(folder: Reference) -> Sample:
    """A sample folder's meta.json, checked; masks stay encoded. Raises DataError, naming file and entry."""
    path = Path(folder) / META
    data = read_json(path)
    try:
        if data["format"] != FORMAT:
            raise DataError(f"{path} is of format {data['format']!r}; this version reads {FORMAT}")
        height, width = data["size"]
        frames = data["frames"]
        sample = Sample(
            expression=data["expression"],
            size=(height, width),
            frames=frames if isinstance(frames, int) else tuple(frames),
            masks={int(index): rle for index, rle in data["masks"].items()},
            human=frozenset(data.get("human", ())),
            video=data.get("video"),
            source=data.get("source") or {},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not a sample ({type(error).__name__}: {error}); wanted the format {FORMAT}"
        ) from error
    problem = _problem(sample)
    if problem:
        raise DataError(f"{path}: this sample {problem}")
    return sample


def _to_json(sample: Sample) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "expression": sample.expression,
        "size": list(sample.size),
        "frames": sample.frames if isinstance(sample.frames, int) else list(sample.frames),
        "video": sample.video,
        "masks": {str(index): dict(rle) for index, rle in sorted(sample.masks.items())},
        "human": sorted(sample.human),
        "source": dict(sample.source),
    }


def _problem(sample: Sample) -> str | None:
    """What does not fit together, in words that follow "this sample"."""
    return next(_problems(sample), None)


def _problems(sample: Sample) -> Iterator[str]:
    if not isinstance(sample.expression, str) or not sample.expression.strip():
        yield "has no expression; wanted a phrase"
    if (sample.video is not None) != isinstance(sample.frames, int) or sample.length < 1:
        yield "wants either a list of pictures, or a video with the number of its frames"
    if not all(isinstance(n, int) and n > 0 for n in sample.size):
        yield f"is of size {sample.size}; wanted height and width in pixels"
    names = () if isinstance(sample.frames, int) else sample.frames
    if any(not isinstance(name, str) or ".." in Path(name).parts for name in names):
        yield "names a picture outside its folder"
    if not sample.masks:
        yield "has no masks; wanted at least one frame"
    for index, rle in sample.masks.items():
        if not 0 <= index < sample.length:
            yield f"has a mask for frame {index}; its clip has frames 0 to {sample.length - 1}"
        if not isinstance(rle, dict) or list(rle.get("size") or ()) != list(sample.size):
            yield f"has a mask for frame {index} that is not COCO RLE of size {list(sample.size)}"
    if not sample.human <= set(sample.masks):
        yield f"calls frame {min(sample.human - set(sample.masks))} human-made, which has no mask"


class SampleDataset(Dataset):
    """Sample folders: one, or a folder of them (found at any depth). A sample is one video with one expression, "0".

    Only `labelled` frames have a mask. For a sample with a video, `frames` of its record are names only; `frame`
    decodes. The annotation hash covers all meta.json files.
    """

    NAME, FOLDER, SPLITS = "folder", ".", ("all",)

    def _annotation_file(self) -> Path:
        return self.root / META if (self.root / META).is_file() else self.root

    @property
    def has_masks(self) -> bool:
        """Always: a sample without a mask is not one."""
        return True

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Sample folders by name, sorted; hidden ones (being written) are passed over."""
        if (self.root / META).is_file():
            return {self.root.resolve().name: self.root}
        found = {path.parent.relative_to(self.root).as_posix(): path.parent for path in self.root.rglob(META)}
        kept = {
            name: path
            for name, path in sorted(found.items())
            if not any(part.startswith(".") for part in name.split("/"))
        }
        if not kept:
            raise DataError(f"no sample folders in {self.root}; wanted folders with a {META} each")
        return kept

    @cached_property
    def annotation_hash(self) -> str:
        """SHA-256 over the names and meta.json files of all samples, in hex."""
        digest = hashlib.sha256()
        for name, folder in self.folders.items():
            digest.update(name.encode() + b"\0" + hashlib.sha256((folder / META).read_bytes()).digest())
        return digest.hexdigest()

    @cached_property
    def raw_videos(self) -> dict[str, Any]:
        """An empty entry for each sample: its meta.json is read when asked for."""
        return {name: {} for name in self.folders}

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        return {}

    @cached_property
    def _sources(self) -> dict[str, FrameSource]:
        return {}

    def sample(self, name: str) -> Sample:
        """The sample of a name. Raises DataError."""
        if name not in self._samples:
            self._samples[name] = read_sample(self.folders[name])
        return self._samples[name]

    def _video(self, name: str, entry: Json) -> VideoRecord:  # noqa: ARG002 - it is empty
        sample, folder = self.sample(name), self.folders[name]
        if isinstance(sample.frames, int):
            digits = max(5, len(str(sample.frames - 1)))
            frames = tuple(self._video_file(name) / f"{index:0{digits}d}" for index in range(sample.frames))
        else:
            frames = tuple(folder / frame for frame in sample.frames)
        return VideoRecord(name, frames, (Expression("0", sample.expression, ("0",)),))

    def _video_file(self, name: str) -> Path:
        return self.folders[name] / str(self.sample(name).video)  # an absolute path stays as it is

    def labelled(self, video: int, expression: int) -> Sequence[int]:  # noqa: ARG002 - there is one
        """Frames that have a mask, in order."""
        return sorted(self.sample(self.videos[video].name).masks)

    def human(self, video: int) -> frozenset[int]:
        """Frames that a human drew or confirmed."""
        return self.sample(self.videos[video].name).human

    def size(self, video: int) -> tuple[int, int]:
        """(height, width) of a video, as its meta.json says."""
        return self.sample(self.videos[video].name).size

    def frame(self, video: int, t: int) -> Image8:
        """(H, W, 3) uint8 RGB picture of frame `t`. Raises DataError for a picture, VideoError for a video."""
        name = self.videos[video].name
        sample = self.sample(name)
        if not isinstance(sample.frames, int):
            return super().frame(video, t)
        if name not in self._sources:
            from glus.video import open_video

            source = open_video(self._video_file(name))
            if len(source) != sample.frames:
                said = f"{self.folders[name] / META} says {sample.frames}"
                raise DataError(f"{self._video_file(name)} has {len(source)} frames, {said}")
            self._sources[name] = source
        return self._sources[name][t]

    def mask(self, video: int, expression: int, t: int) -> BoolMask:  # noqa: ARG002 - there is one
        """(H, W) bool mask of frame `t`. Raises DataError where that frame is not labelled."""
        name = self.videos[video].name
        sample = self.sample(name)
        if t not in sample.masks:
            raise DataError(
                f"{self.folders[name] / META} has no mask for frame {t}; it has {sorted(sample.masks)[:8]}..."
            )
        return np.asarray(decode(sample.masks[t], f"{self.folders[name] / META}: frame {t}"))
