"""Fixtures: the recorded oracle as a published checkpoint, and untrained miniatures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

# Two test processes share two cores; more threads would wait for each other. Before torch is imported, and in the
# environment, so that commands and workers that tests start round as this process does.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from glus.miniature import write_miniature
from glus.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
ORACLE = DATA / "oracle"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """An untrained published-layout checkpoint, everything that `glus.load` needs in one folder."""
    return write_miniature(tmp_path_factory.mktemp("miniature") / "glus-miniature")


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint):
    import glus

    return glus.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def chair() -> Path:
    """A real clip: 60 frames, 720 x 480 (PUMaVOS, CC BY 4.0)."""
    return DATA / "pumavos-chair" / "chair.mp4"


@pytest.fixture(scope="session")
def oracle_frames() -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted((ORACLE / "frames").glob("*.png"))]


@pytest.fixture(scope="session")
def recorded_tokenizer() -> Tokenizer:
    """LLaMA's ids without LLaMA's vocabulary: a table of the stretches that the recorded prompts contain."""
    stretches = json.loads((ORACLE / "text.json").read_text(encoding="utf-8"))["stretches"]
    added = json.loads((ORACLE / "added_tokens.json").read_text(encoding="utf-8"))
    return Tokenizer(stretches.__getitem__, added, {"<unk>": 0, "<s>": 1, "</s>": 2})


@pytest.fixture(scope="session")
def oracle_folder(tmp_path_factory) -> Path:
    """The recorded checkpoint in the published layout, embedding table at full height again."""
    root = tmp_path_factory.mktemp("oracle")
    folder = root / "glus-tiny"
    folder.mkdir()
    weights = load_file(ORACLE / "weights.safetensors")
    rows = weights.pop("rows")
    table = weights["model.embed_tokens.weight"]
    full = torch.zeros(32003, table.shape[1], dtype=table.dtype)
    full[rows] = table
    weights["model.embed_tokens.weight"] = full
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json", "added_tokens.json"):
        shutil.copyfile(ORACLE / name, folder / name)
    shutil.copytree(ORACLE / "clip-vit-tiny", root / "clip-vit-tiny")  # beside it, where config.json says
    return folder


@pytest.fixture
def load_oracle(oracle_folder, recorded_tokenizer, monkeypatch):
    """Function that loads the recorded checkpoint as `glus.load` does, with the recorded ids for a vocabulary."""
    import glus

    monkeypatch.setattr(Tokenizer, "from_folder", lambda folder: recorded_tokenizer)

    def load(**options):
        options.setdefault("sam2_config", ORACLE / "sam2.json")
        options.setdefault("memory_fuser_gamma", "checkpoint")
        options.setdefault("device", "cpu")
        return glus.load(oracle_folder, **options)

    return load
