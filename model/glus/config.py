"""GLUS as data: sizes of its parts, window and memory, as frozen dataclasses that go to JSON and back. No torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from glus.errors import CheckpointError

MemoryFuserGamma = Literal["checkpoint", "reset"]

MODEL_TYPE = "glus"
SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN = "[SEG]", "<im_start>", "<im_end>"


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's vision tower and the pooling behind it. Defaults: ViT-L/14 at 224 pixels."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    layers: int = 24
    heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768
    feature_layer: int = -2  # which hidden state is read: -2 is the output of the last layer but one
    pool: int = 4  # so many neighbours of the raster sequence become one token: 256 patches -> 64 tokens
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def tokens(self) -> int:
        """Tokens that one image takes in the language model's sequence."""
        return (self.image_size // self.patch_size) ** 2 // self.pool


@dataclass(frozen=True)
class LanguageConfig:
    """The causal language model. Defaults: LLaMA-7B with GLUS's three added tokens."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    layers: int = 32
    heads: int = 32
    key_value_heads: int = 32
    vocab_size: int = 32003
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_positions: int = 2048
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    seg_token_id: int = 32000
    image_start_id: int = 32001
    image_end_id: int = 32002
    bos_token_id: int = 1
    eos_token_id: int = 2


@dataclass(frozen=True)
class SegmenterConfig:
    """SAM 2. Defaults: hiera-large of July 2024 at 1024 pixels, which GLUS was trained with.

    Grid sizes follow from `image_size`: features of a sixteenth, mask logits of a quarter of it.
    """

    image_size: int = 1024
    embed_dim: int = 144
    heads: int = 2
    stages: tuple[int, ...] = (2, 6, 36, 4)
    global_attention_blocks: tuple[int, ...] = (23, 33, 43)
    window_background: tuple[int, int] = (7, 7)
    windows: tuple[int, ...] = (8, 4, 16, 8)
    hidden_size: int = 256
    memory_size: int = 64  # channels of a stored memory
    memory_slots: int = 7  # rows of SAM 2's temporal position code
    memory_attention_layers: int = 4
    memory_attention_mlp: int = 2048
    memory_attention_dropout: float = 0.1
    memory_fuser_layers: int = 2
    mask_downsampler_size: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    iou_head_size: int = 256
    stability_delta: float = 0.05
    stability_threshold: float = 0.98
    sigmoid_scale: float = 20.0
    sigmoid_bias: float = -10.0
    occlusion_embedding: bool = False  # True in SAM 2.1
    pointer_time_projection: bool = False  # True in SAM 2.1
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def grid(self) -> int:
        """Side of the feature map that carries the memory: 64 at 1024 pixels."""
        return self.image_size // 16

    @property
    def logit_size(self) -> int:
        """Side of the decoder's mask logits: 256 at 1024 pixels."""
        return self.image_size // 4


@dataclass(frozen=True)
class MemoryConfig:
    """Which past frames the mask decoder may look at; see `glus.memory.memory_frames`."""

    slots: int = 7
    stride: int = 3  # 3 at inference, 1 in training


@dataclass(frozen=True)
class WindowConfig:
    """Which frames the language model sees at a step."""

    context_frames: int = 4  # spread over the whole video, seen at every step
    query_frames: int = 4  # sliding; the last one is the frame being segmented


@dataclass(frozen=True)
class PromptConfig:
    """Wording of the conversation; a model answers in the words it was trained with. Defaults: the released ones.

    `{expression}` stands for the phrase, in answers `[SEG]` for the token. Inference asks the first question and opens
    with `answer_opening`; training draws from all.
    """

    system: str = (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    )
    context_task: str = (
        "Please finished the following tasks on the context frames above."  # as trained, grammar included
    )
    questions: tuple[str, ...] = (
        "Can you segment the {expression} in this frame?",
        "Please segment the {expression} in this frame.",
        "What is {expression} in this frame? Please respond with segmentation mask.",
        "What is {expression} in this frame? Please output segmentation mask.",
    )
    answers: tuple[str, ...] = (
        "It is [SEG].",
        "Sure, [SEG].",
        "Sure, it is [SEG].",
        "Sure, the segmentation result is [SEG].",
        "[SEG].",
    )
    answer_opening: str = "Sure, the segmentation result is "


@dataclass(frozen=True)
class GlusConfig:
    """All sizes and rules of one model; saved as `config.json` beside its weights."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    memory_fuser_gamma: MemoryFuserGamma = "checkpoint"

    def __post_init__(self) -> None:
        if self.memory_fuser_gamma not in get_args(MemoryFuserGamma):
            raise CheckpointError(
                f"memory_fuser_gamma is {self.memory_fuser_gamma!r}; it must be 'checkpoint' (the trained values) or "
                "'reset' (1e-6, as the published evaluation ran)"
            )

    @classmethod
    def tiny(cls, *, vocab_size: int = 259, image_size: int = 256) -> GlusConfig:
        """A miniature for tests: same structure, a few hundred thousand weights. Added tokens are the last three."""
        return cls(
            vision=VisionConfig(hidden_size=32, intermediate_size=64, layers=2, heads=2, projection_dim=16),
            language=LanguageConfig(
                hidden_size=48,
                intermediate_size=96,
                layers=2,
                heads=4,
                key_value_heads=4,
                vocab_size=vocab_size,
                seg_token_id=vocab_size - 3,
                image_start_id=vocab_size - 2,
                image_end_id=vocab_size - 1,
            ),
            segmenter=SegmenterConfig(
                image_size=image_size,
                embed_dim=16,
                heads=1,
                stages=(1, 1, 2, 1),
                global_attention_blocks=(3,),
                windows=(8, 4, 16, 8),
                hidden_size=64,
                memory_size=16,
                memory_attention_layers=1,
                memory_attention_mlp=64,
                memory_attention_dropout=0.0,
                mask_downsampler_size=64,
                decoder_mlp=64,
                iou_head_size=32,
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dictionary; `from_json` reads it back to an equal value."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GlusConfig:
        """From `to_json`'s dictionary.

        Raises:
            CheckpointError: a field that this version does not know, or a part that is missing.
        """
        rest = {key: value for key, value in data.items() if key != "model_type"}
        parts = {
            "vision": VisionConfig,
            "language": LanguageConfig,
            "segmenter": SegmenterConfig,
            "memory": MemoryConfig,
            "window": WindowConfig,
            "prompt": PromptConfig,
        }
        built: dict[str, Any] = {name: _build(kind, rest.pop(name, {}), name) for name, kind in parts.items()}
        gamma = rest.pop("memory_fuser_gamma", "checkpoint")
        if rest:
            raise CheckpointError(f"config.json has unknown entries {sorted(rest)}; was it written by a newer version?")
        return cls(**built, memory_fuser_gamma=gamma)

    def save(self, path: Path) -> None:
        """Write as indented JSON."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


_Part = TypeVar("_Part")


def _build(kind: type[_Part], values: Mapping[str, Any], where: str) -> _Part:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"config.json: {where} is {type(values).__name__}; wanted an object of sizes")
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"config.json: {where} has unknown entries {unknown}; known are {sorted(known)}")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**tuples)
