"""The causal language model: a shared opening is read once, windows behind it in a batch; the state that predicts [SEG]
comes out. Knows ids and embeddings; not images or masks.

Shapes: P positions of the shared opening, N windows, L positions of the longest, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from glus.config import LanguageConfig


@dataclass(frozen=True)
class Prefix:
    """Attention keys and values of the opening that every window shares, one pair a layer: (1, heads, P, head width)."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """Positions."""
        return self.layers[0][0].shape[2]


class Language(nn.Module):
    """LLaMA, read for its hidden states."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.key_value_heads,
                vocab_size=config.vocab_size,
                rms_norm_eps=config.rms_norm_eps,
                max_position_embeddings=config.max_positions,
                hidden_act=config.hidden_act,
                tie_word_embeddings=config.tie_word_embeddings,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                bos_token_id=config.bos_token_id,
                eos_token_id=config.eos_token_id,
                pad_token_id=None,
            )
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of ids; negative ids (image places) give row 0, to be overwritten. (...,) -> (..., D)."""
        return self.llama.model.embed_tokens(ids.clamp(min=0))  # type: ignore[no-any-return]

    def read_prefix(self, embeddings: Tensor) -> Prefix:
        """Read the shared opening once: (P, D) -> its keys and values."""
        cache = DynamicCache(config=self.llama.config)
        self.llama.model(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True)
        return Prefix(tuple((layer.keys, layer.values) for layer in cache.layers))

    def read_windows(self, prefix: Prefix, embeddings: Tensor, last: Tensor) -> Tensor:
        """Final hidden state (after the last norm) at the last position of each window.

        Windows may have different lengths: they are padded on the right, where causal attention never looks.

        Args:
            prefix: of `read_prefix`; not changed.
            embeddings: (N, L, D).
            last: (N,) index of each window's last position.

        Returns:
            (N, D).
        """
        count = embeddings.shape[0]
        cache = DynamicCache(config=self.llama.config)
        for layer, (keys, values) in zip(cache.layers, prefix.layers, strict=True):
            layer.lazy_initialization(keys, values)
            # expanded, not copied: the first append makes the copy
            layer.keys, layer.values = (x.expand(count, -1, -1, -1) for x in (keys, values))
        states = self.llama.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).last_hidden_state
        return states[torch.arange(count, device=states.device), last]  # type: ignore[no-any-return]

    def seg_answer(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Is [SEG] the next token after each state? (N, D) -> (N,) bool greedy answer, (N,) probability of [SEG]."""
        logits = self.llama.lm_head(states).float()
        seg = self.config.seg_token_id
        return logits.argmax(dim=-1) == seg, logits.softmax(dim=-1)[:, seg]


def pad_windows(windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack (L_i, D) embeddings, padded on the right with zeros: (N, L, D) and the (N,) index of each last position."""
    last = torch.tensor([len(window) - 1 for window in windows], device=windows[0].device)
    return nn.utils.rnn.pad_sequence(list(windows), batch_first=True), last
