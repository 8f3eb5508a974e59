"""The folder of a run: its lock, journal, saved state, manifest, names. Knows files; not models or frames.

What is in it:

    <prompt>/<frame>.png   8-bit grey, 0 or 255, at the video's size; <frame> is the frame's index, from 0
    overlay.mp4            the video with every prompt in its colour and a legend
    masks.json             every mask as COCO RLE (see `glus.runs`)
    run.json               what was asked, and whether it is finished
    .run/                  while unfinished: masks.jsonl (journal), state.safetensors (model state), lock

A run may be killed at any point. Each file is written under another name and renamed. A line in the journal
means that the mask's PNG is there; the state says up to which byte of the journal it speaks for, so on
resuming the rest of the journal is cut off and those frames are computed again, to the same result.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from glus.errors import GlusError, SettingError
from glus.masks import BoolMask, decode_rle

if TYPE_CHECKING:
    import torch

FORMAT = 1


@dataclass(frozen=True)
class SavedState:
    """What a run goes on from: the model's state, and the journal's length then."""

    journal_bytes: int = 0
    tensors: Mapping[str, torch.Tensor] | None = None


class Journal:
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

    def __enter__(self) -> Journal:
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


class Folder:
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
        """As `write_whole`, a mapping as JSON."""
        self.write_whole(name, [json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"])

    def read_state(self) -> SavedState:
        """The state saved last; the beginning where there is none."""
        from safetensors import SafetensorError, safe_open

        path = self.state_dir / "state.safetensors"
        if not path.exists():
            return SavedState()
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a mapping
        except SafetensorError as error:
            raise GlusError(f"{path} cannot be read ({error}): start over with --overwrite") from error
        return SavedState(int(facts["journal_bytes"]), tensors or None)

    def write_state(self, state: SavedState) -> None:
        """Save the state, whole or not at all, so that it survives a power cut."""
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
        """Remove .run/ with all that is in it, the lock too."""
        shutil.rmtree(self.state_dir, ignore_errors=True)


def _same_file(path: Path, file: IO[bytes]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


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
