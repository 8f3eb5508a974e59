"""Pixels as the released code prepared them, frames that are none, and which frames give the overview."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from glus.config import SegmenterConfig, VisionConfig
from glus.errors import SettingError, VideoError
from glus.processing import check_frame, clip_pixels, context_indices, sam_pixels

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
RECORDED = load_file(ORACLE / "preprocess.safetensors")


def picture(name: str) -> np.ndarray:
    frame = ORACLE / "frames/00000.png" if name == "frame00000" else ORACLE / "frames_extra_500x333.png"
    pixels = np.array(Image.open(frame).convert("RGB"))
    return pixels[:, 100:220] if name.endswith("cols100_220") else pixels


NAMES = ("frame00000", "extra", "extra_cols100_220")


@pytest.mark.parametrize(("name", "every"), zip(NAMES, (1, 1, 4), strict=True))
def test_clip_pixels_are_the_recorded_ones(name, every):
    got = clip_pixels(picture(name), VisionConfig())
    assert got.dtype == torch.float32
    assert got.shape == (3, 224, 224)
    assert (got[:, ::every, ::every] - RECORDED[f"clip_{name}"]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("size", "name", "every"),
    [
        (256, "frame00000", 4),
        (256, "extra", 2),
        (256, "extra_cols100_220", 2),
        (1024, "frame00000", 16),
        (1024, "extra", 16),
        (1024, "extra_cols100_220", 16),
    ],
)
def test_sam_pixels_are_the_recorded_ones(size, name, every):
    key = f"sam{size}_{name}" + ("_sub" if size == 1024 else "")
    frames = torch.from_numpy(np.stack([picture(name)]))
    got = sam_pixels(frames, SegmenterConfig(image_size=size))
    assert got.dtype == torch.float32
    assert got.shape == (1, 3, size, size)
    assert (got[0, :, ::every, ::every] - RECORDED[key]).abs().max() < 2e-6


def test_every_recorded_tensor_is_compared():
    clip = {f"clip_{name}" for name in NAMES}
    sam = {f"sam{size}_{name}{end}" for size, end in ((256, ""), (1024, "_sub")) for name in NAMES}
    assert set(RECORDED) == clip | sam


def test_a_frame_is_the_same_alone_and_in_company():
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8))
    together = sam_pixels(frames, SegmenterConfig(image_size=64))
    for number in range(3):
        assert torch.equal(together[number : number + 1], sam_pixels(frames[[number]], SegmenterConfig(image_size=64)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 400), (400, 3), (224, 224), (223, 225), (2000, 10)])
def test_any_size_gives_the_models_size(shape):
    frame = np.full((*shape, 3), 255, dtype=np.uint8)
    clip = clip_pixels(frame, VisionConfig())
    sam = sam_pixels(torch.from_numpy(frame)[None], SegmenterConfig(image_size=64))
    white = [(1 - m) / s for m, s in zip(VisionConfig().image_mean, VisionConfig().image_std, strict=True)]
    assert clip.shape == (3, 224, 224)
    assert sam.shape == (1, 3, 64, 64)
    for channel in range(3):
        assert torch.allclose(clip[channel], torch.tensor(white[channel]), atol=1e-5)
    assert sam.std(dim=(2, 3)).max() < 1e-5


def test_clip_loses_the_sides_and_sam_does_not():
    frame = np.zeros((20, 60, 3), dtype=np.uint8)
    marked = frame.copy()
    marked[:, :8] = marked[:, -8:] = 255
    assert torch.equal(clip_pixels(frame, VisionConfig()), clip_pixels(marked, VisionConfig()))
    both = sam_pixels(torch.from_numpy(np.stack([frame, marked])), SegmenterConfig(image_size=64))
    assert not torch.equal(both[0], both[1])


# ---- frames that are none -------------------------------------------------------------------------------------------


def test_a_good_frame_is_given_back_itself():
    frame = np.zeros((4, 5, 3), dtype=np.uint8)
    frame.setflags(write=False)
    assert check_frame(frame) is frame


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((4, 5), np.uint8), r"shape \(4, 5\), uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"shape \(1, 4, 5, 3\)"),
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5, 3), np.int64), "int64"),
        (np.zeros((4, 5, 3), bool), "bool"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), "Tensor"),
        ([[[0, 0, 0]]], "list"),
        (None, "NoneType"),
        ("frame.png", "str"),
    ],
)
def test_what_is_no_frame(frame, says):
    with pytest.raises(VideoError, match=says) as caught:
        check_frame(frame)
    assert "wanted an (H, W, 3) uint8 RGB array (0-255)" in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0, 3)])
def test_an_empty_frame(shape):
    with pytest.raises(VideoError, match=rf"empty \({shape[1]} x {shape[0]}\)"):
        check_frame(np.zeros(shape, np.uint8))


def test_the_frame_is_named():
    with pytest.raises(VideoError, match=r"^frame 17 is NoneType"):
        check_frame(None, 17)


# ---- which frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "indices"),
    [
        (22, [3, 8, 14, 19]),  # recorded
        (3, [-1, 0, 1, 2]),  # recorded: -1 is the last frame
        (1, [-1, -1, -1, 0]),
        (2, [-1, 0, 0, 1]),
        (4, [0, 1, 2, 3]),
        (5, [0, 1, 2, 4]),
        (8, [1, 3, 5, 7]),
        (1000, [125, 375, 625, 875]),
    ],
)
def test_context_indices(length, indices):
    assert context_indices(length) == indices


def test_context_indices_spread_over_the_clip():
    for length in range(1, 700):
        indices = context_indices(length)
        assert len(indices) == 4
        assert all(type(i) is int and -1 <= i < length for i in indices)
        if length >= 4:
            starts = [part * length // 4 for part in range(5)]
            assert indices == sorted(set(indices))
            assert all(start <= i < end for i, start, end in zip(indices, starts, starts[1:], strict=False))


def test_other_counts():
    assert context_indices(10, 1) == [5]
    assert context_indices(10, 2) == [2, 7]


@pytest.mark.parametrize("length", [0, -1])
def test_no_frames(length):
    with pytest.raises(SettingError, match="without frames"):
        context_indices(length)
