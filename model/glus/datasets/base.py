"""What a trainer and an evaluator read of a data set: videos, expressions, frames, masks. Knows files; not tensors.

    Dataset                   lazily read, cheap to construct, picklable (caches stay behind)
    ├── MaskDictDataset       masks in one JSON of COCO RLE, by annotation id (MeViS, ReVOS, LV-VIS)
    └── PictureDataset        masks in palette PNGs, one a frame (Refer-YouTube-VOS, Ref-DAVIS17)

Annotations that do not fit are a DataError that names the file and the entry; nothing is skipped in silence.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from glus.errors import GlusError, SettingError
from glus.masks import BoolMask, CocoRle

Image8 = NDArray[np.uint8]
Json = Mapping[str, Any]
Reference = str | os.PathLike[str]
T = TypeVar("T")

# By the name that commands use: module, class. Imported when asked for.
LOADERS: Mapping[str, tuple[str, str]] = {
    "mevis": ("mevis", "Mevis"),
    "ref-youtube-vos": ("ref_youtube_vos", "RefYoutubeVos"),
    "ref-davis17": ("ref_davis", "RefDavis17"),
    "revos": ("revos", "Revos"),
    "reasonvos": ("reason_vos", "ReasonVos"),
    "lvvis": ("lvvis", "LvVis"),
    "folder": ("folder", "SampleDataset"),
}


class DataError(GlusError):
    """A data set that is not there, or an annotation in it that does not fit; names the file and the entry."""

    exit_code = 7


@dataclass(frozen=True)
class Expression:
    """A phrase about a video.

    Attributes:
        id: as in the annotation file, always a string.
        text: the phrase as written there.
        objects: ids of what it refers to; the truth is their union. Empty: nothing is there, or the split hides it.
        category: a group that scores are also averaged over, or None.
    """

    id: str
    text: str
    objects: tuple[str, ...]
    category: str | None = None


@dataclass(frozen=True)
class VideoRecord:
    """A video: its name (may hold slashes), the picture of each frame in order, and what is asked about it."""

    name: str
    frames: tuple[Path, ...]
    expressions: tuple[Expression, ...]

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Names of the frames without folder and suffix, as prediction files have them."""
        return tuple(path.stem for path in self.frames)


class Dataset:
    """One split of a data set under `root`.

    Args:
        root: the folder of the data set, or the one that holds it under its usual name.
        split: one of `SPLITS`; the last of them by default.

    Attributes:
        name: as in commands and reports.
        split: which part.
        root: the folder of the data set.
        annotation_file: where the expressions are.

    Raises:
        SettingError: an unknown split. DataError: no such folder.
    """

    NAME: ClassVar[str]
    FOLDER: ClassVar[str]  # under a root that holds several data sets
    SPLITS: ClassVar[tuple[str, ...]]

    def __init__(self, root: Reference, split: str | None = None) -> None:
        self.name = self.NAME
        self.split = self.SPLITS[-1] if split is None else split
        if self.split not in self.SPLITS:
            raise SettingError(f"{self.name} has no split {split!r}; wanted one of {', '.join(self.SPLITS)}")
        place = Path(root)
        self.root = place / self.FOLDER if (place / self.FOLDER).is_dir() else place
        if not self.root.is_dir():
            raise DataError(
                f"no folder {self.root}; wanted the folder of {self.name}, or the one that holds {self.FOLDER}"
            )
        self.annotation_file = self._annotation_file()
        self._pictures: Recent[Path, Image8] = Recent(8)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name in _CONSTRUCTED}
        return {**kept, "_pictures": Recent(8)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {self.split!r})"

    # ---- to be said by each data set -----------------------------------------------------------------------------

    def _annotation_file(self) -> Path:
        raise NotImplementedError

    @property
    def has_masks(self) -> bool:
        """Whether the truth of this split is here, so that predictions can be scored."""
        raise NotImplementedError

    def _video(self, name: str, entry: Json) -> VideoRecord:
        """The record of one entry of the annotation file. Raises DataError."""
        raise NotImplementedError

    def mask(self, video: int, expression: int, t: int) -> BoolMask:
        """(H, W) bool: union of the objects of an expression on frame `t`. Raises DataError."""
        raise NotImplementedError

    # ---- the same for all ----------------------------------------------------------------------------------------

    @cached_property
    def annotation_hash(self) -> str:
        """SHA-256 of the annotation file, in hex: which questions a score answers."""
        with self._existing(self.annotation_file).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def raw_videos(self) -> dict[str, Any]:
        """Entries of the annotation file by video, unchecked."""
        data = read_json(self.annotation_file)
        videos = data.get("videos") if isinstance(data, dict) else None
        if not isinstance(videos, dict):
            raise DataError(f'{self.annotation_file} has no object "videos"; wanted {{"videos": {{name: ...}}}}')
        return videos

    @cached_property
    def videos(self) -> Sequence[VideoRecord]:
        """All videos, in the order of the annotation file. Raises DataError where an entry does not fit."""
        return [self.record(name) for name in self.raw_videos]

    def record(self, name: str) -> VideoRecord:
        """The checked entry of one video. Raises DataError."""
        entry = self.raw_videos[name]
        self._safe(name, name)
        if not isinstance(entry, dict):
            raise self.broken(name, f"is {type(entry).__name__}; wanted an object with frames and expressions")
        return self._video(name, entry)

    def labelled(self, video: int, expression: int) -> Sequence[int]:  # noqa: ARG002 - all, where not said otherwise
        """Frames whose truth is known, in order."""
        return range(len(self.videos[video].frames))

    def frame(self, video: int, t: int) -> Image8:
        """(H, W, 3) uint8 RGB picture of frame `t` of a video. Raises DataError, naming the file."""
        return read_picture(self.videos[video].frames[t])

    def size(self, video: int) -> tuple[int, int]:
        """(height, width) of a video, from the header of its first picture."""
        return picture_size(self.videos[video].frames[0])

    def masks(self, video: int, expression: int, frames: Iterable[int] | None = None) -> BoolMask:
        """(T, H, W) bool: `mask` of several frames; by default those that are labelled."""
        wanted = self.labelled(video, expression) if frames is None else frames
        return np.stack([self.mask(video, expression, t) for t in wanted])

    # ---- helpers for the loaders ---------------------------------------------------------------------------------

    def broken(self, entry: str, what: str) -> DataError:
        """The error about an entry of the annotation file."""
        return DataError(f"{self.annotation_file}: {entry} {what}")

    def _existing(self, path: Path) -> Path:
        if not path.is_file():
            raise DataError(f"no file {path}; {self.name} ({self.split}) wants it there")
        return path

    def _frames(self, name: str, entry: Json, folder: Path, suffix: str = ".jpg") -> tuple[Path, ...]:
        frames = entry.get("frames")
        if not isinstance(frames, list) or not frames:
            raise self.broken(f"video {name!r}", "has no list of frames; wanted names such as '00000'")
        for frame in frames:
            self._safe(frame, f"a frame of video {name!r}")
        if len(set(frames)) != len(frames):
            raise self.broken(f"video {name!r}", "names a frame twice")
        return tuple(folder / f"{frame}{suffix}" for frame in frames)

    def _expressions(
        self,
        name: str,
        entry: Json,
        make: Callable[[str, Json], Expression],
    ) -> tuple[Expression, ...]:
        given = entry.get("expressions")
        if isinstance(given, list):  # numbered by their place unless they say otherwise
            listed = [
                (each.get("exp_id", place) if isinstance(each, dict) else place, each)
                for place, each in enumerate(given)
            ]
        elif isinstance(given, dict):
            listed = list(given.items())
        else:
            raise self.broken(f"video {name!r}", "has no expressions; wanted an object of them")
        made = []
        for key, each in listed:
            where = f"video {name!r}, expression {key!r}"
            self._safe(str(key), where)
            if not isinstance(each, dict):
                raise self.broken(where, f"is {type(each).__name__}; wanted an object with its text")
            made.append(make(str(key), each))
        if len({one.id for one in made}) != len(made):
            raise self.broken(f"video {name!r}", "has two expressions of one id")
        return tuple(made)

    def _text(self, where: str, entry: Json, key: str = "exp") -> str:
        text = entry.get(key)
        if not isinstance(text, str) or not text.strip():
            raise self.broken(where, f"has {text!r} for {key!r}; wanted a phrase")
        return text

    def _ids(self, where: str, entry: Json, key: str) -> tuple[str, ...]:
        """Ids under `key`: a number, a string, or a list of them."""
        given = entry.get(key)
        listed = given if isinstance(given, list) else [given]
        if any(isinstance(each, bool) or not isinstance(each, int | str) or each == "" for each in listed):
            raise self.broken(where, f"has {given!r} for {key!r}; wanted ids, as numbers or strings")
        return tuple(dict.fromkeys(str(each) for each in listed))

    def _safe(self, name: object, where: str) -> None:
        """Names become paths, so none may lead out of its folder."""
        if not isinstance(name, str) or not name or name.startswith("/") or "\\" in name or "\0" in name:
            raise self.broken(where, f"is named {name!r}; wanted a relative name")
        if any(part in {"", ".", ".."} for part in name.split("/")):
            raise self.broken(where, f"is named {name!r}, which leads out of its folder")


_CONSTRUCTED = {"name", "split", "root", "annotation_file"}  # what pickling keeps; the rest is read again


class MaskDictDataset(Dataset):
    """Masks in one large JSON: annotation id to a list with the COCO RLE, or null, of each frame."""

    def __init__(self, root: Reference, split: str | None = None) -> None:
        super().__init__(root, split)
        self.mask_file = self._mask_file()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "mask_file": self.mask_file}

    def _mask_file(self) -> Path:
        raise NotImplementedError

    @property
    def has_masks(self) -> bool:
        """Whether the mask file is here."""
        return self.mask_file.is_file()

    @cached_property
    def mask_dict(self) -> MaskDict:
        """The mask file, opened."""
        return MaskDict(self._existing(self.mask_file))

    def annotations(self, video: int, expression: int) -> tuple[str, ...]:
        """Ids, in the mask file, of an expression's objects; here they are its `objects`."""
        return self.videos[video].expressions[expression].objects

    def mask(self, video: int, expression: int, t: int) -> BoolMask:
        """(H, W) bool: union of the objects of an expression on frame `t`. Raises DataError."""
        record = self.videos[video]
        union: BoolMask | None = None
        for annotation in self.annotations(video, expression):
            listed = self.mask_dict[annotation]
            if len(listed) != len(record.frames):
                raise DataError(
                    f"{self.mask_file}: annotation {annotation!r} has masks for {len(listed)} frames, "
                    f"video {record.name!r} has {len(record.frames)}"
                )
            if listed[t] is not None:
                mask = decode(listed[t], f"{self.mask_file}: annotation {annotation!r}, frame {t}")
                if union is not None and union.shape != mask.shape:
                    raise DataError(
                        f"{self.mask_file}: annotation {annotation!r}, frame {t} is {mask.shape}, not {union.shape}"
                    )
                union = mask if union is None else union | mask
        return np.zeros(self.size(video), dtype=bool) if union is None else union


class PictureDataset(Dataset):
    """Masks in palette pictures, one a frame: 0 is background, other values are objects, 255 is void."""

    def _mask_picture(self, record: VideoRecord, t: int) -> Path:
        raise NotImplementedError

    def objects_picture(self, video: int, t: int) -> Image8:
        """(H, W) uint8 object numbers of frame `t`. Raises DataError."""
        path = self._mask_picture(self.videos[video], t)
        found = self._pictures.get(path)
        return self._pictures.put(path, read_objects(path)) if found is None else found

    def mask(self, video: int, expression: int, t: int) -> BoolMask:
        """(H, W) bool: union of the objects of an expression on frame `t`. Raises DataError."""
        record = self.videos[video]
        numbers = [self._number(record.name, each) for each in record.expressions[expression].objects]
        return np.isin(self.objects_picture(video, t), numbers)

    def _number(self, name: str, object_id: str) -> int:
        if not object_id.isdecimal() or not 0 < int(object_id) < 255:
            raise self.broken(f"video {name!r}", f"refers to object {object_id!r}; wanted a number from 1 to 254")
        return int(object_id)


def open_dataset(name: str, root: Reference, split: str | None = None) -> Dataset:
    """A data set by its name in commands.

    Args:
        name: one of `LOADERS`.
        root: its folder, or the one that holds it under its usual name.
        split: the last of its splits (validation) by default.

    Raises:
        SettingError: unknown name or split. DataError: not there.
    """
    if name not in LOADERS:
        raise SettingError(f"unknown data set {name!r}; wanted one of {', '.join(LOADERS)}")
    module, kind = LOADERS[name]
    return cast("Dataset", getattr(import_module(f"glus.datasets.{module}"), kind)(root, split))


# ---- files ----------------------------------------------------------------------------------------------------------


K = TypeVar("K", bound=Hashable)


class Recent(Generic[K, T]):
    """The last few values by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, T] = OrderedDict()

    def get(self, key: K) -> T | None:
        """The value, if it is still here."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: K, value: T) -> T:
        """Keep a value, and let go of the one unused for longest."""
        self._values[key] = value
        if len(self._values) > self._size:
            self._values.popitem(last=False)
        return value


class MaskDict:
    """A mask_dict.json that is indexed, not loaded: those of MeViS and ReVOS take gigabytes once parsed.

    A scan finds where each annotation's list begins (the letters of an RLE contain no quotes, so a quoted name before
    a bracket is a key); only the lists asked for are parsed. The last few are kept.

    Raises:
        DataError: not such a file; naming the annotation, where its list is asked for and does not parse.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise DataError(f"{path} is empty; wanted {{annotation id: [RLE or null, ...]}}")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._spans: dict[str, tuple[int, int]] = {}
        name, begin = None, 0
        for match in _LIST.finditer(self._bytes):
            if match[1] in {b"size", b"counts"}:
                continue
            self._note(name, begin, match.start())
            name, begin = match[1].decode("utf-8", "replace"), match.end() - 1
        self._note(name, begin, len(self._bytes))
        if not (self._bytes[:64].lstrip().startswith(b"{") and self._bytes[-64:].rstrip().endswith(b"}")):
            raise DataError(f"{path} is cut off, or not {{annotation id: [RLE or null, ...]}}; copy the file again")
        self._recent: Recent[str, list[CocoRle | None]] = Recent(32)

    def _note(self, name: str | None, begin: int, end: int) -> None:
        if name is None:
            return
        if name in self._spans:
            raise DataError(f"{self.path} has two annotations {name!r}")
        self._spans[name] = begin, end

    def __contains__(self, annotation: str) -> bool:
        return annotation in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, annotation: str) -> list[CocoRle | None]:
        """The RLE, or None, of each frame."""
        found = self._recent.get(annotation)
        if found is not None:
            return found
        if annotation not in self._spans:
            raise DataError(f"{self.path} has no annotation {annotation!r}; it has {len(self)} others")
        begin, end = self._spans[annotation]
        try:  # what follows the list (a comma, a brace) is left over
            listed, _ = json.JSONDecoder().raw_decode(self._bytes[begin:end].decode("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{self.path}: annotation {annotation!r} is damaged ({error}); copy the file again"
            ) from error
        return self._recent.put(annotation, listed)


_LIST = re.compile(rb'"([^"\\]{1,200})"\s*:\s*\[')


def decode(rle: object, where: str) -> BoolMask:
    """COCO RLE to (H, W) bool; `where` names it in a DataError."""
    from pycocotools import mask as coco

    size = rle.get("size") if isinstance(rle, dict) else None
    counts = rle.get("counts") if isinstance(rle, dict) else None
    sized = isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n < 2**15 for n in size)
    if not sized or not isinstance(counts, str | list):
        raise DataError(f"{where} is {str(rle)[:80]}; wanted COCO RLE {{'size': [height, width], 'counts': ...}}")
    height, width = cast("list[int]", size)
    try:
        if isinstance(counts, list):
            _check_lengths(np.array(counts, dtype=np.int64), height * width)
            encoded = coco.frPyObjects({"size": size, "counts": counts}, height, width)
        else:
            _check_lengths(_run_lengths(counts.encode("ascii")), height * width)
            encoded = {"size": size, "counts": counts.encode("ascii")}
        return cast("BoolMask", coco.decode(encoded).astype(bool))
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where} cannot be decoded ({error}); copy the file again") from error


def _run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Lengths of the runs of compressed COCO RLE: 5 bits a letter, the sixth says that the number goes on."""
    letters = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if letters.size == 0 or ((letters < 0) | (letters > 63)).any() or letters[-1] & 32:
        raise ValueError("not compressed run lengths")
    ends = np.flatnonzero((letters & 32) == 0)
    begins = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - begins + 1
    if sizes.max() > 8:
        raise ValueError("a run longer than any picture")
    places = np.arange(letters.size) - np.repeat(begins, sizes)
    runs = np.add.reduceat((letters & 31) << (5 * places), begins)
    runs -= np.where(letters[ends] & 16, 1 << (5 * sizes), 0)  # the sign is in the last letter
    # From the fourth on, what is written is the difference to the run two before.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check_lengths(runs: NDArray[np.int64], pixels: int) -> None:
    """Raise where runs do not cover the picture: pycocotools 2.0.11 then writes past its memory or leaves it unset."""
    if (runs < 0).any() or runs.sum() != pixels:
        raise ValueError(f"runs of {int(runs.sum())} pixels for a picture of {pixels}")


def read_json(path: Path) -> Any:
    """A JSON file. Raises DataError when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"no file {path}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); wanted JSON: copy the file again") from error


def read_picture(path: Path) -> Image8:
    """(H, W, 3) uint8 RGB. Raises DataError, naming the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"no picture {path}") from error
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
        raise DataError(f"picture {path} cannot be read ({error}); copy it again") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width), from the header. Raises DataError, naming the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise DataError(f"no picture {path}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"picture {path} cannot be read ({error}); copy it again") from error


def read_objects(path: Path) -> Image8:
    """(H, W) uint8 values of a palette or grey picture. Raises DataError, naming the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in {"P", "L", "1"}:
                raise DataError(
                    f"mask {path} is a picture of mode {image.mode}; wanted object numbers (palette or grey)"
                )
            return np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"no mask {path}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"mask {path} cannot be read ({error}); copy it again") from error
