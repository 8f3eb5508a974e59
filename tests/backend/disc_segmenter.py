"""A small deterministic segmenter for the worker: a moving disc per prompt. Knows numpy; not torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HEIGHT, WIDTH = 48, 64


@dataclass
class Step:
    frame_index: int
    expression_index: int
    mask: np.ndarray
    score: float
    present: bool


def disc(frame_index: int, expression_index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - 10 - 3 * frame_index) ** 2 + (y - 20 - 5 * expression_index) ** 2 <= 64


def load(*, gate: str = "", load_gate: str = "", calls: str = "", fail: str = "", **_ignored):
    """The loader. `gate` and `load_gate` are files to wait for; `calls` is a file that gets a line per clip.

    The words of a prompt steer it: "absent" gives empty masks, "broken" an error, "gated" waits for the gate
    after two frames, "fatal" ends the process.
    """
    _wait_for(load_gate)
    if fail:
        raise RuntimeError(fail)

    def segment(video: str, prompts: list[str]) -> Iterator[Step]:
        if calls:
            with Path(calls).open("a") as file:
                file.write(f"{Path(video).name} {prompts}\n")
        for index, _ in enumerate(sorted(Path(video).iterdir())):
            for number, prompt in enumerate(prompts):
                if "broken" in prompt:
                    raise ValueError(f"cannot segment {prompt!r}")
                if "fatal" in prompt:
                    os._exit(3)
                if "gated" in prompt and index == 2:
                    _wait_for(gate)
                mask = disc(index, number) & ("absent" not in prompt)
                yield Step(index, number, mask, 0.9 if mask.any() else 0.0, bool(mask.any()))

    return segment


def _wait_for(file: str) -> None:
    while file and not Path(file).exists():
        time.sleep(0.01)


def load_real(*, model, **_ignored):
    """With the arguments of the real loader."""
    return load()
