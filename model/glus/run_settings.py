"""What is asked of a run, and what makes two runs the same. Knows files by their digests; not models or frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glus.errors import PromptError, SettingError

FORMATS = ("png", "overlay", "coco")


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


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise where there is nothing to ask."""
    if not prompts:
        raise PromptError("no prompt was given: say what to look for, such as --prompt 'the dog that turns left'")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise PromptError(
                f"prompt {number} is empty: say what to look for, such as --prompt 'the dog that turns left'"
            )


def identity(settings: Settings) -> dict[str, Any]:
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


def refuse_another_run(out: Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise, naming what differs, where the folder's run was asked for something else."""
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
