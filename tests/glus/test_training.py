"""The training loop: resumes to the same next step, learns, stops on Ctrl-C and on a loss that is not finite."""

from __future__ import annotations

import json
import os
import signal
import threading

import cv2
import numpy as np
import pytest
import torch

import glus
from glus.masks import encode_rle
from glus.recipes import GLUS_S, Part, recipe
from glus.sampling import Mix, step_rng
from glus.training import Trainer, schedule

SIZE, FRAMES = 64, 10


@pytest.fixture(scope="module")
def mevis(tmp_path_factory):
    """Three clips of a bright and a dark disc on grey, in MeViS layout."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "mevis" / "train"
    masks, videos = {}, {}
    y, x = np.mgrid[:SIZE, :SIZE]
    for number in range(3):
        name = f"clip{number}"
        (folder / "JPEGImages" / name).mkdir(parents=True)
        discs = {"0": [], "1": []}
        for t in range(FRAMES):
            picture = np.full((SIZE, SIZE, 3), 120, np.uint8)
            for which, (cx, cy, value) in enumerate([(10 + 4 * t, 16 + number, 250), (52 - 4 * t, 46, 10)]):
                disc = (x - cx) ** 2 + (y - cy) ** 2 < 81
                picture[disc] = value
                discs[str(which)].append(encode_rle(disc))
            cv2.imwrite(str(folder / "JPEGImages" / name / f"{t:05d}.jpg"), picture)
        for which, frames in discs.items():
            masks[str(2 * number + int(which))] = frames
        videos[name] = {
            "frames": [f"{t:05d}" for t in range(FRAMES)],
            "expressions": {
                str(i): {"exp": text, "obj_id": [which], "anno_id": [2 * number + which]}
                for i, (text, which) in enumerate(
                    [("the bright disc", 0), ("the dark disc", 1), ("the disc on top", 0), ("the lower disc", 1)]
                )
            },
        }
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (folder / "mask_dict.json").write_text(json.dumps(masks))
    return root


RECIPE = recipe(
    "glus-s",
    {
        "parts": [{"dataset": "mevis", "weight": 1}],
        "steps": 6,
        "batch_clips": 1,
        "accumulate": 2,
        "expressions": 2,
        "warm_up": 2,
        "learning_rate": 1e-3,
        "save_every": 100,
        "dtype": "float32",
        "gradient_checkpointing": False,
    },
)


@pytest.fixture
def trainer(mevis, tiny_checkpoint, tmp_path):
    def make(out="run", recipe=RECIPE, **options):
        model = glus.load(tiny_checkpoint, device="cpu", memory_fuser_gamma="checkpoint")
        mix = Mix.open(mevis, recipe, model.config)
        return Trainer(model, recipe, mix, tmp_path / out, torch.device("cpu"), **options)

    return make


def weights(one):
    return {name: parameter.detach().clone() for name, parameter in one.trained.items()}


def test_resuming_reaches_the_same_weights_as_one_run(trainer):
    whole = trainer("whole")
    assert whole.run()
    first = trainer("parts")
    assert not first.run(until=3)
    second = trainer("parts")
    assert second.resume()
    assert second.step == 3
    assert second.run()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
    lines = [json.loads(line) for line in (whole.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"seg", "bce", "dice", "contrast", "norm"} <= lines[0].keys()


def test_it_learns_and_the_result_loads(trainer, tmp_path):
    longer = recipe("glus-s", {**changed(RECIPE), "steps": 24, "accumulate": 1, "warm_up": 1, "lora_dropout": 0.0})
    one = trainer("learn", longer)
    before = weights(one)
    assert one.run()
    lines = [json.loads(line) for line in (one.out / "log.jsonl").read_text().splitlines()]
    masks = [line["bce"] + line["dice"] for line in lines]
    assert np.mean(masks[-6:]) < 0.8 * np.mean(masks[:6])
    moved = [name for name, value in weights(one).items() if not torch.equal(value, before[name])]
    assert any("lora_B" in name for name in moved)
    assert any("mask_decoder" in name for name in moved)
    folder = one.finish(tmp_path / "model")
    loaded = glus.load(folder, device="cpu")
    assert loaded.config.memory_fuser_gamma == "checkpoint"
    assert not any("lora" in name for name in loaded.state_dict())


def changed(base):
    """The fields in which a recipe differs from the published one."""
    return {
        "parts": [{"dataset": "mevis", "weight": 1}],
        **{name: getattr(base, name) for name in ("batch_clips", "expressions", "learning_rate", "dtype")},
        "gradient_checkpointing": False,
    }


def test_ctrl_c_saves(trainer):
    one = trainer("stopped")
    threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    slow = one._update
    one._update = lambda: (threading.Event().wait(1.0), slow())[1]
    assert not one.run()
    assert 0 < one.step < 6
    again = trainer("stopped")
    assert again.resume()
    assert again.step == one.step


def test_a_loss_that_is_not_finite_names_its_term(trainer):
    one = trainer("broken")
    with torch.no_grad():
        one.model.segmenter.sam2.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"bce.*clip"):
        one.run()


def test_no_target_phrases_have_empty_truth(trainer, mevis, tiny_model):
    mix = Mix.open(mevis, recipe("glus-s", {**changed(RECIPE), "no_target": 1.0}), tiny_model.config)
    sample = mix.sample(step_rng(0, 0, 0, 0))
    assert not sample.masks.any()
    assert all(key.dataset == "" for key in sample.keys)


def test_samples_follow_the_released_rule(mevis, tiny_model):
    mix = Mix.open(mevis, RECIPE, tiny_model.config)
    for place in range(20):
        sample = mix.sample(step_rng(1, 2, 3, place))
        again = mix.sample(step_rng(1, 2, 3, place))
        assert sample.texts == again.texts
        assert len(sample.context) == len(sample.query) == 4
        frames = [int(key.frame) for key in sample.keys[:4]]
        assert frames == list(range(frames[0], frames[0] + 4))
        assert all(text.count("[SEG]") == 4 for text in sample.texts)
        assert set(np.unique(sample.masks)) <= {False, True}
        assert len({key.expression for key in sample.keys}) == len(sample.texts) <= 3


def test_schedule():
    values = [schedule(step, GLUS_S) for step in (0, 49, 99, 100, 1550, 2999)]
    assert values == pytest.approx([0.01, 0.5, 1.0, 1.0, 0.5, 1 / 2900])


def test_recipes_are_the_published_ones():
    assert [(p.dataset, p.weight) for p in recipe("glus-a").parts] == [
        ("mevis", 40),
        ("ref-youtube-vos", 150),
        ("ref-davis17", 4),
        ("revos", 30),
        ("lvvis", 30),
    ]
    assert GLUS_S.parts == (Part("mevis", 1), Part("ref-youtube-vos", 1))
    with pytest.raises(glus.GlusError, match="no field 'lr'"):
        recipe("glus-s", {"lr": 1.0})
    with pytest.raises(glus.GlusError, match="no recipe"):
        recipe("glus-x")
