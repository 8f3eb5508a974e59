"""One training step equals the released code's: losses, gradients, merged weights, contrastive bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glus.adapters import LoraSettings, add_lora, choose_trained, merge_lora
from glus.checkpoints import file_names
from glus.losses import LossWeights, ObjectContrast, TokenKey, mask_losses, seg_loss
from glus.modeling.glus import TrainingBatch
from glus.processing import IMAGE_ID, clip_pixels, expand_images, sam_pixels

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
FACTS = json.loads((ORACLE / "train_step.json").read_text(encoding="utf-8"))


@pytest.fixture
def trained(load_oracle, oracle_frames):
    """The recorded checkpoint with the recorded LoRA, after one forward and backward pass; losses by name."""
    wanted = load_file(ORACLE / "train_step.safetensors")
    model = load_oracle()
    add_lora(model, LoraSettings(rank=8, alpha=16, dropout=0.0))
    state = dict(model.named_parameters())
    for name, value in load_file(ORACLE / "train_lora.safetensors").items():
        state[name.replace("base_model.model.model.", "language.llama.model.", 1)].data.copy_(value)
    names = choose_trained(model)
    model.train()

    samples, seg = FACTS["samples"], model.config.language.seg_token_id
    ids = [expand_images([i for i in row if True], 64) for row in wanted["input_ids"].tolist()]
    places = [[at - 1 for at, token in enumerate(row) if token == seg] for row in ids]
    clip = lambda frames: torch.stack([clip_pixels(oracle_frames[f], model.config.vision) for f in frames])  # noqa: E731
    batch = TrainingBatch(
        context=torch.stack([clip(s["ctx"]) for s in samples]),
        query=torch.stack([clip(s["q"]) for s in samples]),
        images=torch.stack(
            [
                sam_pixels(torch.stack([torch.tensor(oracle_frames[f]) for f in s["q"]]), model.config.segmenter)
                for s in samples
            ]
        ),
        ids=torch.tensor(ids),
        clip_of=torch.tensor([c for c, s in enumerate(samples) for _ in s["exprs"]]),
        seg_places=torch.tensor(places),
    )
    output = model(batch)
    counts = [len(s["exprs"]) for s in samples]
    truth = [wanted["gt_masks_0"], wanted["gt_masks_1"]]
    bce, dice = mask_losses(output.mask_logits.split(counts), truth)
    contrast = contrastive(wanted, output.embeddings)
    weights = LossWeights()
    losses = {
        "ce_loss": weights.seg * seg_loss(output.seg_logits, seg),
        "mask_bce_loss": weights.bce * bce,
        "mask_dice_loss": weights.dice * dice,
        "contrastive_loss": weights.contrast * contrast,
    }
    losses["loss"] = sum(losses.values())
    losses["loss"].backward()
    return model, names, wanted, output, losses


def contrastive(wanted, embeddings):
    calls = FACTS["contrastive"]["calls"]
    sets = FACTS["contrastive"]["object_sets"]
    contrast = ObjectContrast()
    for meta, value in zip(FACTS["contrastive"]["bank_meta"], wanted["bank"], strict=True):
        video, expression = meta["video"], meta["exp_id"]
        objects = frozenset(map(str, sets.get(video, {}).get(expression, [])))
        contrast.bank.append((TokenKey(meta["dataset"], video, expression, objects, meta["frame"]), value))
    keys = []
    for sample in FACTS["samples"]:
        for text_id in sample["ids"]:
            dataset, video, expression = text_id.split("_")
            objects = frozenset(map(str, sets.get(video, {}).get(expression, [])))
            keys += [TokenKey(dataset, video, expression, objects, f"{f:05d}") for f in sample["q"]]
    draws = iter([call["negative_draws"] for call in calls if call["negative_draws"]])
    return contrast(
        embeddings.flatten(0, 1),
        keys,
        draw_negatives=lambda count, pool: torch.tensor(next(draws)),
        draw_positive=lambda count: 0,
    )


def published(name):
    """Name in the released training run of one of our parameters."""
    if ".lora_" in name:
        return "base_model.model." + name.replace("language.llama.", "", 1)
    bare = name.replace(".base_layer.", ".")
    return "base_model.model." + file_names(bare)[0]


def test_losses(trained):
    *_, losses = trained
    for name, value in FACTS["losses"].items():
        if name in losses:
            assert losses[name].item() == pytest.approx(value, rel=1e-4), name


def test_forward_tensors(trained):
    _, _, wanted, output, _ = trained
    for frame in range(4):
        for sample, rows in ((0, slice(0, 2)), (1, slice(2, 3))):
            logits = wanted[f"low_res.frame{frame}.sample{sample}"]
            assert (output.mask_logits[rows, frame] - logits).norm() / logits.norm() < 2e-4
            embedding = wanted[f"pred_embedding.frame{frame}.sample{sample}"]
            assert (output.embeddings[rows, frame] - embedding).abs().max() < 1e-4


def test_the_same_parameters_learn_with_the_same_gradients(trained):
    model, names, wanted, _, _ = trained
    norms = FACTS["grad_norms"]
    assert {published(name) for name in names} == set(FACTS["trainable"])
    total = 0.0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        norm = norms[published(name)]
        if norm is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        got = parameter.grad.norm().item()
        assert got == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        total += got**2
        key = "grad." + published(name)
        if key in wanted:
            assert (parameter.grad - wanted[key]).norm() / wanted[key].norm() < 1e-3, name
    assert total**0.5 == pytest.approx(FACTS["total_grad_norm"], rel=1e-3)


def test_merged_weights(load_oracle):
    model = load_oracle()
    add_lora(model, LoraSettings(rank=8, alpha=16, dropout=0.0))
    state = dict(model.named_parameters())
    for name, value in load_file(ORACLE / "train_lora.safetensors").items():
        state[name.replace("base_model.model.model.", "language.llama.model.", 1)].data.copy_(value)
    merge_lora(model)
    merged = model.state_dict()
    for name, value in load_file(ORACLE / "lora_merged.safetensors").items():
        assert (merged["language.llama." + name] - value).abs().max() < 1e-5
    assert not any("lora" in name for name in merged)


def test_ids_hold_four_answers():
    ids = load_file(ORACLE / "train_step.safetensors")["input_ids"]
    assert ((ids == 32000).sum(1) == 4).all()
    assert ((ids == IMAGE_ID).sum(1) == 8).all()


def test_conversations(recorded_tokenizer):
    from glus.processing import prompt_ids, training_text

    ids = load_file(ORACLE / "train_step.safetensors")["input_ids"].tolist()
    number = 0
    for sample in FACTS["samples"]:
        for expression, templates in zip(sample["exprs"], sample["qa"], strict=True):
            text = training_text(expression, [tuple(pair) for pair in templates])
            assert text == FACTS["conversations"][number]
            got = prompt_ids(recorded_tokenizer, text)
            assert got == ids[number][: len(got)]
            number += 1
