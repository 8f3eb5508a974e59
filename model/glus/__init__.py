"""GLUS: segment a video from a sentence. Has never heard of Label Studio, HTTP or jobs.

    import glus
    model = glus.load("Swindl/GLUS-A")
    for m in glus.segment(model, "clip.mp4", "the dog that turns left"):
        m.frame_index, m.mask, m.score

Importing the package is light: torch and transformers are imported by the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glus.config import GlusConfig
from glus.errors import GlusError
from glus.masks import FrameMask

if TYPE_CHECKING:
    from glus.checkpoints import load
    from glus.modeling.glus import Glus
    from glus.streaming import VideoSession, segment

__version__ = "0.1.0"
__all__ = ["FrameMask", "Glus", "GlusConfig", "GlusError", "VideoSession", "load", "segment"]

_LAZY = {
    "Glus": "glus.modeling.glus",
    "VideoSession": "glus.streaming",
    "load": "glus.checkpoints",
    "segment": "glus.streaming",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in {"key_frames", "video", "checkpoints", "conversion", "memory", "processing"}:
        return import_module(f"glus.{name}")
    raise AttributeError(f"module 'glus' has no attribute {name!r}")
