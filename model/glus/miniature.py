"""Untrained checkpoints in the published layout, of any size: for tests, benchmarks and trying the machinery.

The weights are random, but [SEG] is always answered, so every part runs as it does in a trained model. What is
segmented means nothing.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from glus.checkpoints import model_tensors, new_folder
from glus.config import IMAGE_END_TOKEN, IMAGE_START_TOKEN, SEG_TOKEN, GlusConfig, PromptConfig
from glus.conversion import published_config, write_published
from glus.modeling.glus import Glus
from glus.tokenizer import Tokenizer
from glus.weights import SHARD_BYTES

_THINGS = ("chair", "cup", "dog", "cat", "car", "person", "bird", "kettle", "ball", "reflection")
_DOINGS = ("on the left", "that turns right", "moving up", "behind the window", "in the glass", "that stops")


def random_model(
    config: GlusConfig, tokenizer: Tokenizer, *, seed: int = 0, device: str | torch.device = "cpu"
) -> Glus:
    """A float32 network with random weights.

    Args:
        config: its sizes.
        tokenizer: its vocabulary.
        seed: same seed and device, same weights.
        device: where the weights are made.
    """
    with torch.device(device):
        model = Glus(config, tokenizer, "untrained")
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_values(name, tensor, generator))
        _answer_seg(model)
    return model.eval()


def _values(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    noise: Tensor = torch.randn(like.shape, generator=generator, device=like.device)
    if like.ndim < 2:
        return 0.02 * noise + (1.0 if name.endswith(("weight", "scale")) else 0.0)
    if "embed" in name or "token" in name or "encoding" in name:
        return noise  # embeddings, learnt tokens, position codes: no fan-in
    return noise / math.sqrt(like[0].numel())


def _answer_seg(model: Glus) -> None:
    """Give every state a constant component that no layer changes, and let [SEG] alone read it."""
    llama = model.language.llama
    llama.model.embed_tokens.weight[:, 0] = 4.0
    model.projector.weight[0] = 0.0
    model.projector.bias[0] = 4.0
    for layer in llama.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    llama.lm_head.weight[:, 0] = 0.0
    llama.lm_head.weight[model.config.language.seg_token_id] = 0.0
    llama.lm_head.weight[model.config.language.seg_token_id, 0] = 100.0


def write_vocabulary(folder: Path, size: int = 256) -> Tokenizer:
    """Write a small sentencepiece vocabulary of our own making and read it back.

    Args:
        folder: where tokenizer.model and added_tokens.json go.
        size: ids before the added tokens, which get `size`, `size` + 1 and `size` + 2.
    """
    import sentencepiece

    words = PromptConfig()
    sentences = [words.system, words.context_task, f"USER: ASSISTANT: {words.answer_opening}."]
    sentences += [words.questions[0].format(expression=f"the {t} {d}") for t in _THINGS for d in _DOINGS]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=trained,
        vocab_size=min(size, 256),
        model_type="bpe",
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    added = {token: size + number for number, token in enumerate((SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN))}
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.from_folder(folder)


def write_miniature(
    folder: Path,
    config: GlusConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    shard_bytes: int = SHARD_BYTES,
    kind: Literal["safetensors", "bin"] = "bin",
) -> Path:
    """Write an untrained checkpoint as the authors' export script does, CLIP and SAM 2 sizes beside it.

    Language model and projector are bfloat16, SAM 2 and the text head float32, as in the published files.

    Args:
        folder: new folder.
        config: sizes; by default `GlusConfig.tiny()`. Its last three ids become the added tokens.
        seed: of the weights.
        device: where they are made.
        shard_bytes: largest file.
        kind: of file.
    """
    config = config or GlusConfig.tiny()
    with new_folder(folder) as work:
        tokenizer = write_vocabulary(work, config.language.vocab_size - 3)
        added = {
            "seg_token_id": tokenizer.added[SEG_TOKEN],
            "image_start_id": tokenizer.added[IMAGE_START_TOKEN],
            "image_end_id": tokenizer.added[IMAGE_END_TOKEN],
        }
        language = dataclasses.replace(config.language, **added)  # type: ignore[arg-type] # three integer fields
        config = dataclasses.replace(config, language=language)
        model = random_model(config, tokenizer, seed=seed, device=device)
        kept = ("model.visual_model.", "model.text_hidden_fcs.", "vision_tower.")
        tensors = (
            (name, tensor if name.startswith(kept) else tensor.to(torch.bfloat16))
            for name, tensor in model_tensors(model)
        )
        record = {"config": published_config(config, ours=False)}  # as the authors' script leaves it
        write_published(work, config, tokenizer, tensors, record=record, shard_bytes=shard_bytes, kind=kind)
    return folder
