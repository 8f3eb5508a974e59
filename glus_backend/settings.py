"""Settings: the only reader of the environment. Knows names and their meaning; not who uses them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glus_backend.errors import SettingError


@dataclass(frozen=True)
class Settings:
    """How this service runs; each field is described in SETTINGS."""

    model: str = "glus-tiny"
    vision_tower: str | None = None
    sam2_config: str | None = None
    device: str | None = None
    model_name: str | None = None
    data_dir: Path = field(default_factory=lambda: Path.home() / ".local" / "share" / "glus")
    predict_wait: float = 20.0
    threads: int = 16
    max_download_mb: int = 2048
    local_roots: tuple[Path, ...] = ()
    label_studio_url: str | None = None
    label_studio_api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.predict_wait < 100:
            raise SettingError(
                f"GLUS_PREDICT_WAIT is {self.predict_wait:g} seconds; Label Studio hangs up after 100, "
                "so give a number from 0 to below 100"
            )
        if self.threads < 3:
            raise SettingError(
                f"GLUS_THREADS is {self.threads}; /health must be answered while requests wait for masks, "
                "which needs at least 3"
            )
        if self.max_download_mb < 1:
            raise SettingError(f"GLUS_MAX_DOWNLOAD_MB is {self.max_download_mb}; give a positive number")
        if self.label_studio_api_key and not self.label_studio_url:
            raise SettingError(
                "LABEL_STUDIO_API_KEY is set without LABEL_STUDIO_URL; the key is sent to that address only, "
                "so set both (for instance LABEL_STUDIO_URL=http://localhost:8080)"
            )
        url = self.label_studio_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise SettingError(f"LABEL_STUDIO_URL is {url!r}; it must start with http:// or https://")

    @property
    def model_version(self) -> str:
        """The version in /setup and in every prediction: Label Studio needs the two to be equal."""
        if self.model_name:
            return self.model_name
        last = re.split(r"[\\/]", self.model.rstrip("\\/"))[-1]
        slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", last).strip("-") or "model"
        return slug if slug.lower().startswith("glus") else f"glus-{slug}"

    @property
    def cache_dir(self) -> Path:
        """Where downloaded files are kept."""
        return self.data_dir / "cache"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """From the process's environment, or from `environ`; an empty value counts as not set."""
        source = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for setting in SETTINGS:
            text = source.get(setting.name, "").strip()
            if not text:
                continue
            try:
                given[setting.field] = setting.read(text)
            except ValueError as error:
                raise SettingError(f"{setting.name} is {text!r}; wanted {setting.meaning}") from error
        return cls(**given)

    @classmethod
    def for_tests(cls, folder: Path, **changes: Any) -> Settings:
        """Everything below one folder, nothing from the environment."""
        return cls(**{"data_dir": folder / "glus-data", "model": "glus-test", **changes})


@dataclass(frozen=True)
class Setting:
    """One variable of the environment."""

    name: str
    field: str
    meaning: str
    read: Callable[[str], Any] = str


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(part).expanduser() for part in text.split(os.pathsep) if part)


SETTINGS: tuple[Setting, ...] = (
    Setting("GLUS_MODEL", "model", "which model to load: a folder, a Hub name, or glus-tiny"),
    Setting("GLUS_VISION_TOWER", "vision_tower", "where the CLIP tower is, if not where the model says"),
    Setting("GLUS_SAM2_CONFIG", "sam2_config", "which SAM 2 the checkpoint was made with, if it does not say"),
    Setting("GLUS_DEVICE", "device", "device to run on: cpu, cuda, cuda:1; found by itself if not set"),
    Setting("GLUS_MODEL_VERSION", "model_name", "version shown in Label Studio; made from GLUS_MODEL if not set"),
    Setting(
        "GLUS_DATA_DIR",
        "data_dir",
        "folder for masks, projects and downloads",
        lambda t: Path(t).expanduser(),
    ),
    Setting("GLUS_PREDICT_WAIT", "predict_wait", "seconds a request waits for masks, from 0 to below 100", float),
    Setting("GLUS_THREADS", "threads", "number of request threads, at least 3", int),
    Setting("GLUS_MAX_DOWNLOAD_MB", "max_download_mb", "largest file to download, in MiB", int),
    Setting(
        "GLUS_LOCAL_ROOTS",
        "local_roots",
        "folders below which tasks may name local files, joined by ':'",
        _paths,
    ),
    Setting(
        "LABEL_STUDIO_URL",
        "label_studio_url",
        "address of Label Studio as seen from here; /setup's if not set",
    ),
    Setting("LABEL_STUDIO_API_KEY", "label_studio_api_key", "an access token of Label Studio, legacy or personal"),
)
