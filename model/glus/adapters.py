"""Which weights are trained: LoRA on the language model's q and v projections, some parts whole, the rest frozen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from glus.modeling.glus import Glus

# only the language model's layers: CLIP and SAM 2 have projections of the same names
LORA_TARGETS = r"language\.llama\.model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
TRAINED_WHOLE = (
    r"language\.llama\.model\.embed_tokens\.",
    r"language\.llama\.lm_head\.",
    r"projector\.",
    r"text_head\.",
    r"segmenter\.sam2\.mask_decoder\.",
)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters; the defaults are the released ones."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


def add_lora(model: Glus, settings: LoraSettings) -> None:
    """Put LoRA layers into the language model, in place; `merge_lora` takes them out again."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=LORA_TARGETS,
            bias="none",
        ),
        model,
    )


def merge_lora(model: nn.Module) -> None:
    """Fold every LoRA layer into the weight beside it and put the plain layer back, in place."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def choose_trained(model: nn.Module, whole: tuple[str, ...] | None = None) -> list[str]:
    """Let LoRA weights and the parts named by `whole` (regular expressions; default: the released choice) learn.

    Returns:
        Names of the parameters that learn.
    """
    patterns = TRAINED_WHOLE if whole is None else whole
    trained = []
    for name, parameter in model.named_parameters():
        learns = ".lora_" in name or any(re.match(pattern, name) for pattern in patterns)
        parameter.requires_grad_(learns)
        if learns:
            trained.append(name)
    return trained
