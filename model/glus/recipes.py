"""Training recipes as data: what is mixed, how fast it is learnt, which weights learn. No torch.

`glus-s` and `glus-a` are the published ones; `tiny` makes the built-in model from clips drawn on the fly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glus.config import (
    GlusConfig,
    LanguageConfig,
    MemoryConfig,
    PromptConfig,
    SegmenterConfig,
    VisionConfig,
)
from glus.errors import SettingError


@dataclass(frozen=True)
class Part:
    """One data set of a mix."""

    dataset: str
    weight: float
    split: str = "train"


@dataclass(frozen=True)
class Recipe:
    """How the released models were trained; every field can be overridden (`--set batch_clips=4`)."""

    name: str
    parts: tuple[Part, ...]
    steps: int
    batch_clips: int = 2  # per process
    accumulate: int = 10
    expressions: int = 3  # per clip, at most
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warm_up: int = 100
    clip_norm: float = 1.0
    lora_rank: int = 8  # 0: no LoRA
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    train_everything: bool = False
    seg_weight: float = 1.0
    bce_weight: float = 2.0
    dice_weight: float = 0.5
    contrast_weight: float = 0.1
    contrast_datasets: tuple[str, ...] = ("mevis",)
    memory_stride: int = 1
    memory_gradients: bool = False
    no_target: float = 0.0  # share of expressions asked of a clip that does not show them
    gradient_checkpointing: bool = True
    compile: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    save_every: int = 500
    validate_every: int = 0
    seed: int = 0


GLUS_S = Recipe(
    name="glus-s",
    parts=(Part("mevis", 1), Part("ref-youtube-vos", 1)),
    steps=30 * 100,
)
GLUS_A = Recipe(
    name="glus-a",
    parts=(
        Part("mevis", 40),
        Part("ref-youtube-vos", 150),
        Part("ref-davis17", 4),
        Part("revos", 30),
        Part("lvvis", 30),
    ),
    steps=50 * 100,
    contrast_weight=0.0,
)


@dataclass(frozen=True)
class Stage:
    """A stretch of the tiny curriculum.

    Attributes:
        name: for the log.
        share: of all seconds (or steps).
        masks: whether SAM 2's side learns too.
        decode: query frames that get a mask; 0 with `masks` off.
        memory: whether they see each other through the memory.
        classes: object names in play, (at the start, at the end).
        easy: share of category-only clips, (at the start, at the end).
        points: share of prompts replaced by points on the object, (at the start, at the end).
    """

    name: str
    share: float
    masks: bool
    decode: int = 0
    memory: bool = False
    classes: tuple[int, int] = (64, 64)
    easy: tuple[float, float] = (0.0, 0.0)
    points: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class TinyRecipe:
    """How `glus-tiny` is made: language side first, then masks, then memory. Measured choices: see its model card."""

    name: str = "tiny"
    stages: tuple[Stage, ...] = (
        Stage("read", 0.35, masks=False, classes=(8, 96), easy=(0.5, 0.1)),
        Stage("segment", 0.45, masks=True, decode=2, classes=(96, 96), points=(0.4, 0.06)),
        Stage("remember", 0.20, masks=True, decode=4, memory=True, classes=(96, 96), points=(0.06, 0.0)),
    )
    seconds: float = 900.0  # of training on four GPUs, evaluation not counted
    batch_clips: int = 32  # per process
    phrases: int = 4  # per clip, in two pairs
    learning_rate: float = 8e-4
    final_rate: float = 0.02  # of it, at the end (cosine over the last two thirds)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warm_up: int = 150
    clip_norm: float = 1.0
    seg_weight: float = 0.1
    bce_weight: float = 2.0
    dice_weight: float = 1.0
    map_weight: float = 4.0
    point_weight: float = 2.0
    presence_weight: float = 0.2
    patch_weight: float = 0.5
    iou_weight: float = 0.2
    seed: int = 0


def tiny_config(vocab_size: int) -> GlusConfig:
    """Sizes of `glus-tiny`: 14 million weights, 256-pixel masks input."""
    return GlusConfig(
        vision=VisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            layers=6,
            heads=4,
            image_size=128,
            patch_size=16,
            projection_dim=64,
            feature_layer=-1,
            pool=1,
        ),
        language=LanguageConfig(
            hidden_size=256,
            intermediate_size=768,
            layers=6,
            heads=4,
            key_value_heads=4,
            vocab_size=vocab_size,
            max_positions=1024,
            seg_token_id=vocab_size - 3,
            image_start_id=vocab_size - 2,
            image_end_id=vocab_size - 1,
        ),
        segmenter=SegmenterConfig(
            image_size=256,
            embed_dim=32,
            heads=1,
            stages=(1, 2, 3, 1),
            global_attention_blocks=(5,),
            windows=(8, 4, 8, 8),
            hidden_size=128,
            memory_size=64,
            memory_attention_layers=2,
            memory_attention_mlp=256,
            memory_attention_dropout=0.0,
            mask_downsampler_size=128,
            decoder_mlp=256,
            iou_head_size=128,
            stability_threshold=0.0,  # always the single-mask token: the others are not trained
        ),
        memory=MemoryConfig(slots=7, stride=1),
        prompt=PromptConfig(
            system="", context_task="", questions=("{expression}",), answers=("[SEG].",), answer_opening=""
        ),
        memory_fuser_gamma="checkpoint",
    )


RECIPES: Mapping[str, Recipe | TinyRecipe] = {"glus-s": GLUS_S, "glus-a": GLUS_A, "tiny": TinyRecipe()}


def recipe(name: str, changes: Mapping[str, Any] | None = None, file: Path | None = None) -> Recipe | TinyRecipe:
    """A recipe by name, with fields replaced by those of a JSON file and then by `changes`.

    Raises:
        SettingError: an unknown recipe or field, or a value of another type.
    """
    if name not in RECIPES:
        raise SettingError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    chosen = RECIPES[name]
    given: dict[str, Any] = {}
    if file is not None:
        try:
            given.update(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SettingError(f"{file} is not a JSON file of recipe fields ({error})") from error
    given.update(changes or {})
    known = {f.name: f for f in dataclasses.fields(chosen)}
    for field_name, value in given.items():
        if field_name not in known:
            raise SettingError(f"recipe {name} has no field {field_name!r}; it has {', '.join(known)}")
        now = getattr(chosen, field_name)
        if isinstance(now, tuple) and field_name == "parts":
            given[field_name] = tuple(Part(**part) for part in value)
        elif isinstance(now, tuple):
            given[field_name] = tuple(value)
        elif isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
            given[field_name] = float(value)
        elif type(value) is not type(now):
            raise SettingError(f"recipe field {field_name} is {value!r}; wanted something like {now!r}")
    return dataclasses.replace(chosen, **given)
