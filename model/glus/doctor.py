"""What is installed, what is missing and how to get it. Knows packages and machines, not models."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

PYTHON = (3, 11)
INSTALL = "pip install 'glus-label-studio[{}]'"


@dataclass(frozen=True)
class Requirement:
    """A package that something here needs; versions from `least` on and, if given, below `below`."""

    names: tuple[str, ...]  # as distributed; any one of them will do
    extra: str  # "" is the base, without which nothing works
    least: str
    below: str | None = None


# pyproject.toml says it first; a test holds this table to it, for an installed package cannot read that file.
REQUIREMENTS = (
    Requirement(("click",), "", "8.4"),
    Requirement(("defusedxml",), "", "0.7"),
    Requirement(("flask",), "", "3.0"),
    Requirement(("gunicorn",), "", "22"),
    Requirement(("numpy",), "", "1.26"),
    Requirement(("requests",), "", "2.32"),
    Requirement(("rich",), "", "13.7"),
    Requirement(("torch",), "model", "2.11", "2.16"),
    Requirement(("transformers",), "model", "5.17", "6"),
    Requirement(("av",), "model", "14"),
    Requirement(("opencv-python-headless", "opencv-python", "opencv-contrib-python"), "model", "4.10"),
    Requirement(("sentencepiece",), "model", "0.2"),
    Requirement(("accelerate",), "model", "1.10"),
    Requirement(("huggingface-hub",), "model", "1.0"),
    Requirement(("pillow",), "model", "10.1"),
    Requirement(("pycocotools",), "model", "2.0.8"),
    Requirement(("pyyaml",), "model", "6"),
    Requirement(("safetensors",), "model", "0.5"),
    Requirement(("peft",), "train", "0.18"),
)


@dataclass(frozen=True)
class Device:
    """Something torch can compute on; memory in bytes, None where torch does not say."""

    name: str
    description: str
    memory: int | None
    free: int | None


@dataclass
class Report:
    """What was found.

    `faults` have to be mended: something required is missing, or something installed is broken. `missing`
    is optional. Both are {"what": ..., "fix": a command or advice}.
    """

    python: str
    glus: str
    versions: dict[str, str | None] = field(default_factory=dict)
    ffmpeg: str | None = None
    devices: list[Device] = field(default_factory=list)
    cores: int = 1
    memory: int | None = None
    cache: str = ""
    cache_free: int | None = None
    torchvision: str = "absent"  # or "works", "broken", "untried"
    faults: list[dict[str, str]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> str:
        """The same for programs."""
        return json.dumps(asdict(self), indent=1)


def inspect() -> Report:
    """Look around; takes as long as importing torch, if that is there."""
    from glus import __version__

    report = Report(python=platform.python_version(), glus=__version__, cores=_cores(), memory=_memory())
    if sys.version_info < PYTHON:
        report.faults.append(
            {"what": f"Python {report.python}", "fix": f"install Python {PYTHON[0]}.{PYTHON[1]} or newer"}
        )
    _look_at_packages(report)
    _look_at_torch(report)
    _look_at_torchvision(report)
    _look_at_video(report)
    cache = _cache()
    report.cache, report.cache_free = str(cache), _free(cache)
    return report


def _look_at_packages(report: Report) -> None:
    for requirement in REQUIREMENTS:
        found = next((v for v in map(_version, requirement.names) if v is not None), None)
        name = requirement.names[0]
        report.versions[name] = found
        fix = INSTALL.format(requirement.extra) if requirement.extra else "pip install glus-label-studio"
        if found is None:
            kind = report.missing if requirement.extra else report.faults
            kind.append({"what": f"{name} is not installed{_purpose(requirement.extra)}", "fix": fix})
        elif not _in_range(found, requirement):
            wanted = f"{requirement.least} or newer"
            wanted += f", below {requirement.below}" if requirement.below else ""
            kind = report.missing if requirement.extra == "train" else report.faults
            kind.append({"what": f"{name} {found} is installed; wanted {wanted}", "fix": fix})


def _purpose(extra: str) -> str:
    return {"": "", "model": " (needed to segment)", "train": " (needed to train)"}[extra]


def _look_at_torch(report: Report) -> None:
    if report.versions["torch"] is None:
        return
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        report.faults.append(
            {"what": f"torch cannot be imported ({error})", "fix": "pip install --force-reinstall torch"}
        )
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            description = f"{facts.name}, compute capability {facts.major}.{facts.minor}"
            report.devices.append(Device(f"cuda:{index}", description, total, free))
    elif Path("/proc/driver/nvidia/version").exists():
        build = "is built for the CPU" if torch.version.cuda is None else "sees no GPU"
        report.missing.append(
            {
                "what": f"this machine has an NVIDIA driver, but torch {torch.__version__} {build}",
                "fix": "pip install --force-reinstall torch (for your driver: https://pytorch.org/get-started)",
            }
        )
    report.devices.append(Device("cpu", platform.processor() or platform.machine(), report.memory, None))


def _look_at_torchvision(report: Report) -> None:
    """Look whether it loads: to transformers it is enough that it is there, and then its models need it."""
    version = _version("torchvision")
    report.versions["torchvision"] = version
    if importlib.util.find_spec("torchvision") is None:
        return
    if report.versions["torch"] is None:
        report.torchvision = "untried"
        return
    # In a process of its own: built for another torch, it may take the whole process down.
    command = [sys.executable, "-c", "import torchvision"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    report.torchvision = "works" if tried.returncode == 0 else "broken"
    if tried.returncode:
        reason = (tried.stderr.strip() or f"exit code {tried.returncode}").splitlines()[-1]
        report.faults.append(
            {
                "what": f"torchvision {version or ''} does not fit torch ({reason}), and keeps transformers "
                "from being imported; nothing here needs it",
                "fix": "pip uninstall torchvision",
            }
        )


def _look_at_video(report: Report) -> None:
    for name in ("av", "opencv-python-headless", "transformers", "sentencepiece"):
        if report.versions[name] is None:
            continue
        module = "cv2" if name.startswith("opencv") else name
        try:
            imported: Any = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            fix = f"pip install --force-reinstall {name}"
            report.faults.append({"what": f"{name} cannot be imported ({error})", "fix": fix})
            continue
        if module == "av":
            report.ffmpeg = str(getattr(imported, "ffmpeg_version_info", "unknown"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _in_range(version: str, requirement: Requirement) -> bool:
    release = _release(version)
    if release < _release(requirement.least):
        return False
    return requirement.below is None or release < _release(requirement.below)


def _release(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)"""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    """Bytes of memory of the machine, or of the container if that has less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdecimal() else total


def _cache() -> Path:
    """Where downloaded checkpoints lie; the hub's own rule, for it may not be installed."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _free(folder: Path) -> int | None:
    """Bytes free where the folder is, or will be."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None


def render(report: Report) -> str:
    """The report for people."""
    lines = [f"glus {report.glus}, Python {report.python}", ""]
    width = max(map(len, report.versions))
    for name, version in report.versions.items():
        note = f" (FFmpeg {report.ffmpeg})" if name == "av" and report.ffmpeg else ""
        if name == "torchvision":
            note = f" ({report.torchvision}; not needed)" if report.torchvision != "absent" else " (not needed)"
        lines.append(f"  {name:{width}}  {version or '-'}{note}")
    lines.append("")
    for device in report.devices:
        free = f", {_gib(device.free)} free" if device.free is not None else ""
        lines.append(f"  {device.name:{width}}  {device.description}, {_gib(device.memory)}{free}")
    lines += [
        f"  {'cores':{width}}  {report.cores}",
        f"  {'memory':{width}}  {_gib(report.memory)}",
        f"  {'model cache':{width}}  {report.cache} ({_gib(report.cache_free)} free)",
        "",
    ]
    for title, items in (("To be mended:", report.faults), ("Missing, if you want it:", report.missing)):
        if not items:
            continue
        lines.append(title)
        fixes: dict[str, list[str]] = {}
        for item in items:
            fixes.setdefault(item["fix"], []).append(item["what"])
        for fix, whats in fixes.items():
            lines += [f"  {what}" for what in whats] + [f"    {fix}"]
    if not report.faults and not report.missing:
        lines.append("Everything is there.")
    return "\n".join(lines)


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB"
