"""Checkpoints: every way they are stored, every way they are broken, and saving without loss or leftovers."""

from __future__ import annotations

import collections
import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import glus
from glus import checkpoints
from glus.checkpoints import CheckpointWarning, choose_device, choose_dtype, empty_model, file_names, save
from glus.config import GlusConfig
from glus.errors import CheckpointError, SettingError
from glus.miniature import write_miniature
from glus.modeling.segmenter import RESET_GAMMA
from glus.tokenizer import Tokenizer
from glus.weights import WeightFolder, load_torch_file, write_shards

SMALL = GlusConfig.tiny(image_size=64)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 9877989586\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """One .bin file, as the authors' script writes."""
    return write_miniature(tmp_path_factory.mktemp("published") / "glus", SMALL)


@pytest.fixture(scope="module")
def tensors(published) -> dict[str, torch.Tensor]:
    return load_torch_file(published / "pytorch_model.bin")


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(published, tmp_path / "glus"))


@pytest.fixture
def rewrite(folder, tensors):
    """Function that stores the copy's tensors in another way, or other tensors."""

    def rewrite(kind="safetensors", values=None, shard_bytes=10**9):
        (folder / "pytorch_model.bin").unlink()
        write_shards(folder, (values or tensors).items(), kind, shard_bytes)
        return folder

    return rewrite


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def gammas(model):
    return [v for n, v in model.state_dict().items() if n.endswith(".scale") and "memory_fuser" in n]


# ---- every way of storing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("shard_bytes", [10**9, 200_000])
def test_all_ways_of_storing_give_the_same_model(published, rewrite, kind, shard_bytes):
    wanted = state(glus.load(published))
    folder = rewrite(kind, shard_bytes=shard_bytes)
    files = [path.name for path in folder.iterdir() if path.suffix in {".bin", ".safetensors"}]
    assert (len(files) > 2) == (shard_bytes < 10**9)
    assert_equal(state(glus.load(folder)), wanted)


def test_the_format_of_older_torch(published, folder, tensors):
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_equal(state(glus.load(folder)), state(glus.load(published)))


def test_shards_are_as_small_as_asked_and_the_index_is_complete(rewrite, tensors):
    folder = rewrite("safetensors", shard_bytes=200_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    largest = max(t.numel() * t.element_size() for t in tensors.values())
    for name in set(index["weight_map"].values()):
        held = load_file(folder / name)
        assert {key for key, file in index["weight_map"].items() if file == name} == set(held)
        assert sum(t.numel() * t.element_size() for t in held.values()) <= max(200_000, largest)
    assert not list(folder.glob("*.part"))


def test_every_tensor_gets_its_values(published, tensors):
    model = glus.load(published, memory_fuser_gamma="checkpoint")
    vision = load_file(published / "vision_tower/model.safetensors")
    used = set()
    for module_name, value in model.state_dict().items():
        names = file_names(module_name)
        used |= set(names)
        rows = [vision[f"vision_model.{n[13:]}"] if n.startswith("vision_tower.") else tensors[n] for n in names]
        assert torch.equal(value, torch.cat(rows).float() if len(rows) > 1 else rows[0].float()), module_name
    assert set(tensors) <= used
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
    assert not model.training


def test_two_models_of_one_file_do_not_share_weights(published):
    one, other = glus.load(published), glus.load(published)
    one.text_head[0].weight.data.zero_()
    assert other.text_head[0].weight.abs().sum() > 0


@pytest.mark.parametrize("config", [GlusConfig(), SMALL], ids=["large", "tiny"])
def test_tensors_and_published_names_match_one_to_one(config):
    tokenizer = Tokenizer(lambda s: [1], {"[SEG]": 32000, "<im_start>": 32001, "<im_end>": 32002}, {"<s>": 1})
    model = empty_model(config, tokenizer, "names")
    assert all(parameter.is_meta for parameter in model.parameters())
    names = collections.Counter(name for module_name in model.state_dict() for name in file_names(module_name))
    twice = "model.visual_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert {name for name, count in names.items() if count > 1} == {twice}  # the modules hold it twice
    if config == GlusConfig():
        sam2 = [name for name in names if name.startswith("model.visual_model.")]
        assert len(sam2) == 900  # of sam2_hiera_large.pt


def test_a_name_that_no_file_has():
    with pytest.raises(KeyError):
        file_names("segmenter.sam2.something.new")
    with pytest.raises(KeyError):
        file_names("something.new")


# ---- broken files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("left", [0, 3, 30, 0.5, 0.999])
def test_truncated_weights(rewrite, kind, left):
    folder = rewrite(kind)
    path = next(p for p in folder.iterdir() if p.suffix == f".{kind}")
    content = path.read_bytes()
    path.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        glus.load(folder)
    assert str(path) in str(caught.value)
    assert "download it again" in str(caught.value)


def test_truncated_weights_of_older_torch(folder, tensors):
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        glus.load(folder)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_pointer_instead_of_weights(rewrite, kind):
    folder = rewrite(kind)
    next(p for p in folder.iterdir() if p.suffix == f".{kind}").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        glus.load(folder)


class Payload:
    """What a hostile pickle does: calls a function while it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(folder, tmp_path, tensors, zipped):
    mark = tmp_path / "it ran"
    torch.save({**tensors, "x": Payload(mark)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="never run here"):
        glus.load(folder)
    assert not mark.exists()
    plain = folder / "pytorch_model.bin"
    plain.write_bytes(pickle.dumps(Payload(mark), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        glus.load(folder)
    assert not mark.exists()
    pickle.loads(plain.read_bytes())
    assert mark.exists()  # it would have


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, "text", torch.zeros(2)])
def test_a_file_of_something_else(folder, content):
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not named tensors"):
        glus.load(folder)


def test_tensors_inside_another_dictionary(tmp_path):
    for inner in ("model", "state_dict"):
        torch.save({inner: {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "x.pt")
        assert list(load_torch_file(tmp_path / "x.pt")) == ["a"]


def test_a_shard_that_is_not_there(rewrite):
    folder = rewrite("safetensors", shard_bytes=200_000)
    shard = sorted(folder.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match="download the missing") as caught:
        glus.load(folder)
    assert shard.name in str(caught.value)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": []}}']
)
def test_a_damaged_index(rewrite, index):
    folder = rewrite("safetensors", shard_bytes=200_000)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not a weight index"):
        glus.load(folder)


def test_an_index_that_leaves_a_shard_out(rewrite):
    folder = rewrite("safetensors", shard_bytes=200_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    gone = sorted(set(index["weight_map"].values()))[-1]
    index["weight_map"] = {key: name for key, name in index["weight_map"].items() if name != gone}
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="tensors are missing"):
        glus.load(folder)


def test_no_weights_at_all(folder):
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no weights") as caught:
        glus.load(folder)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["lm_head.weight", "model.mm_projector.bias", "model.visual_model.sam_prompt_encoder.point_embeddings.2.weight"],
)
def test_a_missing_tensor_is_named(rewrite, tensors, key):
    folder = rewrite(values={name: value for name, value in tensors.items() if name != key})
    with pytest.raises(CheckpointError, match="1 tensors are missing") as caught:
        glus.load(folder)
    assert key in str(caught.value)
    assert ("sam2_config" in str(caught.value)) == ("visual_model" in key)


def test_many_missing_tensors_are_counted_not_listed(rewrite, tensors):
    folder = rewrite(values={name: value for name, value in tensors.items() if not name.startswith("model.layers")})
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        glus.load(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.visual_model.no_mem_embed"])
def test_a_wrong_shape_is_named(rewrite, tensors, name):
    folder = rewrite(values=tensors | {name: torch.zeros(7)})
    with pytest.raises(CheckpointError, match=r"1 tensors do not fit") as caught:
        glus.load(folder)
    message = str(caught.value)
    assert name in message
    assert "(7,)" in message
    assert str(folder) in message
    assert ("sam2_config=, --sam2-config" in message) == ("visual_model" in name)


def test_other_sam2_sizes_ask_for_its_configuration(folder):
    (folder / "sam2.json").unlink()  # then hiera-large is meant
    with pytest.raises(CheckpointError, match="sam2_config=, --sam2-config"):
        glus.load(folder)


def test_an_unknown_tensor_is_left_out_with_a_warning(published, rewrite, tensors):
    folder = rewrite(values=tensors | {"model.something.new": torch.zeros(2)})
    with pytest.warns(CheckpointWarning, match=r"1 unknown tensors: model\.something\.new"):
        model = glus.load(folder)
    assert_equal(state(model), state(glus.load(published)))


def test_known_leftovers_are_left_out_silently(published, rewrite, tensors):
    extra = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.zeros(6) for n in range(2)}
    extra |= {"model.vision_tower.vision_tower.vision_model.x": torch.zeros(1)}
    assert_equal(state(glus.load(rewrite(values=tensors | extra))), state(glus.load(published)))


# ---- broken configuration -------------------------------------------------------------------------------------------


def test_a_missing_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        glus.load(folder)


@pytest.mark.parametrize(
    ("content", "says"), [("", "not JSON"), ("{,", "not JSON"), ("[1]", "holds list"), ("3", "holds int")]
)
def test_a_damaged_configuration(folder, content, says):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        glus.load(folder)


@pytest.mark.parametrize("kind", ["llama", "sam2_video", None])
def test_another_model(folder, kind):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"type {kind!r}; wanted a GLUS checkpoint"):
        glus.load(folder)


def change(folder, **values):
    path = folder / "config.json"
    data = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def test_a_configuration_without_a_size(folder):
    change(folder, num_hidden_layers=...)
    with pytest.raises(CheckpointError, match="has no 'num_hidden_layers'"):
        glus.load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "48"},
        {"hidden_size": -48},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"hidden_act": "none of them"},
        {"num_hidden_layers": 1.5},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"vocab_size": 260},
    ],
)
def test_sizes_that_make_no_network(folder, values):
    change(folder, **values)
    with pytest.raises(CheckpointError):
        glus.load(folder)


@pytest.mark.parametrize("values", [{"vision": 3}, {"memory": []}, {"memory": {"slotz": 3}}, {"extra": 1}])
def test_our_configuration_damaged(values):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GlusConfig.from_json(SMALL.to_json() | values)


def test_our_configuration_comes_back_from_json(tmp_path):
    SMALL.save(tmp_path / "config.json")
    assert GlusConfig.from_json(json.loads((tmp_path / "config.json").read_text())) == SMALL
    assert GlusConfig.from_json(json.loads(json.dumps(GlusConfig().to_json()))) == GlusConfig()


@pytest.mark.parametrize("content", ["", "[1]", "model: {}", "a: [", "image_encoder: {trunk: 3}"])
def test_a_damaged_sam2_configuration(tmp_path, content):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"x\.yaml is"):
        checkpoints.read_sam2_config(tmp_path / "x.yaml")
    with pytest.raises(CheckpointError, match="no SAM 2 configuration"):
        checkpoints.read_sam2_config(tmp_path / "y.yaml")


def test_a_missing_vocabulary(folder):
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"no vocabulary.*tokenizer\.model"):
        glus.load(folder)


# ---- finding --------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_no_vision_tower_and_no_hub(folder, offline):
    shutil.rmtree(folder / "vision_tower")
    change(folder, mm_vision_tower="nobody/no-such-clip", vision_tower="nobody/no-such-clip")
    with pytest.raises(CheckpointError, match="nobody/no-such-clip") as caught:
        glus.load(folder)
    for part in ("CLIP vision tower", "config.json", "model.safetensors or pytorch_model.bin", "vision_tower="):
        assert part in str(caught.value)


def test_a_vision_tower_elsewhere(published, folder):
    tower = folder.parent / "clip"
    shutil.move(folder / "vision_tower", tower)
    wanted = state(glus.load(published))
    assert_equal(state(glus.load(folder, vision_tower=tower)), wanted)
    change(folder, mm_vision_tower="clip")
    assert_equal(state(glus.load(folder)), wanted)  # beside it
    change(folder, mm_vision_tower=..., vision_tower=...)
    with pytest.raises(CheckpointError, match="names no vision tower"):
        glus.load(folder)


def test_a_whole_clip_model_serves_as_vision_tower(published, folder):
    tower = folder / "vision_tower"
    weights = load_file(tower / "model.safetensors")
    text = {"text_model.x": torch.zeros(1), "logit_scale": torch.zeros(()), "visual_projection.weight": torch.zeros(1)}
    save_file(weights | text, tower / "model.safetensors")
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))
    assert_equal(state(glus.load(folder)), state(glus.load(published)))


def test_a_hub_id_that_does_not_exist(offline):
    with pytest.raises(CheckpointError, match="nobody/no-such-model") as caught:
        glus.load("nobody/no-such-model")
    assert "neither a folder here nor could it be had from the hub" in str(caught.value)
    assert "pytorch_model-*.bin" in str(caught.value)


def test_a_hub_that_breaks_off(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    http_library = HfHubHTTPError.__mro__[1]
    for error in (http_library("too slow"), ConnectionError("no route"), OSError(28, "No space left on device")):

        def broken(*args, _error=error, **options):
            raise _error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
        with pytest.raises(CheckpointError, match=re.escape(str(error))):
            checkpoints.find("nobody/slow")


def test_a_hub_id_is_downloaded(published, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(published)
    )
    assert glus.load("someone/glus").name == "someone/glus"
    assert [name for name, _ in asked] == ["someone/glus"]
    assert "*.model" in asked[0][1]["allow_patterns"]


@pytest.mark.parametrize("reference", ["nothing-here", "/nothing/here", "./nothing", "a/b/c", "", "a/"])
def test_what_is_neither_a_folder_nor_a_hub_id(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if reference == "":  # the current folder
        with pytest.raises(CheckpointError, match=r"config\.json is missing"):
            glus.load(reference)
        return
    with pytest.raises(CheckpointError, match="wanted a folder or a hub id"):
        glus.load(reference)


def test_a_file_instead_of_a_folder(published):
    with pytest.raises(CheckpointError, match="is a file; wanted the checkpoint's folder"):
        glus.load(published / "pytorch_model.bin")


# ---- device, dtype, gamma -------------------------------------------------------------------------------------------


def test_choosing_a_dtype():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("auto", cuda) == torch.bfloat16
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        assert choose_dtype(name, cpu) == choose_dtype(dtype, cpu) == dtype


@pytest.mark.parametrize("dtype", ["int8", "float64", "half", "", None, torch.int64, 16])
def test_no_such_dtype(dtype, published):
    with pytest.raises(SettingError, match=r"unknown dtype .* wanted auto, float32"):
        glus.load(published, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None])
def test_no_such_device(device, published):
    with pytest.raises(SettingError, match="unknown device"):
        glus.load(published, device=device)


def test_no_such_gamma():
    with pytest.raises(SettingError, match="unknown memory_fuser_gamma 'trained'"):
        glus.load("/not/even/looked/for", memory_fuser_gamma="trained")


def test_a_device_that_is_not_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(SettingError, match="no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SettingError, match="only 2 devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_position_codes_stay_in_float32(published, dtype):
    full, half = glus.load(published), glus.load(published, dtype=dtype)
    kind = checkpoints.DTYPES[dtype]
    assert half.dtype == kind
    assert {p.dtype for p in half.parameters()} == {kind}
    floating = {name: b for name, b in half.named_buffers() if b.is_floating_point()}
    assert {b.dtype for b in floating.values()} == {torch.float32}
    assert any("inv_freq" in name for name in floating)  # the language model's rotary frequencies
    assert any("rope" in name or "rotary" in name for name in floating if name.startswith("segmenter"))
    for name, value in full.named_buffers():
        assert torch.equal(half.get_buffer(name), value), name
    for code in ("image_code", "memory_code", "dense_code"):
        wanted = getattr(full.segmenter, code)(torch.zeros(1))
        assert torch.equal(getattr(half.segmenter, code)(torch.zeros(1, dtype=kind)), wanted.to(kind))


def test_half_precision_segments(published):
    frames = [np.full((20, 30, 3), 30 * n, np.uint8) for n in range(3)]
    assert len(list(glus.segment(glus.load(published, dtype="bfloat16"), frames, "the dog"))) == 3


def test_memory_fuser_gamma_both_ways_and_back(published, tensors):
    names = sorted(name for name in tensors if "fuser" in name and name.endswith("gamma"))
    trained = [tensors[name] for name in names]
    model = glus.load(published)
    assert model.config.memory_fuser_gamma == "reset"  # what the published evaluation ran with
    assert all((g == RESET_GAMMA).all() for g in gammas(model))
    for _ in range(2):
        model.segmenter.set_memory_fuser_gamma("checkpoint")
        assert all(torch.equal(g, t) for g, t in zip(gammas(model), trained, strict=True))
        assert not model.segmenter.trained_gamma()
        model.segmenter.set_memory_fuser_gamma("reset")
        model.segmenter.set_memory_fuser_gamma("reset")  # twice must not lose them
        assert all((g == RESET_GAMMA).all() for g in gammas(model))
    loaded = glus.load(published, memory_fuser_gamma="checkpoint")
    assert loaded.config.memory_fuser_gamma == "checkpoint"
    assert all(torch.equal(g, t) for g, t in zip(gammas(loaded), trained, strict=True))


# ---- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", ["checkpoint", "reset"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_again_is_equal(published, tmp_path, gamma, dtype):
    model = glus.load(published, memory_fuser_gamma=gamma, dtype=dtype)
    assert save(model, tmp_path / "own") == tmp_path / "own"
    again = glus.load(tmp_path / "own", dtype=dtype)
    assert again.config == model.config
    assert again.tokenizer.files == model.tokenizer.files
    assert_equal(state(again), state(model))
    # the trained scales went along, whatever was in use
    trained = glus.load(published, memory_fuser_gamma="checkpoint", dtype=dtype)
    restored = glus.load(tmp_path / "own", memory_fuser_gamma="checkpoint", dtype=dtype)
    assert_equal(state(restored), state(trained))


def test_saving_does_not_change_the_model(published, tmp_path):
    model = glus.load(published)
    before = state(model)
    save(model, tmp_path / "own")
    assert_equal(state(model), before)
    assert model.segmenter.trained_gamma()


def test_a_saved_folder_stands_alone(published, tmp_path, offline, monkeypatch):
    save(glus.load(published), tmp_path / "own")
    moved = tmp_path / "moved"
    (tmp_path / "own").rename(moved)
    assert glus.load(moved).config.vision == SMALL.vision
    assert sorted(path.name for path in moved.iterdir()) == [
        "added_tokens.json",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]
    assert (moved / "model.safetensors").stat().st_mode & 0o777 == (moved / "config.json").stat().st_mode & 0o777


def test_an_existing_folder_is_not_written_into(published, tmp_path):
    model = glus.load(published)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("x")
    for place in (taken, taken / "mine.txt"):
        with pytest.raises(SettingError, match="exists already"):
            save(model, place)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (taken / "mine.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    save(model, tmp_path / "new/deep/folder")
    assert glus.load(tmp_path / "empty").config == glus.load(tmp_path / "new/deep/folder").config


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(published, tmp_path, monkeypatch, error):
    model = glus.load(published)

    def broken(folder, tensors, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "write_shards", broken)
    with pytest.raises(type(error)):
        save(model, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_of_ours(published, tmp_path):
    save(glus.load(published), tmp_path / "own")
    path = tmp_path / "own/model.safetensors"
    weights = load_file(path)
    for name, wanted in (("lm_head.weight", "missing"), ("vision_tower.post_layernorm.weight", "missing")):
        save_file({key: value for key, value in weights.items() if key != name}, path)
        with pytest.raises(CheckpointError, match=wanted):
            glus.load(tmp_path / "own")
    save_file(weights | {"lm_head.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"do not fit.*lm_head"):
        glus.load(tmp_path / "own")
    save_file(weights | {"new": torch.zeros(3)}, path)
    with pytest.warns(CheckpointWarning, match="new"):
        glus.load(tmp_path / "own")


def test_only_what_is_asked_for_is_read(rewrite):
    held = WeightFolder(rewrite("safetensors", shard_bytes=200_000))
    assert held.keys() == sorted(held.keys())
    assert held.shape("lm_head.weight") == (SMALL.language.vocab_size, SMALL.language.hidden_size)
    assert "lm_head.weight" in held
    assert "nothing" not in held
    assert held.file("lm_head.weight").suffix == ".safetensors"
    assert dataclasses.is_dataclass(SMALL)
