"""Conversion: there and back without a loss, a starting point from LISA and SAM 2, nothing left after a failure."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glus
from glus.checkpoints import read_sam2_config
from glus.config import GlusConfig, SegmenterConfig
from glus.conversion import convert, new_text_head, sam2_values
from glus.errors import CheckpointError, SettingError
from glus.miniature import write_miniature
from glus.tokenizer import Tokenizer
from glus.weights import WeightFolder, load_torch_file

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
SMALL = GlusConfig.tiny(image_size=64)
SAM2, HEAD = "model.visual_model.", "model.text_hidden_fcs."


def stored(folder: Path) -> dict[str, torch.Tensor]:
    weights = WeightFolder(folder)
    return {key: weights.tensor(key) for key in weights.keys()}  # noqa: SIM118 - not a dict


def assert_stored_alike(one: Path, other: Path):
    left, right = stored(one), stored(other)
    assert list(left) == list(right)
    for key, value in left.items():
        assert value.dtype == right[key].dtype, key
        assert torch.equal(value, right[key]), key


def rewrite(path: Path, tensors):
    """Other tensors in a .bin file; a new file, because the old one may be mapped into memory."""
    path.unlink()
    torch.save(tensors, path)


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded_ids(recorded_tokenizer, monkeypatch):
    """The recorded ids instead of a vocabulary that is not ours to copy."""
    monkeypatch.setattr(Tokenizer, "from_folder", lambda folder: recorded_tokenizer)


@pytest.mark.parametrize("shard_bytes", [10**9, 300_000])
def test_published_to_ours_and_back(oracle_folder, recorded_ids, tmp_path, shard_bytes):
    said: list[str] = []
    there = convert(
        oracle_folder, tmp_path / "own", sam2_config=ORACLE / "sam2.json", shard_bytes=shard_bytes, report=said.append
    )
    back = convert(tmp_path / "own", tmp_path / "published", shard_bytes=shard_bytes)
    before, after = oracle_folder, tmp_path / "published"
    assert_stored_alike(before, after)
    assert_stored_alike(ORACLE / "clip-vit-tiny", after / "vision_tower")
    assert read(before / "config.json") == read(after / "config.json")
    assert read(before / "generation_config.json") == read(after / "generation_config.json")
    assert read(ORACLE / "clip-vit-tiny/config.json") == read(after / "vision_tower/config.json")
    assert read_sam2_config(after / "sam2.json") == read_sam2_config(ORACLE / "sam2.json")
    assert all(path.suffix != ".safetensors" for path in after.iterdir())  # as the authors write
    assert (len(list(after.glob("*.bin"))) > 1) == (len(list((tmp_path / "own").glob("model-*"))) > 1)
    assert (len(list(after.glob("*.bin"))) > 1) == (shard_bytes == 300_000)

    # the account: every tensor of the file is converted or ignored for a reason
    tensors = stored(before)
    assert there.direction == "published to ours"
    assert there.created == ()
    clip = stored(ORACLE / "clip-vit-tiny")
    assert there.converted + len(there.ignored) == len(tensors) + len(clip)
    assert set(there.ignored.values()) == {"recomputed from the configuration"}
    assert f"converted {there.converted} tensors, 0 missing, {len(there.ignored)} ignored" in there.lines()[0]
    assert said[-len(there.lines()) :] == there.lines()
    assert any(line.startswith("100 of ") for line in said)
    assert back.direction == "ours to published"
    assert back.converted == there.converted


def test_ours_holds_every_tensor_as_it_was(oracle_folder, recorded_ids, tmp_path):
    convert(oracle_folder, tmp_path / "own", sam2_config=ORACLE / "sam2.json")
    own = stored(tmp_path / "own")
    published = stored(oracle_folder)
    for key, value in own.items():
        if not key.startswith("vision_tower."):
            assert value.dtype == published[key].dtype, key
            assert torch.equal(value, published[key]), key
    assert {value.dtype for value in own.values()} == {torch.bfloat16, torch.float32, torch.float16}


def test_masks_are_equal_before_and_after(oracle_folder, recorded_ids, oracle_frames, tmp_path):
    expression = "The tabby cat that moves to the left over the coffee cup."
    convert(oracle_folder, tmp_path / "own", sam2_config=ORACLE / "sam2.json")
    convert(tmp_path / "own", tmp_path / "published")
    models = [
        glus.load(oracle_folder, sam2_config=ORACLE / "sam2.json"),
        glus.load(tmp_path / "own"),
        glus.load(tmp_path / "published"),
    ]
    assert {model.config.memory_fuser_gamma for model in models} == {"reset"}
    first, *others = [list(glus.segment(model, oracle_frames[:4], expression)) for model in models]
    assert any(mask.present for mask in first)
    for other in others:
        assert all((a.logits == b.logits).all() and a.score == b.score for a, b in zip(first, other, strict=True))


def test_a_miniature_there_and_back(tmp_path):
    """With a vocabulary of its own, safetensors, and no file beside it but the needed ones."""
    before = write_miniature(tmp_path / "before", SMALL, kind="safetensors")
    convert(before, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "after")
    assert_stored_alike(before, tmp_path / "after")
    assert_stored_alike(before / "vision_tower", tmp_path / "after/vision_tower")
    for name in ("config.json", "sam2.json", "tokenizer.model", "added_tokens.json", "vision_tower/config.json"):
        assert (before / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name


def test_a_model_that_was_never_published(tmp_path):
    """Saved by us, so nothing is on record: config.json is made up, and the model is the same."""
    model = glus.load(write_miniature(tmp_path / "start", SMALL))
    glus.checkpoints.save(model, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "published")
    again = glus.load(tmp_path / "published")
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("segmenter", [SegmenterConfig(), SMALL.segmenter], ids=["large", "tiny"])
@pytest.mark.parametrize("changes", [{}, {"occlusion_embedding": True, "pointer_time_projection": True}])
def test_sam2_values_are_read_back(tmp_path, segmenter, changes):
    segmenter = dataclasses.replace(segmenter, **changes)
    (tmp_path / "sam2.json").write_text(json.dumps(sam2_values(segmenter)))
    assert read_sam2_config(tmp_path / "sam2.json") == segmenter


# ---- LISA -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lisa(tmp_path_factory) -> tuple[Path, Path]:
    """LISA's folder (SAM 1 and its own text head in it) and a SAM 2 file, both made of miniatures."""
    root = tmp_path_factory.mktemp("lisa")
    folder = write_miniature(root / "LISA-7B-v1", SMALL, seed=1)
    tensors = load_torch_file(folder / "pytorch_model.bin")
    kept = {key: value for key, value in tensors.items() if not key.startswith((SAM2, HEAD))}
    kept |= {
        SAM2 + "image_encoder.blocks.0.norm1.weight": torch.ones(8),
        SAM2 + "image_encoder.pos_embed": torch.ones(1, 4, 4, 8),
        SAM2 + "mask_decoder.iou_token.weight": torch.ones(1, 8),
        HEAD + "0.0.weight": torch.ones(5, 5),
        HEAD + "0.2.bias": torch.ones(5),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "model.vision_tower.x": torch.ones(1),
        "something.else": torch.ones(1),
    }
    rewrite(folder / "pytorch_model.bin", kept)
    other = write_miniature(root / "sam2", SMALL, seed=2)
    weights = load_torch_file(other / "pytorch_model.bin")
    sam2 = {key.removeprefix(SAM2): value for key, value in weights.items() if key.startswith(SAM2)}
    torch.save({"model": sam2}, root / "sam2_hiera_tiny.pt")
    return folder, root / "sam2_hiera_tiny.pt"


def test_a_starting_point_from_lisa_and_sam2(lisa, tmp_path):
    folder, sam2 = lisa
    said: list[str] = []
    report = convert(folder, tmp_path / "start", sam2=sam2, report=said.append, seed=5)
    own, from_lisa, from_sam2 = stored(tmp_path / "start"), stored(folder), load_torch_file(sam2)
    head = {key for key in own if key.startswith(HEAD)}
    for key, value in own.items():
        if key.startswith(SAM2):
            wanted = from_sam2[key.removeprefix(SAM2)]
        elif key.startswith("vision_tower."):
            continue
        elif key in head:
            wanted = new_text_head(SMALL, 5)[key]
        else:
            wanted = from_lisa[key]
        assert value.dtype == wanted.dtype, key
        assert torch.equal(value, wanted), key
    assert {key.removeprefix(SAM2) for key in own if key.startswith(SAM2)} == set(from_sam2)
    assert set(report.created) == head
    assert len(head) == 4
    assert report.converted == len(own) - 4

    assert report.ignored == {
        SAM2 + "image_encoder.blocks.0.norm1.weight": "LISA's SAM 1, in whose place SAM 2 comes",
        SAM2 + "image_encoder.pos_embed": "LISA's SAM 1, in whose place SAM 2 comes",
        SAM2 + "mask_decoder.iou_token.weight": "LISA's SAM 1, in whose place SAM 2 comes",
        HEAD + "0.0.weight": "LISA's text head is not kept: GLUS trains its own",
        HEAD + "0.2.bias": "LISA's text head is not kept: GLUS trains its own",
        "model.layers.0.self_attn.rotary_emb.inv_freq": "recomputed from the configuration",
        "model.vision_tower.x": "the frozen CLIP tower is read from its own folder",
        "something.else": "not a tensor of GLUS",
    }
    lines = report.lines()
    assert lines[0].startswith(
        f"LISA and SAM 2 to ours: converted {report.converted} tensors, 0 missing, 8 ignored, 4 c"
    )
    assert sum("ignored 3: LISA's SAM 1" in line for line in lines) == 1
    assert sum("ignored 2: LISA's text head is not kept" in line for line in lines) == 1
    assert [line for line in lines if "created " in line and HEAD in line] == [
        f"  created {key}" for key in report.created
    ]
    assert said[-len(lines) :] == lines

    model = glus.load(tmp_path / "start")  # no warning: all of it is ours
    assert model.config.memory_fuser_gamma == "checkpoint"


def test_a_new_text_head_is_random_in_its_bounds_and_repeatable():
    one, same, other = new_text_head(SMALL, 0), new_text_head(SMALL, 0), new_text_head(SMALL, 1)
    bound = 1 / SMALL.language.hidden_size**0.5
    for name, value in one.items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])
        assert bound * 0.5 < value.abs().max() <= bound
        assert value.dtype == torch.float32


def test_sam2_1_tensors_are_taken_in(lisa, tmp_path):
    """SAM 2.1 has two parts more; what no module has is ignored and named."""
    folder, sam2 = lisa
    weights = load_torch_file(sam2)
    torch.save({"model": weights | {"image_encoder.extra": torch.ones(1)}}, tmp_path / "sam2_x.pt")
    report = convert(folder, tmp_path / "start", sam2=tmp_path / "sam2_x.pt")
    assert report.ignored["sam2_x.pt: image_encoder.extra"] == "not a tensor of GLUS"
    occlusion = {"no_obj_embed_spatial": torch.ones(1, SMALL.segmenter.memory_size)}
    torch.save({"model": weights | occlusion}, tmp_path / "sam2_1.pt")
    convert(folder, tmp_path / "start-1", sam2=tmp_path / "sam2_1.pt")
    assert glus.load(tmp_path / "start-1").config.segmenter.occlusion_embedding
    assert torch.equal(stored(tmp_path / "start-1")[SAM2 + "no_obj_embed_spatial"], occlusion["no_obj_embed_spatial"])


def test_lisa_without_sam2(lisa, tmp_path):
    with pytest.raises(CheckpointError, match=r"it is LISA.*--sam2 sam2_hiera_large\.pt"):
        convert(lisa[0], tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_sam2_with_a_glus(lisa, tiny_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="--sam2 goes with LISA only"):
        convert(tiny_checkpoint, tmp_path / "x", sam2=lisa[1])
    assert list(tmp_path.iterdir()) == []


def test_sam2_with_ours(lisa, tmp_path):
    glus.checkpoints.save(glus.load(write_miniature(tmp_path / "start", SMALL)), tmp_path / "own")
    with pytest.raises(CheckpointError, match="--sam2 goes with LISA only"):
        convert(tmp_path / "own", tmp_path / "x", sam2=lisa[1])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fault", ["absent", "truncated", "incomplete", "other size"])
def test_a_sam2_file_that_will_not_do(lisa, tmp_path, fault):
    folder, sam2 = lisa
    path = tmp_path / "sam2.pt"
    if fault == "truncated":
        path.write_bytes(sam2.read_bytes()[:5000])
    elif fault == "incomplete":
        torch.save({"model": {k: v for k, v in load_torch_file(sam2).items() if k != "no_mem_embed"}}, path)
    elif fault == "other size":
        torch.save({"model": load_torch_file(sam2) | {"no_mem_embed": torch.zeros(1, 1, 256)}}, path)
    says = {
        "absent": "no SAM 2 weights",
        "truncated": "damaged",
        "incomplete": r"missing: model\.visual_model\.no_mem_embed",
        "other size": r"no_mem_embed .* \(1, 1, 256\).*--sam2-config",
    }
    with pytest.raises(CheckpointError, match=says[fault]) as caught:
        convert(folder, tmp_path / "x", sam2=path)
    assert "sam2.pt" in str(caught.value)
    assert not (tmp_path / "x").exists()


# ---- failures -------------------------------------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    """Somebody presses Ctrl-C."""


def stop_at(words):
    def report(line):
        if words in line:
            raise Stop

    return report


def test_an_interrupted_conversion_leaves_no_folder(tmp_path):
    before = write_miniature(tmp_path / "before", SMALL)
    kept = sorted(tmp_path.iterdir())
    with pytest.raises(Stop):
        convert(before, tmp_path / "own", report=stop_at("200 of "), shard_bytes=100_000)
    assert sorted(tmp_path.iterdir()) == kept
    convert(before, tmp_path / "own")
    kept = sorted(tmp_path.iterdir())
    with pytest.raises(Stop):
        convert(tmp_path / "own", tmp_path / "back", report=stop_at("200 of "), shard_bytes=100_000)
    assert sorted(tmp_path.iterdir()) == kept


def test_an_interrupted_start_from_lisa_leaves_no_folder(lisa, tmp_path):
    with pytest.raises(Stop):
        convert(lisa[0], tmp_path / "x", sam2=lisa[1], report=stop_at("100 of "))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_left_alone(tiny_checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SettingError, match="exists already"):
        convert(tiny_checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_source_leaves_nothing(tmp_path):
    before = write_miniature(tmp_path / "before", SMALL)
    weights = load_torch_file(before / "pytorch_model.bin")
    rewrite(before / "pytorch_model.bin", {k: v for k, v in weights.items() if k != "lm_head.weight"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        convert(before, tmp_path / "own")
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


def test_unknown_tensors_are_kept_for_the_way_back(tmp_path):
    before = write_miniature(tmp_path / "before", SMALL)
    weights = load_torch_file(before / "pytorch_model.bin")
    rewrite(before / "pytorch_model.bin", weights | {"something.else": torch.arange(3)})
    report = convert(before, tmp_path / "own")
    assert report.ignored == {"something.else": "not a tensor of GLUS"}
    assert list(load_file(tmp_path / "own/ignored.safetensors")) == ["something.else"]
    convert(tmp_path / "own", tmp_path / "after")
    assert_stored_alike(before, tmp_path / "after")


def test_a_whole_clip_models_text_side_is_ignored_with_the_reason(tmp_path):
    before = write_miniature(tmp_path / "before", SMALL)
    tower = before / "vision_tower"
    weights = load_file(tower / "model.safetensors")
    save_file(weights | {"text_model.x": torch.zeros(1)}, tower / "model.safetensors")
    shutil.move(tower, tmp_path / "clip-vit")
    report = convert(before, tmp_path / "own", vision_tower=tmp_path / "clip-vit")
    assert report.ignored == {"clip-vit: text_model.x": "CLIP's text side"}
    convert(tmp_path / "own", tmp_path / "after")
    assert set(stored(tmp_path / "after/vision_tower")) == set(weights)
    glus.load(tmp_path / "after")


def test_a_model_of_ours_keeps_its_rules_in_the_published_layout(tiny_model, tmp_path):
    import dataclasses

    from glus.checkpoints import load, save
    from glus.config import MemoryConfig, PromptConfig

    before = tiny_model.config
    tiny_model.config = dataclasses.replace(
        before,
        memory=MemoryConfig(slots=5, stride=2),
        prompt=PromptConfig(system="Look.", answer_opening=""),
        memory_fuser_gamma="checkpoint",
    )
    try:
        save(tiny_model, tmp_path / "ours")
        convert(tmp_path / "ours", tmp_path / "published")
        assert load(tmp_path / "published", device="cpu").config == tiny_model.config
    finally:
        tiny_model.config = before
