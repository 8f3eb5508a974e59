"""One segmentation run, written into a folder and resumable. Knows frames and files; not click or terminals.

The folder of a run:

    <prompt>/<frame>.png   8-bit grey, 0 or 255, at the video's size; <frame> is the frame's index, from 0
    overlay.mp4            the video with every prompt in its colour and a legend
    masks.json             every mask as COCO RLE (below)
    run.json               what was asked, and whether it is finished
    .run/                  while unfinished: masks.jsonl (journal), state.safetensors (model state), lock

`masks.json`, the same whenever and however often the run was interrupted:

    {"format":   1,
     "video":    {"name", "width", "height", "frames", "fps", "fps_exact": "30000/1001", "sha256"},
     "model":    {"checkpoint", "vision_tower", "sam2_config", "memory_fuser_gamma", "asked_dtype",
                  "device": "cuda", "dtype": "bfloat16"},
     "settings": {"key_frame": number, "auto" or null, "memory": bool, "chosen_key_frame": for "auto"},
     "prompts":  [{"expression": "the dog that turns left", "folder": "the-dog-that-turns-left"}],
     "masks":    [{"frame": 0, "time": seconds, "expression": index into prompts,
                   "segmentation": {"size": [height, width], "counts": string}, "area": pixels,
                   "bbox": [x, y, width, height], "score": 0..1, "present": bool}]}

`masks` has one entry per frame and prompt, ordered by frame, then by prompt; an absent object has an empty
mask and `present` false. `time` is when the video shows the frame, from its own timestamps, so it is right at
any frame rate. A folder or file of the model is named with the digest of what is in it.

A run may be killed at any point. Each file is written under another name and renamed. A line in the journal
means that the mask's PNG is there; the state says up to which byte of the journal it speaks for, so on
resuming the rest of the journal is cut off and those frames are computed again, to the same result.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import time
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from glus.errors import DeviceMemoryError, GlusError, PromptError, SettingError
from glus.masks import BoolMask, FrameMask, decode_rle, encode_rle

if TYPE_CHECKING:
    import torch

    from glus.modeling.glus import Glus
    from glus.streaming import Segmentation
    from glus.video import FrameSource

FORMAT = 1
FORMATS = ("png", "overlay", "coco")
Stage = Literal["loading", "key frame", "segmenting", "overlay"]
INSTALL = "pip install 'glus-label-studio[model]'"
_MODEL_MODULES = {
    "accelerate",
    "av",
    "cv2",
    "huggingface_hub",
    "PIL",
    "pycocotools",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
}


@dataclass(frozen=True)
class Settings:
    """What is asked of a run. References are what `glus.checkpoints.load` takes: folders, files, names."""

    video: str
    prompts: tuple[str, ...]
    model: str
    vision_tower: str | None = None
    sam2_config: str | None = None
    formats: tuple[str, ...] = FORMATS
    key_frame: int | Literal["auto"] | None = None
    memory: bool = True
    memory_fuser_gamma: Literal["checkpoint", "reset"] | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` frames; an earlier run did the first `resumed` of them."""

    stage: Stage
    done: int
    total: int
    resumed: int = 0


@dataclass(frozen=True)
class PromptSummary:
    """What was found of a prompt; `mean_score` is over the frames with the object, None if there are none."""

    expression: str
    folder: str
    frames_with_object: int
    mean_score: float | None


@dataclass(frozen=True)
class RunReport:
    """How a run ended: `finished` (`already`: before this one), or stopped after `done` of `total`."""

    out: Path
    finished: bool
    already: bool
    done: int
    total: int
    computed: int
    seconds: float
    formats: tuple[str, ...]
    prompts: tuple[PromptSummary, ...]


class _Stop(Exception):  # noqa: N818 - never leaves this file
    """The caller asked to stop."""


@dataclass(frozen=True)
class _State:
    """What a run goes on from: the model's state, and the journal's length then."""

    journal_bytes: int = 0
    tensors: Mapping[str, torch.Tensor] | None = None


def run(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    save_every: float = 5.0,
) -> RunReport:
    """Segment a video into the folder `out`, going on from where an earlier, identical run stopped.

    Args:
        settings: what to segment and how.
        out: folder to write; made if missing.
        overwrite: throw away what an earlier run left in `out`.
        progress: called at the start of each stage and after each frame.
        stop: asked after each frame; True ends the run in order, to be resumed.
        save_every: seconds between two saves of the model state; more where a save takes long.

    Raises:
        GlusError: in its own words, whatever people can do something about.
    """
    check_prompts(settings.prompts)
    unknown = [name for name in settings.formats if name not in FORMATS]
    if unknown or not settings.formats:
        raise SettingError(f"unknown output format {', '.join(unknown) or '(none)'}; choose from {', '.join(FORMATS)}")
    with plain_errors():
        caller = _Caller(progress or (lambda _: None), stop or (lambda: False), save_every)
        return _run(settings, Path(out), overwrite, caller)


@dataclass(frozen=True)
class _Caller:
    """What the caller wants to hear and say during the run."""

    progress: Callable[[Progress], None]
    stop: Callable[[], bool]
    save_every: float


def _run(settings: Settings, out: Path, overwrite: bool, caller: _Caller) -> RunReport:
    from glus.video import open_video

    folder, folders = _Folder(out), prompt_folders(settings.prompts)
    if Path(settings.video).resolve() in {out.resolve(), *((out / name).resolve() for name in folders)}:
        raise SettingError(f"--out {out} would write among the pictures of {settings.video}: give another")
    with open_video(settings.video) as source, folder.locked():
        frames = len(source)
        if isinstance(settings.key_frame, int) and not 0 <= settings.key_frame < frames:
            raise SettingError(
                f"key frame {settings.key_frame} is not in {source.name}, which has {frames} frames: "
                f"give a number from 0 to {frames - 1}, or auto"
            )
        asked = _identity(settings)
        manifest = folder.manifest(unreadable={"folders": folders} if overwrite else None)
        if manifest is not None and (overwrite or manifest["state"] == "discarded"):
            folder.discard(manifest)
            manifest = None
        if manifest is None:
            folder.refuse_foreign(folders)
            folder.forget_state()
            manifest = {"format": FORMAT, "state": "unfinished", "asked": asked}
            manifest |= {"frames": frames, "folders": folders}
        _refuse_another_run(out, manifest, asked)
        if manifest["state"] == "finished":
            folder.drop_state()
            return _report_of(settings, out, manifest)
        return _Run(settings, folder, manifest, source, caller).go()


class _Run:
    """The steps of one run, over a folder that is locked and was found to be ours."""

    def __init__(
        self,
        settings: Settings,
        folder: _Folder,
        manifest: dict[str, Any],
        source: FrameSource,
        caller: _Caller,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.manifest = manifest
        self.source = source
        self.progress = caller.progress
        self.stop = caller.stop
        self.save_every = caller.save_every
        self.computed = 0
        self.seconds = 0.0

    def go(self) -> RunReport:
        state = self.folder.read_state()
        path = self.folder.state_dir / "masks.jsonl"
        with _Journal(path, len(self.source), len(self.settings.prompts), state.journal_bytes) as journal:
            try:
                self._segment(journal, state)
                if "coco" in self.settings.formats:
                    self.folder.write_whole("masks.json", self._masks_json(journal))
                if "overlay" in self.settings.formats:
                    self._overlay(journal)
            except _Stop:
                return self._report(journal, finished=False)
            report = self._report(journal, finished=True)
        self.manifest["state"] = "finished"
        self.manifest["prompts"] = [asdict(prompt) for prompt in report.prompts]
        self.folder.write_json("run.json", self.manifest)
        self.folder.drop_state()
        return report

    def _segment(self, journal: _Journal, state: _State) -> None:
        if journal.frames and journal.frames == len(self.source):
            return  # only the files made from the journal are missing: no model is needed for them
        self.progress(Progress("loading", 0, 1))
        model = self._load()
        from glus.streaming import Segmentation

        segmentation = Segmentation(
            model,
            self.source,
            self.settings.prompts,
            memory=self.settings.memory,
            key_frame=self._key_frame(model),
            state=state.tensors,
        )
        # Only now: a run that fails on its prompts or its model leaves nothing that the next has to match.
        self.folder.write_json("run.json", self.manifest)
        resumed = journal.frames
        self.progress(Progress("segmenting", resumed, len(self.source), resumed))
        started = time.monotonic()
        masks = iter(segmentation)
        try:
            if self.stop():
                raise _Stop
            self._frames(segmentation, masks, journal, resumed)
        finally:
            self.seconds = time.monotonic() - started
            close = getattr(masks, "close", None)
            if close is not None:  # so that frames are no longer read ahead
                close()
        # Asked again, for a file that turns out to be damaged midway has fewer frames than it promised.
        missing = len(self.source) - journal.frames
        if missing:
            raise GlusError(f"{self.source.name}: {missing} of {len(self.source)} frames were not segmented")
        self.folder.write_state(_State(journal.sync()))

    def _frames(self, segmentation: Segmentation, masks: Iterator[FrameMask], journal: _Journal, resumed: int) -> None:
        saved, save_every = time.monotonic(), self.save_every
        frame: list[dict[str, Any]] = []
        for found in masks:
            frame.append(self._keep(found))
            if len(frame) < len(self.settings.prompts):
                continue
            journal.add(frame)
            frame = []
            self.computed += 1
            self.progress(Progress("segmenting", journal.frames, len(self.source), resumed))
            now, stopping = time.monotonic(), self.stop()
            if stopping or now - saved >= save_every:
                # Within frames that are computed together the state is behind the journal: on resuming, some
                # come again, and the journal's last line on a mask counts.
                self.folder.write_state(_State(journal.sync(), segmentation.state_dict()))
                saved = time.monotonic()
                save_every = max(self.save_every, 20 * (saved - now))
            if stopping:
                raise _Stop

    def _load(self) -> Glus:
        from glus.checkpoints import load

        model = load(
            self.settings.model,
            vision_tower=self.settings.vision_tower,
            sam2_config=self.settings.sam2_config,
            device=self.settings.device,
            dtype=self.settings.dtype,
            memory_fuser_gamma=self.settings.memory_fuser_gamma,
        )
        weight = next(model.parameters())
        runs_on = {"device": weight.device.type, "dtype": str(weight.dtype).removeprefix("torch.")}
        before = self.manifest.setdefault("runs_on", runs_on)
        if before != runs_on:
            raise SettingError(
                f"{self.folder.out} holds an unfinished run on {before['device']} in {before['dtype']}; on "
                f"{runs_on['device']} in {runs_on['dtype']} its masks would not match: go on where it "
                "began, or start over with --overwrite"
            )
        return model

    def _key_frame(self, model: Glus) -> int | None:
        """The key frame; for `auto`, the one chosen first: a resumed run must not choose again."""
        if self.settings.key_frame != "auto":
            return self.settings.key_frame
        if "key_frame" not in self.manifest:
            from glus.key_frames import choose

            self.progress(Progress("key frame", 0, 1))
            self.manifest["key_frame"] = choose(model, self.source, self.settings.prompts)
        return int(self.manifest["key_frame"])

    def _keep(self, found: FrameMask) -> dict[str, Any]:
        """Write the PNG of one mask; returns its entry in the journal and in masks.json."""
        if "png" in self.settings.formats:
            folder = self.manifest["folders"][found.expression_index]
            self.folder.write_whole(
                f"{folder}/{frame_name(found.frame_index, self.manifest['frames'])}", [png(found.mask)]
            )
        return {
            "frame": found.frame_index,
            "time": float(self.source.times[found.frame_index]),
            "expression": found.expression_index,
            "segmentation": encode_rle(found.mask),
            "area": int(found.mask.sum()),
            "bbox": bounding_box(found.mask),
            "score": float(found.score),
            "present": bool(found.present),
        }

    def _masks_json(self, journal: _Journal) -> Iterator[bytes]:
        """masks.json piece by piece, a mask to a line: a long video's masks are never all in memory."""
        asked, source = self.manifest["asked"], self.source
        head = {
            "format": FORMAT,
            "video": {
                "name": source.name,
                "width": source.width,
                "height": source.height,
                "frames": journal.frames,
                "fps": float(source.fps),
                "fps_exact": f"{source.fps.numerator}/{source.fps.denominator}",
                "sha256": asked["video"]["sha256"],
            },
            "model": asked["model"] | self.manifest.get("runs_on", {}),
            "settings": asked["settings"] | {"chosen_key_frame": self.manifest.get("key_frame")},
            "prompts": [
                {"expression": expression, "folder": folder}
                for expression, folder in zip(self.settings.prompts, self.manifest["folders"], strict=True)
            ],
        }
        yield (json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}").encode() + b',\n "masks": [\n')
        separator = b""
        for line in journal.lines():
            yield separator + line
            separator = b",\n"
        yield b"\n]}\n"

    def _overlay(self, journal: _Journal) -> None:
        from glus.video import write_overlay

        def written(frames: int) -> None:
            self.progress(Progress("overlay", frames, len(self.source)))
            if self.stop():
                raise _Stop

        self.progress(Progress("overlay", 0, len(self.source)))
        temporary = self.folder.state_dir / "overlay.mp4"
        write_overlay(temporary, self.source, journal.masks, self.settings.prompts, progress=written)
        temporary.replace(self.folder.out / "overlay.mp4")

    def _report(self, journal: _Journal, *, finished: bool) -> RunReport:
        return RunReport(
            out=self.folder.out,
            finished=finished,
            already=False,
            done=journal.frames,
            total=len(self.source),
            computed=self.computed,
            seconds=self.seconds,
            formats=self.settings.formats,
            prompts=tuple(
                PromptSummary(expression, folder, *journal.summary(n))
                for n, (expression, folder) in enumerate(
                    zip(self.settings.prompts, self.manifest["folders"], strict=True)
                )
            ),
        )


class _Journal:
    """masks.jsonl: a line for each finished mask. Only offsets, scores and presence are in memory."""

    def __init__(self, path: Path, frames: int, expressions: int, upto: int) -> None:
        """Open the journal and cut off what lies beyond `upto` bytes: no saved state speaks for that."""
        self._frames, self._expressions = frames, expressions
        self._offsets = array("q", [-1]) * (frames * expressions)
        self._scores = array("d", [0.0]) * (frames * expressions)
        self._present = bytearray(frames * expressions)
        self._counts = [0] * expressions
        self._file: IO[bytes] = path.open("a+b")
        size = self._file.seek(0, os.SEEK_END)
        if size < upto:
            self._file.close()
            raise GlusError(
                f"{path} has {size} bytes where the saved state counts on {upto}: it was changed since. "
                "Start over with --overwrite"
            )
        self._file.truncate(upto)
        self._file.seek(0)
        offset = 0
        for line in self._file:
            self._note(json.loads(line), offset)
            offset += len(line)
        self._end = offset

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _note(self, entry: Mapping[str, Any], offset: int) -> None:
        slot = entry["frame"] * self._expressions + entry["expression"]
        if self._offsets[slot] < 0:
            self._counts[entry["expression"]] += 1
        self._offsets[slot] = offset
        self._scores[slot] = entry["score"]
        self._present[slot] = entry["present"]

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append the masks of one frame."""
        for entry in entries:
            line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            self._file.write(line)
            self._note(entry, self._end)
            self._end += len(line)
        self._file.flush()

    def sync(self) -> int:
        """Make the journal survive a power cut; returns its length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._end

    @property
    def frames(self) -> int:
        """How many frames are there, with all their masks."""
        return min(self._counts)

    def _line(self, slot: int) -> bytes:
        self._file.seek(self._offsets[slot])
        return self._file.readline().rstrip(b"\n")

    def lines(self) -> Iterator[bytes]:
        """Every entry, ordered by frame, then by expression."""
        for slot, offset in enumerate(self._offsets):
            if offset >= 0:
                yield self._line(slot)

    def masks(self, frame: int) -> list[BoolMask]:
        """The masks of one frame, one an expression."""
        first = frame * self._expressions
        lines = (self._line(slot) for slot in range(first, first + self._expressions))
        return [decode_rle(json.loads(line)["segmentation"]) for line in lines]

    def summary(self, expression: int) -> tuple[int, float | None]:
        """Frames with the object, and the mean score over them."""
        slots = range(expression, len(self._offsets), self._expressions)
        scores = [self._scores[slot] for slot in slots if self._present[slot]]
        return len(scores), (sum(scores) / len(scores) if scores else None)


class _Folder:
    """The folder of a run: what is where, and that each file appears whole or not at all."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.state_dir = out / ".run"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: two runs in one folder would mix their masks. The lock dies with its process."""
        if self.out.exists() and not self.out.is_dir():
            raise SettingError(f"{self.out} is a file; --out wants a folder, which is made if it is missing")
        try:
            fcntl: Any = importlib.import_module("fcntl")
        except ImportError:  # not on Windows, where running twice is left to the user
            self.state_dir.mkdir(parents=True, exist_ok=True)
            yield
            return
        while True:
            self.state_dir.mkdir(parents=True, exist_ok=True)
            path = self.state_dir / "lock"
            with path.open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise SettingError(
                        f"another run is writing into {self.out}: wait for it, or give another --out"
                    ) from error
                if not _same_file(path, lock):
                    continue  # the run before removed the file between our opening and our locking it
                try:
                    yield
                finally:
                    if not (self.out / "run.json").exists() or not (self.state_dir / "masks.jsonl").exists():
                        self.drop_state()
                        with suppress(OSError):  # not empty, so it is not left over from us
                            self.out.rmdir()
                return

    def manifest(self, *, unreadable: dict[str, Any] | None) -> dict[str, Any] | None:
        """run.json, or None where nothing was begun; `unreadable`, unless None, stands for a damaged one."""
        path = self.out / "run.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            if manifest["format"] == FORMAT and {"state", "asked", "folders"} <= set(manifest):
                return manifest
            reason = f"format {manifest['format']!r}, where {FORMAT} is known here"
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            reason = repr(error)
        if unreadable is not None:
            return unreadable
        raise SettingError(f"{path} cannot be read ({reason}): give another --out, or --overwrite")

    def refuse_foreign(self, folders: Sequence[str]) -> None:
        """Without run.json, files under our names are somebody else's, even if overwriting was asked for."""
        there = [name for name in ("masks.json", "overlay.mp4", *folders) if (self.out / name).exists()]
        if there:
            raise SettingError(
                f"{self.out} holds {', '.join(there)} but no run.json, so no run here can be gone on with: "
                "give another --out, or remove them"
            )

    def discard(self, manifest: dict[str, Any]) -> None:
        """Remove what a run wrote, and nothing else. Killed half-way, the next run does the rest."""
        self.write_json("run.json", manifest | {"state": "discarded"})
        for name in manifest.get("folders", ()):
            directory = self.out / name
            if not directory.is_dir():
                continue
            for path in directory.iterdir():
                if re.fullmatch(r"\d{5,}\.png", path.name):
                    path.unlink()
            with suppress(OSError):  # not empty: what else is in it is not ours
                directory.rmdir()
        self.forget_state()
        for name in ("masks.json", "overlay.mp4", "run.json"):
            (self.out / name).unlink(missing_ok=True)

    def write_whole(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a file so that it is there whole or not at all."""
        target, temporary = self.out / name, self.state_dir / "part"
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        temporary.replace(target)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_whole(name, [json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"])

    def read_state(self) -> _State:
        """The state saved last; the beginning where there is none."""
        from safetensors import SafetensorError, safe_open

        path = self.state_dir / "state.safetensors"
        if not path.exists():
            return _State()
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a mapping
        except SafetensorError as error:
            raise GlusError(f"{path} cannot be read ({error}): start over with --overwrite") from error
        return _State(int(facts["journal_bytes"]), tensors or None)

    def write_state(self, state: _State) -> None:
        from safetensors.torch import save_file

        temporary, path = self.state_dir / "state.part", self.state_dir / "state.safetensors"
        # Copies, for the format has no views: two names for one piece of memory are refused.
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in (state.tensors or {}).items()}
        save_file(tensors, temporary, metadata={"journal_bytes": str(state.journal_bytes)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

    def forget_state(self) -> None:
        """Begin at the first frame; the lock stays."""
        for name in ("state.safetensors", "masks.jsonl"):
            (self.state_dir / name).unlink(missing_ok=True)

    def drop_state(self) -> None:
        shutil.rmtree(self.state_dir, ignore_errors=True)


def _same_file(path: Path, file: IO[bytes]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise where there is nothing to ask."""
    if not prompts:
        raise PromptError("no prompt was given: say what to look for, such as --prompt 'the dog that turns left'")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise PromptError(
                f"prompt {number} is empty: say what to look for, such as --prompt 'the dog that turns left'"
            )


def prompt_folders(prompts: Sequence[str]) -> list[str]:
    """A folder name for each prompt: readable, safe on every file system, and different even without case.

    Letters and digits of all scripts stay, everything else becomes a dash. Names are cut at 60 characters and
    120 bytes (file systems take 255, some storing accents apart); a number tells equal ones apart.
    """
    names: list[str] = []
    taken: set[str] = set()
    for prompt in prompts:
        stem = _slug(prompt)
        name, number = stem, 1
        while (key := unicodedata.normalize("NFKD", name).casefold()) in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(key)
        names.append(name)
    return names


def _slug(prompt: str) -> str:
    # Marks (category M) stay: without its vowel signs a word in Devanagari or Thai is another word.
    kept = [c if unicodedata.category(c)[0] in "LMN" else "-" for c in unicodedata.normalize("NFC", prompt)]
    name = re.sub("-+", "-", "".join(kept)).strip("-")[:60]
    name = name.encode()[:120].decode(errors="ignore").strip("-") or "prompt"
    # Windows keeps these names for devices, in any case.
    return f"{name}-" if re.fullmatch(r"(?i)con|prn|aux|nul|com\d|lpt\d", name) else name


def frame_name(index: int, frames: int) -> str:
    """File name of a frame's mask: its index, in five digits or as many as the last one takes."""
    return f"{index:0{max(5, len(str(frames - 1)))}d}.png"


def png(mask: BoolMask) -> bytes:
    """(H, W) bool mask to the bytes of a PNG: 8-bit grey, 0 and 255."""
    import cv2

    done, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not done:
        raise GlusError(f"a mask of shape {mask.shape} could not be written as PNG")
    return bytes(encoded)


def bounding_box(mask: BoolMask) -> list[int]:
    """[x, y, width, height] in pixels of what is set in a (H, W) mask; all 0 when nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what libraries raise, where people can do something about it, into a GlusError that says so."""
    try:
        yield
    except GlusError:
        raise
    except Exception as error:
        plain = explain(error)
        if plain is None:
            raise
        raise plain from error


def explain(error: BaseException) -> GlusError | None:
    """The error in plain words; None when there is nothing to say about it."""
    text = " ".join(str(each) for each in _chain(error))
    if _out_of_memory(error):
        return DeviceMemoryError(
            f"out of memory ({_first_line(error)}). Try fewer prompts at a time, "
            "--dtype bfloat16, or another --device (cpu has the machine's own memory)"
        )
    if isinstance(error, (ImportError, RuntimeError, AttributeError)) and _torchvision_is_to_blame(text):
        return GlusError(
            "the installed torchvision does not fit the installed torch, so transformers cannot be imported "
            f"({_first_line(error)}). Nothing here needs it: pip uninstall torchvision"
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _MODEL_MODULES:
        return GlusError(f"{error.name} is not installed, and segmenting needs it: {INSTALL}")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
        return GlusError(f"{error.strerror}: {error.filename or 'the output folder'}")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _out_of_memory(error: BaseException) -> bool:
    # By name, for torch need not be imported here; its CPU allocator raises a plain RuntimeError.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "not enough memory: you tried to allocate" in str(error)
        or "CUDA error: out of memory" in str(error)
    )


def _torchvision_is_to_blame(text: str) -> bool:
    # transformers hides the cause behind "Could not import module ...".
    if "torchvision" not in text and "Could not import module" not in text:
        return False
    return importlib.util.find_spec("torchvision") is not None


def _identity(settings: Settings) -> dict[str, Any]:
    """What makes two runs the same: video, model, prompts, and whatever else changes masks or files."""
    return {
        "video": {"name": Path(settings.video).resolve().name, "sha256": _video_digest(Path(settings.video))},
        "model": {
            "checkpoint": _reference(settings.model),
            "vision_tower": _reference(settings.vision_tower),
            "sam2_config": _reference(settings.sam2_config),
            "memory_fuser_gamma": settings.memory_fuser_gamma,
            "asked_dtype": settings.dtype,
        },
        "settings": {"key_frame": settings.key_frame, "memory": settings.memory},
        "prompts": list(settings.prompts),
        "formats": [name for name in FORMATS if name in settings.formats],
    }


def _video_digest(path: Path) -> str:
    """SHA-256 of a file; for a folder of pictures, of their names and bytes."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for each in sorted(path.iterdir()):
        if each.is_file() and not each.name.startswith("."):
            digest.update(f"{each.name}\0{_video_digest(each)}\n".encode())
    return digest.hexdigest()


def _reference(reference: str | None) -> str | None:
    """A hub name as it is; a folder or file by its name and what is in it."""
    if reference is None or not Path(reference).exists():
        return reference
    path = Path(reference).resolve()
    digest = hashlib.sha256()
    for each in [path] if path.is_file() else sorted(path.rglob("*")):
        if each.is_file():
            digest.update(f"{each.relative_to(path.parent)}\0{each.stat().st_size}\0".encode())
            with each.open("rb") as file:
                # Both ends of a file: reading 14 GB of weights would take a minute before anything is said.
                digest.update(file.read(1 << 20))
                file.seek(max(0, each.stat().st_size - (1 << 20)))
                digest.update(file.read())
    return f"{path.name} ({digest.hexdigest()[:16]})"


def _refuse_another_run(out: Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    before, now = dict(_flat(manifest["asked"])), dict(_flat(asked))
    differing = [
        f"{key} was {_short(before.get(key))} and is now {_short(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if differing:
        state = "a finished" if manifest["state"] == "finished" else "an unfinished"
        raise SettingError(
            f"{out} holds {state} run of something else: {'; '.join(differing)}. Give another --out, "
            "or --overwrite to throw that run away"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _report_of(settings: Settings, out: Path, manifest: Mapping[str, Any]) -> RunReport:
    """The report of a run that was finished before."""
    frames = int(manifest["frames"])
    return RunReport(
        out=out,
        finished=True,
        already=True,
        done=frames,
        total=frames,
        computed=0,
        seconds=0.0,
        formats=settings.formats,
        prompts=tuple(PromptSummary(**prompt) for prompt in manifest["prompts"]),
    )
