"""Label Studio's brush RLE and COCO's run lengths: round trips, and bytes that others wrote."""

from __future__ import annotations

import numpy as np
import pytest

from glus_backend.contracts import decode_counts, encode_counts
from glus_backend.errors import ResultError
from glus_backend.results import decode_alpha, decode_brush, encode_brush


def masks():
    rng = np.random.default_rng(7)
    for height, width in [(1, 1), (1, 9), (7, 1), (5, 8), (33, 47), (240, 320), (300, 700)]:
        yield np.zeros((height, width), bool)
        yield np.ones((height, width), bool)
        for density in (0.01, 0.5, 0.97):
            yield rng.random((height, width)) < density
        blobs = rng.random((-(-height // 8), -(-width // 8))) < 0.4
        yield np.kron(blobs, np.ones((8, 8), bool)).astype(bool)[:height, :width]


def bits_of(*fields: tuple[int, int]) -> list[int]:
    """Bytes from (value, width) fields, written the slow way."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


HEADER = ((7, 5), (2, 4), (3, 4), (7, 4), (15, 4))


@pytest.mark.parametrize("mask", list(masks()), ids=lambda m: f"{m.shape[1]}x{m.shape[0]}-{int(m.sum())}")
def test_both_codecs_return_what_they_were_given(mask):
    assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)
    assert np.array_equal(decode_counts(encode_counts(mask), *mask.shape), mask)


@pytest.mark.parametrize("mask", list(masks()), ids=lambda m: f"{m.shape[1]}x{m.shape[0]}-{int(m.sum())}")
def test_coco_counts_are_the_characters_that_pycocotools_writes(mask):
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    assert encode_counts(mask) == theirs


def test_masks_that_are_views_of_other_arrays():
    big = np.random.default_rng(3).random((60, 80)) < 0.5
    for mask in (big[::2, ::3], big.T, np.asfortranarray(big), big[::-1]):
        assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)
        assert np.array_equal(decode_counts(encode_counts(mask), *mask.shape), mask)


def test_captured_masks_decode_to_a_disc_and_encode_to_the_same_mask(capture):
    regions = capture("predict_response_frames_brush")["results"][0]["result"]
    assert regions
    for region in regions:
        rle, height, width = region["value"]["rle"], region["original_height"], region["original_width"]
        mask = decode_brush(rle, height, width)
        ys, xs = np.nonzero(mask)
        radius = np.sqrt(mask.sum() / np.pi)
        far = np.hypot(ys - ys.mean(), xs - xs.mean()).max()
        assert 20 < radius < 35
        assert far < radius + 1.5  # every pixel of it lies within the circle of its area
        ours = encode_brush(mask)
        assert np.array_equal(decode_brush(ours, height, width), mask)
        assert ours == rle[: len(ours)]
        assert rle[len(ours) :] in ([], [0])  # the SDK adds one zero byte when the bits fill the last one


def test_an_empty_mask_is_the_captured_empty_mask(capture):
    region = next(r for r in capture("predict_response_correction_loop")["results"][0]["result"] if r.get("dynamic"))
    ours = encode_brush(np.zeros((240, 320), bool))
    assert region["value"]["rle"][: len(ours)] == ours
    assert not decode_brush(region["value"]["rle"], 240, 320).any()


def test_a_mask_that_the_browser_wrote(capture):
    region = next(
        r for r in capture("ui_submit_annotation_request_correction_loop")["result"] if r.get("item_index") == 12
    )
    alpha = decode_alpha(region["value"]["rle"], 240, 320)
    assert np.unique(alpha).size > 2  # soft edges, hence literal runs
    mask = decode_brush(region["value"]["rle"], 240, 320)
    assert np.array_equal(mask, alpha >= 128)
    assert np.array_equal(decode_brush(encode_brush(mask), 240, 320), mask)
    before = capture("predict_request_correction_loop")["tasks"][0]["predictions"][0]["result"][0]["value"]["rle"]
    both = mask & decode_brush(before, 240, 320)
    assert both.sum() > 0.8 * mask.sum()  # the same disc, but for two strokes


def test_literal_runs_at_any_bit_position():
    alphas = [0, 127, 128, 255]
    values = [byte for alpha in alphas for byte in (9, 8, 7, alpha)]
    literal = [(0, 1), (3, 2), (15, 16), *((value, 8) for value in values)]
    assert decode_alpha(bits_of((16, 32), *HEADER, *literal), 2, 2).ravel().tolist() == alphas
    split = [(0, 1), (0, 2), (2, 3), *((value, 8) for value in values[:3])]
    split += [(1, 1), (1, 2), (0, 4), (values[3], 8)]
    split += [(0, 1), (2, 2), (11, 8), *((value, 8) for value in values[4:])]
    assert decode_alpha(bits_of((16, 32), *HEADER, *split), 2, 2).ravel().tolist() == alphas


def test_runs_over_65536_values_are_split():
    mask = np.zeros((500, 500), bool)
    mask[1:] = True
    assert np.array_equal(decode_brush(encode_brush(mask), 500, 500), mask)
    # header, one run for the first row, then 998,000 values in ceil(998000 / 65536) pieces of 27 bits
    assert len(encode_brush(mask)) == -(-(53 + 27 + 16 * 27) // 8)


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ([], "ends after 0 bytes"),
        ([0, 0, 0, 16, 57, 27], "ends after 6 bytes"),
        ([256], "list of bytes"),
        ("0000", "list of bytes"),
        (bits_of((20, 32), *HEADER), "holds 20 values, wanted 16"),
        (bits_of((16, 32), (3, 5), *HEADER[1:]), "4 bits a value"),
        (bits_of((16, 32), *HEADER, (1, 1), (2, 2), (99, 8), (255, 8)), "runs for 100 values"),
    ],
)
def test_damaged_masks_are_errors_that_say_so(rle, words):
    with pytest.raises(ResultError, match=words):
        decode_brush(rle, 2, 2)


@pytest.mark.parametrize("counts", ["", "~", "1", "P", "44", "ppppppppppppppp0"])
def test_damaged_coco_counts_are_errors(counts):
    with pytest.raises(ValueError, match="COCO"):
        decode_counts(counts, 2, 2)
