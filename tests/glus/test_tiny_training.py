"""How glus-tiny is made: batches of a fixed shape, every stage's losses, saved and resumed; words as at inference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from glus.checkpoints import find, load
from glus.datasets.synthetic_batches import Batches, Planner, _tensors
from glus.processing import expand_images, prompt_ids, prompt_text
from glus.recipes import TinyRecipe, tiny_config
from glus.tiny_training import TinyTrainer, save_bfloat16, untrained
from glus.tokenizer import Tokenizer

RECIPE = dataclasses.replace(TinyRecipe(), batch_clips=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(find("glus-tiny"))


@pytest.fixture(scope="module")
def trainer(tokenizer, tmp_path_factory):
    model = untrained(tokenizer, seed=0)
    batches = Batches(tokenizer, model.config, RECIPE, CPU)
    return TinyTrainer(model, RECIPE, tmp_path_factory.mktemp("tiny"), batches, CPU)


def test_training_reads_the_words_that_inference_asks(tokenizer):
    config = tiny_config(max(tokenizer.added.values()) + 1)
    planner = Planner(tokenizer, config, RECIPE, 640)
    phrase = "the clock that goes down"
    ids, places, images = planner.conversation(phrase)
    for earlier in range(4):
        text = prompt_text(phrase, [True] * earlier, 4, config.prompt)
        asked = expand_images(prompt_ids(tokenizer, text), config.vision.tokens)
        assert ids[: len(asked)].tolist() == asked
        assert places[earlier] == len(asked) - 1
    assert images.shape == (4, 64)


@pytest.mark.parametrize("stage", RECIPE.stages, ids=lambda stage: stage.name)
def test_every_stage_learns_from_batches_of_one_shape(stage, trainer):
    first, second = trainer.batches.next(stage, 0.3), trainer.batches.next(stage, 0.6)
    assert [t.shape for t in _tensors(first)] == [t.shape for t in _tensors(second)]
    found = trainer._forward_backward(stage, first)
    assert all(torch.isfinite(value) for value in found.values())
    assert ("dice" in found) == stage.masks
    by_name = dict(zip(trainer.names, trainer.parameters, strict=True))
    assert by_name["language.llama.model.layers.0.self_attn.q_proj.weight"].grad.any()
    decoder = by_name["segmenter.sam2.mask_decoder.mask_tokens.weight"].grad
    assert bool(decoder.any()) == stage.masks
    memory = by_name["segmenter.sam2.memory_encoder.projection.weight"].grad
    assert bool(memory.any()) == stage.memory
    before = trainer.flat.clone()
    trainer._update(stage, 0.1)
    assert before.any()


def test_truth_is_where_the_objects_are(trainer):
    stage = RECIPE.stages[1]
    batch = trainer.batches.validation(stage, 0)
    again = trainer.batches.validation(stage, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(_tensors(batch), _tensors(again), strict=True) if a.dtype != torch.float32
    )
    truth = batch.targets
    shown = truth.masks.flatten(2).sum(-1) > 0
    assert (truth.present[:, batch.training.decode] <= shown).all()
    pooled = torch.nn.functional.avg_pool2d(truth.masks, 8).flatten(2)
    assert torch.allclose(pooled, truth.map[:, batch.training.decode], atol=1e-5)


def test_saved_state_goes_on(trainer, tokenizer, tmp_path):
    trainer.progress.step, trainer.progress.seconds = 30, 12.5
    trainer.save_state()
    other = TinyTrainer(untrained(tokenizer, seed=1), RECIPE, trainer.out, trainer.batches, CPU)
    assert other.load_state()
    assert (other.progress.step, other.progress.seconds) == (30, 12.5)
    for mine, theirs in zip(trainer.parameters, other.parameters, strict=True):
        assert torch.equal(mine, theirs)
    save_bfloat16(other.model, tmp_path / "model")
    assert load(tmp_path / "model", device="cpu").config.segmenter.stability_threshold == 0.0
