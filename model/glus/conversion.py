"""Checkpoints from one layout to another: published <-> ours, and a starting point for training from LISA and SAM 2.

Every tensor is accounted for: converted as it is (no change of type), ignored for a reason that is written down, created
anew, or missing, which is an error that names it. Works tensor by tensor; no network is run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from glus.checkpoints import (
    OURS,
    VISION_PREFIX,
    Accounting,
    Published,
    Source,
    account,
    check_present,
    empty_model,
    find,
    is_own_layout,
    new_folder,
    open_published,
    read_json,
    vision_key,
    wanted_names,
)
from glus.config import GlusConfig, SegmenterConfig, VisionConfig
from glus.errors import CheckpointError
from glus.tokenizer import Tokenizer
from glus.weights import SHARD_BYTES, TensorDict, WeightFolder, load_torch_file, save_tensors, write_shards

RECORD = "conversion.json"  # what the way back needs: the published config.json, other small files
IGNORED_FILE = "ignored.safetensors"  # tensors of the published file that no module has
_SIDE_FILES = ("generation_config.json",)
_SAM2 = "model.visual_model."
_TEXT_HEAD = "model.text_hidden_fcs."
_SAM1_MARK = "model.visual_model.image_encoder.blocks."  # SAM 1's encoder: the file is LISA, not GLUS


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor.

    Attributes:
        direction: "published to ours", "ours to published" or "LISA and SAM 2 to ours".
        folder: what was written.
        converted: how many tensors were taken over.
        ignored: names left out, with the reason of each.
        created: names made anew.
    """

    direction: str
    folder: Path
    converted: int
    ignored: Mapping[str, str] = field(default_factory=dict)
    created: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The account, for people: one line of numbers, then reasons with how many tensors each took."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(key)
        text = [
            f"{self.direction}: converted {self.converted} tensors, 0 missing, {len(self.ignored)} ignored, "
            f"{len(self.created)} created -> {self.folder}"
        ]
        text += [f"  ignored {len(keys)}: {reason} (for example {keys[0]})" for reason, keys in reasons.items()]
        text += [f"  created {key}" for key in self.created]
        return text


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    vision_tower: str | os.PathLike[str] | None = None,
    sam2: str | os.PathLike[str] | None = None,
    sam2_config: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
) -> ConversionReport:
    """Convert a checkpoint; which way follows from what `src` is.

    A published GLUS becomes our layout, our layout becomes the published one (pytorch_model-*.bin, with the CLIP tower
    in `vision_tower/` and the SAM 2 sizes in `sam2.json` beside it). LISA-7B-v1 together with `sam2_hiera_large.pt`
    becomes a starting point for training in our layout: LISA's language model and projector, SAM 2's weights, a new text
    head.

    Args:
        src: folder or hub id.
        dst: new folder; appears whole or not at all.
        vision_tower: CLIP's folder or hub id, if not the one that `src` names.
        sam2: SAM 2's .pt file; only with LISA.
        sam2_config: SAM 2's configuration, if not hiera-large.
        report: takes progress lines.
        shard_bytes: largest file.
        seed: of the new text head.

    Raises:
        CheckpointError: something is missing, damaged or does not fit. SettingError: `dst` exists.
    """
    say = report or (lambda _: None)
    folder = find(src)
    target = Path(dst)
    if is_own_layout(folder):
        if sam2 is not None:
            raise CheckpointError(f"{folder} has a SAM 2 of its own; --sam2 goes with LISA only")
        result = _to_published(folder, target, say, shard_bytes)
    else:
        published = open_published(folder, vision_tower, sam2_config)
        is_lisa = any(key.startswith(_SAM1_MARK) for key in published.weights.keys())  # noqa: SIM118 - not a dict
        if is_lisa and sam2 is None:
            raise CheckpointError(
                f"{folder} holds SAM 1 where GLUS has SAM 2: it is LISA. To make a starting point for training of it, "
                "give SAM 2's weights too: --sam2 sam2_hiera_large.pt"
            )
        if sam2 is not None and not is_lisa:
            raise CheckpointError(f"{folder} has a SAM 2 of its own; --sam2 goes with LISA only")
        result = (
            _start_from_lisa(published, Path(sam2), target, say, shard_bytes, seed)
            if sam2 is not None
            else _to_own(published, target, say, shard_bytes)
        )
    for line in result.lines():
        say(line)
    return result


# ---- published -> ours ----------------------------------------------------------------------------------------------


def _to_own(published: Published, target: Path, say: Callable[[str], None], shard_bytes: int) -> ConversionReport:
    model = empty_model(published.config, published.tokenizer, str(published.folder))
    accounting = account(model, published)
    with new_folder(target) as work:
        _write_own(work, published.config, published.tokenizer, accounting, say, shard_bytes)
        left = [key for key in accounting.ignored if key in published.weights]
        if left:
            save_tensors({key: published.weights.tensor(key).clone() for key in left}, work / IGNORED_FILE)
        _write_record(work, published, accounting.ignored)
    return ConversionReport("published to ours", target, len(accounting.where), accounting.ignored)


def _write_own(
    work: Path,
    config: GlusConfig,
    tokenizer: Tokenizer,
    accounting: Accounting,
    say: Callable[[str], None],
    shard_bytes: int,
) -> None:
    config.save(work / "config.json")
    for name, content in tokenizer.files.items():
        (work / name).write_bytes(content)
    tensors = ((name, source.tensor(key)) for name, (source, key) in accounting.where.items())
    write_shards(work, _counted(tensors, len(accounting.where), say), shard_bytes=shard_bytes)


def _counted(
    tensors: Iterable[tuple[str, Tensor]], total: int, say: Callable[[str], None]
) -> Iterator[tuple[str, Tensor]]:
    for number, (name, tensor) in enumerate(tensors, 1):
        if number % 100 == 0:
            say(f"{number} of {total} tensors")
        yield name, tensor


def _write_record(work: Path, published: Published, ignored: Mapping[str, str]) -> None:
    record: dict[str, Any] = {
        "config": read_json(published.folder / "config.json"),
        "files": {
            name: read_json(published.folder / name) for name in _SIDE_FILES if (published.folder / name).is_file()
        },
        "vision_config": read_json(published.vision_folder / "config.json"),
        "vision_prefix": any(k.startswith("vision_model.") for k in published.vision.keys()),  # noqa: SIM118
        "ignored": dict(ignored),
    }
    (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


# ---- ours -> published ----------------------------------------------------------------------------------------------


def _to_published(folder: Path, target: Path, say: Callable[[str], None], shard_bytes: int) -> ConversionReport:
    config = GlusConfig.from_json(read_json(folder / "config.json"))
    tokenizer = Tokenizer.from_folder(folder)
    weights = WeightFolder(folder)
    wanted = wanted_names(empty_model(config, tokenizer, str(folder)))
    check_present(wanted, {name: (weights, name) for name in wanted})
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    tensors = ((name, weights.tensor(name)) for name in wanted)
    with new_folder(target) as work:
        extra: Source = TensorDict({}, folder)
        if (folder / IGNORED_FILE).is_file():
            from safetensors.torch import load_file

            extra = TensorDict(load_file(folder / IGNORED_FILE), folder)
        write_published(
            work,
            config,
            tokenizer,
            _counted(tensors, len(wanted), say),
            record=record,
            extra={key: extra.tensor(key) for key in extra.keys()},  # noqa: SIM118 - not a dict
            shard_bytes=shard_bytes,
        )
    return ConversionReport("ours to published", target, len(wanted))


def write_published(
    work: Path,
    config: GlusConfig,
    tokenizer: Tokenizer,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    record: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    shard_bytes: int = SHARD_BYTES,
    kind: Literal["safetensors", "bin"] = "bin",
) -> None:
    """Write the published layout into an existing folder: language model and SAM 2 in it, CLIP in `vision_tower/`.

    Args:
        work: folder to fill.
        config: sizes.
        tokenizer: its files are copied.
        tensors: under our file names, in any order.
        record: of an earlier conversion, so that config.json and the CLIP configuration come back as they were.
        extra: tensors of the published file that no module has.
        shard_bytes: largest file.
        kind: the authors' script writes "bin".
    """
    record, vision = record or {}, {}

    def main() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if name.startswith(VISION_PREFIX):
                vision[name.removeprefix(VISION_PREFIX)] = tensor
            else:
                yield name, tensor
        yield from (extra or {}).items()

    write_shards(work, main(), kind=kind, shard_bytes=shard_bytes)
    _dump(work / "config.json", record.get("config") or published_config(config))
    for name, content in record.get("files", {}).items():
        _dump(work / name, content)
    for name, content in tokenizer.files.items():
        (work / name).write_bytes(content)
    _dump(work / "sam2.json", sam2_values(config.segmenter))
    tower = work / "vision_tower"
    tower.mkdir()
    prefix = "vision_model." if record.get("vision_prefix", True) else ""
    write_shards(tower, ((prefix + name, tensor) for name, tensor in vision.items()))
    _dump(tower / "config.json", record.get("vision_config") or clip_config(config.vision))
    _dump(tower / "preprocessor_config.json", clip_preprocessing(config.vision))


def _dump(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def published_config(config: GlusConfig, *, ours: bool = True) -> dict[str, Any]:
    """config.json of the published layout for a model that never came from it.

    Args:
        config: sizes and rules.
        ours: put all of `config` under a key that only `glus.load` reads, because the layout has no place for memory and
            window rules, wording and the gamma convention.
    """
    language = config.language
    values: dict[str, Any] = {
        "architectures": ["GLUSForCausalLM"],
        "model_type": "llava",
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.key_value_heads,
        "vocab_size": language.vocab_size,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_theta": language.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": language.max_positions,
        "hidden_act": language.hidden_act,
        "tie_word_embeddings": language.tie_word_embeddings,
        "bos_token_id": language.bos_token_id,
        "eos_token_id": language.eos_token_id,
        "pad_token_id": 0,
        "mm_hidden_size": config.vision.hidden_size,
        "mm_vision_select_layer": config.vision.feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": True,
        "mm_vision_tower": "vision_tower",
        "vision_tower": "vision_tower",
        "out_dim": config.segmenter.hidden_size,
        "train_mask_decoder": True,
        "torch_dtype": "bfloat16",
        "use_cache": False,
    }
    return values | {OURS: config.to_json()} if ours else values


def clip_config(vision: VisionConfig) -> dict[str, Any]:
    """config.json of a CLIP vision tower."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
        "projection_dim": vision.projection_dim,
    }


def clip_preprocessing(vision: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json of a CLIP vision tower."""
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": vision.image_size,
        "size": vision.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
    }


def sam2_values(segmenter: SegmenterConfig) -> dict[str, Any]:
    """SAM 2's configuration in the structure of its own files; `read_sam2_config` reads it back to an equal value."""
    return {
        "image_size": segmenter.image_size,
        "num_maskmem": segmenter.memory_slots,
        "sigmoid_scale_for_mem_enc": segmenter.sigmoid_scale,
        "sigmoid_bias_for_mem_enc": segmenter.sigmoid_bias,
        "no_obj_embed_spatial": segmenter.occlusion_embedding,
        "proj_tpos_enc_in_obj_ptrs": segmenter.pointer_time_projection,
        "image_encoder": {
            "trunk": {
                "embed_dim": segmenter.embed_dim,
                "num_heads": segmenter.heads,
                "stages": list(segmenter.stages),
                "global_att_blocks": list(segmenter.global_attention_blocks),
                "window_pos_embed_bkg_spatial_size": list(segmenter.window_background),
                "window_spec": list(segmenter.windows),
            },
            "neck": {"d_model": segmenter.hidden_size},
        },
        "memory_attention": {
            "num_layers": segmenter.memory_attention_layers,
            "layer": {
                "dim_feedforward": segmenter.memory_attention_mlp,
                "dropout": segmenter.memory_attention_dropout,
            },
        },
        "memory_encoder": {
            "out_dim": segmenter.memory_size,
            "mask_downsampler": {"embed_dim": segmenter.mask_downsampler_size},
            "fuser": {"num_layers": segmenter.memory_fuser_layers},
        },
        "sam_mask_decoder_extra_args": {
            "dynamic_multimask_stability_delta": segmenter.stability_delta,
            "dynamic_multimask_stability_thresh": segmenter.stability_threshold,
        },
        # fixed in SAM 2's code, smaller in miniatures
        "mask_decoder": {"mlp_dim": segmenter.decoder_mlp, "iou_head_hidden_dim": segmenter.iou_head_size},
    }


# ---- LISA + SAM 2 -> ours -------------------------------------------------------------------------------------------


def _start_from_lisa(
    lisa: Published, sam2_file: Path, target: Path, say: Callable[[str], None], shard_bytes: int, seed: int
) -> ConversionReport:
    if not sam2_file.is_file():
        raise CheckpointError(f"no SAM 2 weights {sam2_file}; wanted sam2_hiera_large.pt (July 2024)")
    say(f"reading {sam2_file.name}")
    raw = load_torch_file(sam2_file)
    sam2 = TensorDict({_SAM2 + key: value for key, value in raw.items()}, sam2_file)
    segmenter = dataclasses.replace(
        lisa.config.segmenter,
        occlusion_embedding="no_obj_embed_spatial" in raw,
        pointer_time_projection="obj_ptr_tpos_proj.weight" in raw,
    )
    # a new text head is trained together with the trained memory fuser: nothing is reset
    config = dataclasses.replace(lisa.config, segmenter=segmenter, memory_fuser_gamma="checkpoint")
    wanted = wanted_names(empty_model(config, lisa.tokenizer, str(lisa.folder)))
    head = TensorDict(new_text_head(config, seed), lisa.folder)

    where: dict[str, tuple[Source, str]] = {}
    for name in wanted:
        if name.startswith(_TEXT_HEAD):
            where[name] = (head, name)
        elif name.startswith(_SAM2):
            where[name] = (sam2, name)
        elif name.startswith(VISION_PREFIX):
            where[name] = (lisa.vision, vision_key(name, lisa.vision))
        else:
            where[name] = (lisa.weights, name)
    check_present(wanted, where)
    used = {key for source, key in where.values() if source is lisa.weights}
    ignored = {key: _lisa_reason(key) for key in lisa.weights.keys() if key not in used}  # noqa: SIM118
    unused_sam2 = set(sam2.keys()) - {key for source, key in where.values() if source is sam2}
    ignored |= {f"{sam2_file.name}: {key.removeprefix(_SAM2)}": "not a tensor of GLUS" for key in sorted(unused_sam2)}
    with new_folder(target) as work:
        _write_own(work, config, lisa.tokenizer, Accounting(where, ignored), say, shard_bytes)
    created = tuple(name for name in wanted if name.startswith(_TEXT_HEAD))
    return ConversionReport("LISA and SAM 2 to ours", target, len(where) - len(created), ignored, created)


def _lisa_reason(key: str) -> str:
    if key.startswith(_SAM2):
        return "LISA's SAM 1, in whose place SAM 2 comes"
    if key.startswith(_TEXT_HEAD):
        return "LISA's text head is not kept: GLUS trains its own"
    if key.endswith("rotary_emb.inv_freq"):
        return "recomputed from the configuration"
    if key.startswith("model.vision_tower."):
        return "the frozen CLIP tower is read from its own folder"
    return "not a tensor of GLUS"


def new_text_head(config: GlusConfig, seed: int) -> dict[str, Tensor]:
    """An untrained text head under its file names, with the usual uniform initialisation of a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    width, out = config.language.hidden_size, config.segmenter.hidden_size
    bound = 1 / math.sqrt(width)
    shapes = {"0.0.weight": (width, width), "0.0.bias": (width,), "0.2.weight": (out, width), "0.2.bias": (out,)}
    return {
        _TEXT_HEAD + name: torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for name, shape in shapes.items()
    }
