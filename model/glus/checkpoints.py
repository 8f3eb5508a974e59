"""Checkpoints: find one, load it, save it. Knows the published layout and our own; conversion.py goes between them.

Published layout (what the authors' export script writes, on the hub as `Swindl/GLUS-A`): config.json of type llava,
sharded pytorch_model-*.bin or safetensors, tokenizer.model with added_tokens.json; no CLIP and no SAM 2 configuration.

Our layout: one folder with everything in it:

    config.json          GlusConfig
    model.safetensors    (or shards) published tensor names, and the CLIP tower's under `vision_tower.`
    tokenizer.model, added_tokens.json, ...
    conversion.json, ignored.safetensors   only after a conversion: what the way back needs
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from glus.config import (
    IMAGE_END_TOKEN,
    IMAGE_START_TOKEN,
    MODEL_TYPE,
    SEG_TOKEN,
    GlusConfig,
    LanguageConfig,
    MemoryFuserGamma,
    SegmenterConfig,
    VisionConfig,
)
from glus.errors import CheckpointError, SettingError
from glus.modeling import sam2_names
from glus.modeling.glus import Glus
from glus.tokenizer import Tokenizer
from glus.weights import TensorDict, WeightFolder, write_shards

logger = logging.getLogger(__name__)

Source = WeightFolder | TensorDict

VISION_PREFIX = "vision_tower."
OURS = "glus"  # key of a published config.json under which a model of ours keeps all of its configuration
PUBLISHED_GAMMA: MemoryFuserGamma = "reset"
BUILT_IN = {"glus-tiny": Path(__file__).parent / "assets" / "glus-tiny"}  # shipped with the package
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Keys of a published file that no module has, and why they are not needed.
IGNORED: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key.endswith("rotary_emb.inv_freq"), "recomputed from the configuration"),
    (lambda key: key.startswith("model.vision_tower."), "the frozen CLIP tower is read from its own folder"),
)
# ... and of a full CLIP model, of which only the vision tower is used.
IGNORED_CLIP: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key.startswith(("text_model.", "text_projection", "visual_projection")), "CLIP's text side"),
    (lambda key: key == "logit_scale", "CLIP's text side"),
    (lambda key: key.endswith("position_ids"), "recomputed from the configuration"),
)
LAYOUT_HELP = (
    "a local folder would need config.json, pytorch_model-*.bin or *.safetensors (with their index), tokenizer.model and "
    "added_tokens.json; and the CLIP tower's folder: config.json with model.safetensors or pytorch_model.bin"
)


class CheckpointWarning(UserWarning):
    """Something in a checkpoint was left unused."""


# ---- names ----------------------------------------------------------------------------------------------------------


def file_names(module_name: str) -> tuple[str, ...]:
    """Names in our files of a tensor of `Glus` (several where the file holds its rows apart)."""
    for prefix, target in (
        ("language.llama.", ""),
        ("projector.", "model.mm_projector."),
        ("text_head.", "model.text_hidden_fcs.0."),
    ):
        if module_name.startswith(prefix):
            return (target + module_name.removeprefix(prefix),)
    if module_name.startswith("vision.clip."):
        return (VISION_PREFIX + module_name.removeprefix("vision.clip.").removeprefix("vision_model."),)
    if module_name.startswith("segmenter.sam2."):
        names = sam2_names.published_names(module_name.removeprefix("segmenter.sam2."))
        return tuple("model.visual_model." + name for name in names)
    raise KeyError(module_name)


def empty_model(config: GlusConfig, tokenizer: Tokenizer, name: str) -> Glus:
    """The network without weights: parameters have shapes and no memory, buffers are real."""
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError

    # whatever the libraries say to sizes that do not fit together, each in its own way
    unfit = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError, StrictDataclassError)
    try:
        with init_empty_weights(include_buffers=False):
            return Glus(config, tokenizer, name)
    except unfit as error:
        raise CheckpointError(f"{name}: no network can be built from its configuration ({error})") from error


# ---- finding --------------------------------------------------------------------------------------------------------


def find(reference: str | os.PathLike[str], what: str = "checkpoint") -> Path:
    """Local folder of a checkpoint: `glus-tiny` (built in), a path, or a hub id such as `Swindl/GLUS-A`.

    What comes from the hub is downloaded with progress, and a broken download is resumed.

    Raises:
        CheckpointError: no such folder, or the hub does not give it; says what would work instead.
    """
    text = os.fspath(reference)
    if text in BUILT_IN:
        return BUILT_IN[text]
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{path} is a file; wanted the {what}'s folder (the one with config.json)")
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~", "/")):
        raise CheckpointError(f"no {what} folder {text!r}; wanted a folder or a hub id such as 'Swindl/GLUS-A'")
    return _download(text, what)


def _download(hub_id: str, what: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # errors of the hub's HTTP library come through as they are; which library that is changes with the hub's version
    http_error = cast("type[Exception]", HfHubHTTPError.__mro__[1])
    patterns = ["*.json", "*.model", "*.safetensors", "pytorch_model*.bin"]
    try:
        # finished files are kept and a broken download goes on where it stopped
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (http_error, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"the {what} {hub_id!r} is neither a folder here nor could it be had from the hub ({reason}). "
            f"Check the name and the network, or download it elsewhere and pass its folder: {LAYOUT_HELP}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, or not a JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {LAYOUT_HELP}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}; wanted a JSON object")
    return data


# ---- configuration of the published layout --------------------------------------------------------------------------


def language_config(data: Mapping[str, Any], tokenizer: Tokenizer, where: Path) -> LanguageConfig:
    """LanguageConfig from a published config.json."""
    try:
        scaling = data.get("rope_scaling")
        if scaling not in (None, {}):
            raise CheckpointError(f"{where}: rope_scaling is {scaling!r}; GLUS uses plain rotary positions")
        return LanguageConfig(
            hidden_size=data["hidden_size"],
            intermediate_size=data["intermediate_size"],
            layers=data["num_hidden_layers"],
            heads=data["num_attention_heads"],
            key_value_heads=data.get("num_key_value_heads") or data["num_attention_heads"],
            vocab_size=data["vocab_size"],
            rms_norm_eps=data.get("rms_norm_eps", 1e-6),
            rope_theta=data.get("rope_theta", 10000.0),
            max_positions=data.get("max_position_embeddings", 2048),
            hidden_act=data.get("hidden_act", "silu"),
            tie_word_embeddings=data.get("tie_word_embeddings", False),
            seg_token_id=tokenizer.added[SEG_TOKEN],
            image_start_id=tokenizer.added[IMAGE_START_TOKEN],
            image_end_id=tokenizer.added[IMAGE_END_TOKEN],
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.control.get("</s>", 2),
        )
    except KeyError as error:
        raise CheckpointError(f"{where} has no {error.args[0]!r}; is it a GLUS checkpoint's config.json?") from error


def vision_config(folder: Path, feature_layer: int) -> VisionConfig:
    """VisionConfig from the config.json (and preprocessor_config.json) of a CLIP folder, vision part or whole model."""
    path = folder / "config.json"
    data = read_json(path)
    part = data.get("vision_config") or data
    defaults = VisionConfig()
    pixels = folder / "preprocessor_config.json"
    stats = read_json(pixels) if pixels.is_file() else {}
    try:
        return VisionConfig(
            hidden_size=part.get("hidden_size", 768),
            intermediate_size=part.get("intermediate_size", 3072),
            layers=part.get("num_hidden_layers", 12),
            heads=part.get("num_attention_heads", 12),
            image_size=part.get("image_size", 224),
            patch_size=part.get("patch_size", 32),
            hidden_act=part.get("hidden_act", "quick_gelu"),
            layer_norm_eps=part.get("layer_norm_eps", 1e-5),
            projection_dim=part.get("projection_dim", data.get("projection_dim", 512)),
            feature_layer=feature_layer,
            image_mean=tuple(stats.get("image_mean", defaults.image_mean)),
            image_std=tuple(stats.get("image_std", defaults.image_std)),
        )
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a CLIP configuration ({error})") from error


def read_sam2_config(path: str | os.PathLike[str]) -> SegmenterConfig:
    """SegmenterConfig from SAM 2's own configuration: its YAML file, or the same values as JSON.

    Raises:
        CheckpointError: missing, not readable, or without a value that has no default.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no SAM 2 configuration {path}; wanted a file such as sam2_hiera_l.yaml, or JSON of it")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        data = data.get("model", data)
        encoder, attention, memory = data["image_encoder"], data["memory_attention"], data["memory_encoder"]
        trunk, neck = encoder["trunk"], encoder["neck"]
        extra = data.get("sam_mask_decoder_extra_args") or {}
        decoder = data.get("mask_decoder") or {}  # only in miniatures: SAM 2's code fixes these sizes
        defaults = SegmenterConfig()
        width = neck["d_model"]
        return SegmenterConfig(
            image_size=data.get("image_size", 1024),
            embed_dim=trunk["embed_dim"],
            heads=trunk["num_heads"],
            stages=tuple(trunk.get("stages", (2, 3, 16, 3))),
            global_attention_blocks=tuple(trunk.get("global_att_blocks", (12, 16, 20))),
            window_background=tuple(trunk.get("window_pos_embed_bkg_spatial_size", (14, 14))),
            windows=tuple(trunk.get("window_spec", (8, 4, 14, 7))),
            hidden_size=width,
            memory_size=memory["out_dim"],
            memory_slots=data.get("num_maskmem", 7),
            memory_attention_layers=attention["num_layers"],
            memory_attention_mlp=attention["layer"]["dim_feedforward"],
            memory_attention_dropout=attention["layer"]["dropout"],
            memory_fuser_layers=memory["fuser"]["num_layers"],
            mask_downsampler_size=memory["mask_downsampler"].get("embed_dim", 256),
            decoder_mlp=decoder.get("mlp_dim", defaults.decoder_mlp),
            iou_head_size=decoder.get("iou_head_hidden_dim", defaults.iou_head_size),
            stability_delta=extra.get("dynamic_multimask_stability_delta", defaults.stability_delta),
            stability_threshold=extra.get("dynamic_multimask_stability_thresh", defaults.stability_threshold),
            sigmoid_scale=data.get("sigmoid_scale_for_mem_enc", defaults.sigmoid_scale),
            sigmoid_bias=data.get("sigmoid_bias_for_mem_enc", defaults.sigmoid_bias),
            occlusion_embedding=data.get("no_obj_embed_spatial", False),
            pointer_time_projection=data.get("proj_tpos_enc_in_obj_ptrs", False),
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is neither YAML nor JSON ({str(error).splitlines()[0]})") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a SAM 2 configuration: {error} is missing; wanted the structure of sam2_hiera_l.yaml"
        ) from error


# ---- a published checkpoint as a whole ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Published:
    """A published checkpoint opened: configuration, vocabulary and where each tensor comes from."""

    folder: Path
    config: GlusConfig
    tokenizer: Tokenizer
    weights: WeightFolder
    vision_folder: Path
    vision: TensorDict | WeightFolder


def open_published(
    folder: Path, vision_tower: str | os.PathLike[str] | None, sam2_config: str | os.PathLike[str] | None
) -> Published:
    """Read everything but the values of a published-layout folder."""
    data = read_json(folder / "config.json")
    tokenizer = Tokenizer.from_folder(folder)
    vision_folder = _find_vision(folder, data, vision_tower)
    segmenter = SegmenterConfig()
    if sam2_config is not None:
        segmenter = read_sam2_config(sam2_config)
    elif (folder / "sam2.json").is_file():
        segmenter = read_sam2_config(folder / "sam2.json")
    if isinstance(data.get(OURS), dict):  # converted from our layout: nothing has to be guessed
        config = GlusConfig.from_json(data[OURS])
        return Published(folder, config, tokenizer, WeightFolder(folder), vision_folder, WeightFolder(vision_folder))
    config = GlusConfig(
        vision=vision_config(vision_folder, data.get("mm_vision_select_layer", -2)),
        language=language_config(data, tokenizer, folder / "config.json"),
        segmenter=segmenter,
        memory_fuser_gamma=PUBLISHED_GAMMA,
    )
    return Published(folder, config, tokenizer, WeightFolder(folder), vision_folder, WeightFolder(vision_folder))


def _find_vision(folder: Path, data: Mapping[str, Any], asked: str | os.PathLike[str] | None) -> Path:
    if asked is not None:
        return find(asked, "CLIP vision tower")
    if (folder / "vision_tower" / "config.json").is_file():
        return folder / "vision_tower"
    name = data.get("mm_vision_tower") or data.get("vision_tower")
    if not isinstance(name, str):
        raise CheckpointError(f"{folder / 'config.json'} names no vision tower; pass vision_tower= (CLIP ViT-L/14)")
    for place in (folder / name, folder.parent / name):
        if (place / "config.json").is_file():
            return place
    try:
        return find(name, "CLIP vision tower")
    except CheckpointError as error:
        raise CheckpointError(f"{error} (named in {folder / 'config.json'}; vision_tower= overrides it)") from error


def vision_key(name: str, source: Source) -> str:
    """Name of a vision tower tensor in a CLIP folder, which has `vision_model.` in front in all but recent files."""
    bare = name.removeprefix(VISION_PREFIX)
    return bare if bare in source else f"vision_model.{bare}"


@dataclasses.dataclass(frozen=True)
class Accounting:
    """What became of every key: `where` maps our file names to (source, key); `ignored` maps keys to reasons."""

    where: dict[str, tuple[Source, str]]
    ignored: dict[str, str]


def account(model: nn.Module, published: Published) -> Accounting:
    """Find every tensor of the network in a published checkpoint.

    Raises:
        CheckpointError: tensors missing or of another shape, all of them named.
    """
    wanted = wanted_names(model)
    where: dict[str, tuple[Source, str]] = {}
    for name in wanted:
        source: Source = published.vision if name.startswith(VISION_PREFIX) else published.weights
        where[name] = (source, vision_key(name, source) if name.startswith(VISION_PREFIX) else name)
    check_present(wanted, where)
    ignored = {
        **_ignored(published.weights, {key for s, key in where.values() if s is published.weights}, IGNORED),
        **{
            f"{published.vision_folder.name}: {key}": reason
            for key, reason in _ignored(
                published.vision, {key for s, key in where.values() if s is published.vision}, IGNORED_CLIP
            ).items()
        },
    }
    return Accounting(where, ignored)


UNKNOWN = "not a tensor of GLUS"


def _ignored(source: Source, used: set[str], rules: tuple[tuple[Callable[[str], bool], str], ...]) -> dict[str, str]:
    return {
        key: next((reason for matches, reason in rules if matches(key)), UNKNOWN)
        for key in source.keys()  # noqa: SIM118 - not a dict
        if key not in used
    }


def wanted_names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Our file names of all tensors of the network, with the shapes they must have."""
    wanted: dict[str, tuple[int, ...]] = {}
    for module_name, tensor in model.state_dict().items():
        names = file_names(module_name)
        for name in names:
            wanted[name] = (tensor.shape[0] // len(names), *tensor.shape[1:]) if tensor.ndim else ()
    return wanted


_SAM2_HINT = (
    " The SAM 2 sizes are not stored in a published checkpoint: pass its configuration (sam2_config=, --sam2-config)."
)


def check_present(wanted: Mapping[str, tuple[int, ...]], where: Mapping[str, tuple[Source, str]]) -> None:
    """Raise CheckpointError unless every wanted tensor is there in its shape."""
    missing = [f"{key} (in {source.folder})" for source, key in where.values() if key not in source]
    if missing:
        hint = _SAM2_HINT if any("visual_model" in line for line in missing) else ""
        raise CheckpointError(
            f"{len(missing)} tensors are missing: {_some(missing)}. Is the checkpoint complete?{hint}"
        )
    wrong = [
        f"{key} in {source.file(key)} is {source.shape(key)}, the configuration says {wanted[name]}"
        for name, (source, key) in where.items()
        if source.shape(key) != wanted[name]
    ]
    if wrong:
        hint = _SAM2_HINT if any("visual_model" in line for line in wrong) else ""
        raise CheckpointError(f"{len(wrong)} tensors do not fit: {_some(wrong)}.{hint}")


def _some(lines: list[str], most: int = 5) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


# ---- load and save --------------------------------------------------------------------------------------------------


def load(
    checkpoint: str | os.PathLike[str],
    *,
    vision_tower: str | os.PathLike[str] | None = None,
    sam2_config: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory_fuser_gamma: MemoryFuserGamma | None = None,
) -> Glus:
    """Load a model for inference.

    Args:
        checkpoint: "glus-tiny" (built in, for demonstrations), or a folder or hub id in the published layout or in ours.
        vision_tower: folder or hub id of CLIP; by default what the checkpoint names. Ours has it inside.
        sam2_config: SAM 2 configuration file (YAML or JSON); by default `sam2.json` in the folder, else hiera-large.
        device: "auto" takes CUDA if there is one.
        dtype: "auto" is bfloat16 on CUDA and float32 on a CPU; else "float32", "bfloat16", "float16" or a torch dtype.
        memory_fuser_gamma: "checkpoint" uses the trained scales of the memory fuser; "reset" sets them to 1e-6, which is
            what the published evaluation script ran with, because its library renamed those keys while loading and lost
            them. Masks differ. Default: "reset" for the published layout, what config.json says for ours.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: not found, incomplete, damaged or not fitting; the message names the file or tensor.
        SettingError: an unknown device, dtype or memory_fuser_gamma.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    if memory_fuser_gamma not in {None, *get_args(MemoryFuserGamma)}:
        raise SettingError(f"unknown memory_fuser_gamma {memory_fuser_gamma!r}; wanted 'checkpoint' or 'reset'")
    folder = find(checkpoint)
    if is_own_layout(folder):
        if vision_tower is not None or sam2_config is not None:
            note = f"{folder} has its own vision tower and SAM 2 sizes; vision_tower and sam2_config are not used"
            warnings.warn(note, CheckpointWarning, 2)
        config = GlusConfig.from_json(read_json(folder / "config.json"))
        tokenizer = Tokenizer.from_folder(folder)
        weights = WeightFolder(folder)
        model = empty_model(config, tokenizer, os.fspath(checkpoint))
        wanted = wanted_names(model)
        where: dict[str, tuple[Source, str]] = {name: (weights, name) for name in wanted}
        check_present(wanted, where)
        accounting = Accounting(where, _ignored(weights, set(wanted), IGNORED))
    else:
        published = open_published(folder, vision_tower, sam2_config)
        config = published.config
        model = empty_model(config, published.tokenizer, os.fspath(checkpoint))
        accounting = account(model, published)
    highest = max((*model.tokenizer.added.values(), *model.tokenizer.control.values()))
    if highest >= config.language.vocab_size:
        raise CheckpointError(
            f"{folder}: the vocabulary goes up to id {highest}, the language model has {config.language.vocab_size} ids; "
            "added_tokens.json is of another checkpoint"
        )
    fill(model, accounting, place, kind)
    unknown = [key for key, reason in accounting.ignored.items() if reason == UNKNOWN]
    if unknown:
        warnings.warn(f"{folder}: left out {len(unknown)} unknown tensors: {_some(unknown)}", CheckpointWarning, 2)
    logger.info("%s: %d tensors loaded, %d ignored", folder, len(accounting.where), len(accounting.ignored))
    gamma = memory_fuser_gamma or config.memory_fuser_gamma
    model.config = dataclasses.replace(model.config, memory_fuser_gamma=gamma)
    model.segmenter.set_memory_fuser_gamma(gamma)
    return model.eval()


def fill(model: Glus, accounting: Accounting, device: torch.device, dtype: torch.dtype) -> None:
    """Give the network its weights, one tensor at a time, so that no second copy of the model is ever in memory."""
    parameters = {name for name, _ in model.named_parameters()}
    state: dict[str, Tensor] = {}
    for module_name in model.state_dict():
        rows = [source.tensor(key) for source, key in (accounting.where[name] for name in file_names(module_name))]
        value = rows[0] if len(rows) == 1 else torch.cat(rows)
        # buffers (Fourier matrices) stay in float32: position codes are computed in it
        kind = dtype if module_name in parameters else torch.float32
        value = value.to(device=device, dtype=kind)
        state[module_name] = value.clone() if value.data_ptr() == rows[0].data_ptr() else value
    model.load_state_dict(state, assign=True)
    model.to(device)


def is_own_layout(folder: Path) -> bool:
    """Whether the folder is ours (True) or published (False).

    Raises:
        CheckpointError: config.json is missing or of another model.
    """
    data = read_json(folder / "config.json")
    kind = data.get("model_type")
    if kind == MODEL_TYPE:
        return True
    if kind == "llava" or "mm_hidden_size" in data:
        return False
    raise CheckpointError(
        f"{folder / 'config.json'} is of type {kind!r}; wanted a GLUS checkpoint: 'llava' (published) or 'glus' (ours)"
    )


def choose_device(device: str | torch.device) -> torch.device:
    """A torch device from "auto", "cpu", "cuda", "cuda:1" or a device.

    Raises:
        SettingError: unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingError(f"unknown device {device!r}; wanted auto, cpu, cuda or cuda:N") from error
    if place.type not in {"cpu", "cuda"}:
        raise SettingError(f"device {device!r} is not supported; wanted auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device {device!r} was asked for, but torch sees no CUDA device; `glus doctor` says more")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device {device!r} was asked for, but there are only {torch.cuda.device_count()} devices")
    return place


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A floating torch dtype from "auto", its name or itself.

    Raises:
        SettingError: unknown.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise SettingError(f"unknown dtype {dtype!r}; wanted auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def model_tensors(model: Glus) -> Iterator[tuple[str, Tensor]]:
    """All tensors under our file names, the memory fuser's trained scales among them even while they are reset."""
    trained = {f"segmenter.sam2.{name}": value for name, value in model.segmenter.trained_gamma().items()}
    seen: set[str] = set()
    for module_name, tensor in model.state_dict().items():
        names = file_names(module_name)
        value = trained.get(module_name, tensor)
        for name, part in zip(names, value.chunk(len(names)) if len(names) > 1 else [value], strict=True):
            if name not in seen:  # the Fourier matrix stands twice in the modules
                seen.add(name)
                yield name, part


def save(model: Glus, folder: str | os.PathLike[str]) -> Path:
    """Save in our layout; the folder appears whole or not at all.

    Args:
        model: what to save.
        folder: must not exist yet, or be empty.

    Returns:
        The folder.
    """
    with new_folder(folder) as work:
        model.config.save(work / "config.json")
        for name, content in model.tokenizer.files.items():
            (work / name).write_bytes(content)
        write_shards(work, model_tensors(model))
    return Path(folder)


class new_folder:  # noqa: N801 - used like a function
    """`with new_folder(path) as work:` fill `work`; it becomes `path` at the end, or is removed after an error."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._work = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex[:8]}.part")

    def __enter__(self) -> Path:
        if self.folder.is_file() or (self.folder.is_dir() and any(self.folder.iterdir())):
            raise SettingError(f"{self.folder} exists already; give a new folder, or remove it first")
        self._work.mkdir(parents=True)
        return self._work

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._work, ignore_errors=True)
            return
        if self.folder.is_dir():
            self.folder.rmdir()
        self._work.rename(self.folder)
