"""On a CUDA device: the recorded masks, chunks and graphs against the plain way. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import glus
from glus.streaming import Segmentation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ORACLE = Path(__file__).parents[1] / "data" / "oracle"
EXPRESSION = "The tabby cat that moves to the left over the coffee cup."


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def relative(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("chunk", [1, 8])
def test_recorded_logits_and_masks(load_oracle, oracle_frames, graphs, chunk):
    model = load_oracle(device="cuda", dtype="float32")
    model.use_cuda_graphs = graphs
    wanted = load_file(ORACLE / "forward.safetensors")
    masks = list(Segmentation(model, oracle_frames, EXPRESSION, chunk=chunk))
    logits = torch.stack([torch.from_numpy(m.logits) for m in masks])
    assert relative(logits, wanted["low_res_logits"]) < 2e-4
    packed = np.unpackbits(wanted["masks_packed"].numpy(), axis=1)[:, : 120 * 214].reshape(-1, 120, 214)
    assert sum(int((m.mask != p.astype(bool)).sum()) for m, p in zip(masks, packed, strict=True)) < 40


def test_graphs_equal_eager_for_several_expressions(tiny_checkpoint, chair):
    model = glus.load(tiny_checkpoint, device="cuda", dtype="bfloat16")
    asked = ["the chair", "a dog", "the cup on the left"]
    results = []
    for graphs in (False, True, True):
        model.use_cuda_graphs = graphs
        results.append([m.logits for m in glus.segment(model, chair, asked)])
    for eager, graphed, again in zip(*results, strict=True):
        assert relative(torch.from_numpy(graphed), torch.from_numpy(eager)) < 0.05
        assert np.array_equal(graphed, again)


def test_switching_gamma_reaches_captured_graphs(tiny_checkpoint, chair):
    model = glus.load(tiny_checkpoint, device="cuda", dtype="float32", memory_fuser_gamma="reset")
    frames = list(glus.video.open_video(chair).frames(0, 12))
    before = [m.logits for m in glus.segment(model, frames, "the chair")]
    model.segmenter.set_memory_fuser_gamma("checkpoint")
    trained = [m.logits for m in glus.segment(model, frames, "the chair")]
    model.segmenter.set_memory_fuser_gamma("reset")
    after = [m.logits for m in glus.segment(model, frames, "the chair")]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not np.array_equal(before[-1], trained[-1])


def test_memory_is_flat(tiny_checkpoint, chair):
    model = glus.load(tiny_checkpoint, device="cuda")
    frames = list(glus.video.open_video(chair).frames()) * 4
    held = [
        torch.cuda.memory_allocated()
        for mask in glus.segment(model, frames, "the chair")
        if mask.frame_index in {60, 230}
    ]
    assert abs(held[1] - held[0]) < 2_000_000
