"""The synthetic clip of the demo: drawn objects that move, for phrases that `glus-tiny` can read. Writes a video."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

from glus.datasets.synthetic import make_clip
from glus.video import VideoWriter

SEED = 5
FRAMES, FPS = 36, 12


def write_clip(path: Path, seed: int = SEED) -> list[str]:
    """Write the clip as an H.264 file; returns phrases that are true of it, each about other objects than the next."""
    clip = make_clip(seed, frames=FRAMES, size=(360, 360), kind="motion")
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 360, 360, Fraction(FPS)) as writer:
        for frame in clip.frames:
            writer.write(frame)
    return [phrase.text for phrase in clip.phrases]


if __name__ == "__main__":
    print("\n".join(write_clip(Path(sys.argv[1]))))
