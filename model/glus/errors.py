"""Errors that people meet. Each says what came, what was wanted and what to try.

GlusError
├── PromptError        an expression that cannot be asked (empty, or holding reserved tokens)
├── VideoError         a video that cannot be read
│   ├── VideoNotFound    no such file or folder
│   └── NoVideoStream    a file without pictures in it
├── CheckpointError    weights, configuration or vocabulary missing, damaged or not fitting together
├── SettingError       an argument out of its range (a key frame beyond the clip, an unknown device)
└── DeviceMemoryError  the accelerator ran out of memory
"""

from __future__ import annotations


class GlusError(Exception):
    """Base of all errors meant for people; `exit_code` is what the `glus` command leaves with."""

    exit_code = 1


class PromptError(GlusError, ValueError):
    """An expression that cannot be asked."""

    exit_code = 2


class SettingError(GlusError, ValueError):
    """An argument out of its range."""

    exit_code = 2


class VideoError(GlusError):
    """A video that cannot be read."""

    exit_code = 4


class VideoNotFound(VideoError, FileNotFoundError):  # noqa: N818 - reads better where it is raised
    """No such video file or folder."""

    exit_code = 3


class NoVideoStream(VideoError):  # noqa: N818
    """A file that holds no pictures (a sound file, a text file, an empty folder)."""

    exit_code = 4


class CheckpointError(GlusError):
    """Weights, configuration or vocabulary missing, damaged or not fitting together."""

    exit_code = 5


class DeviceMemoryError(GlusError, MemoryError):
    """The accelerator ran out of memory."""

    exit_code = 6
