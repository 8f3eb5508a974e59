"""The masks are those of the released GLUS code: recorded tensors of it, at the tolerances of the recording.

Measured margins of the recording: noise of 1e-6 on every weight moves embeddings by 1e-5, features, memories and logits
by 1-4e-5 (relative norms), and no pixel of a final mask.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import glus
from glus.checkpoints import read_sam2_config
from glus.config import MemoryConfig
from glus.modeling.segmenter import Segmenter
from glus.processing import clip_pixels, expand_images, prompt_ids, prompt_text
from glus.streaming import Segmentation, VideoSession

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
FACTS = json.loads((ORACLE / "cases.json").read_text(encoding="utf-8"))
EXPRESSION = "The tabby cat that moves to the left over the coffee cup."
H, W = 120, 214


class Recorder:
    """Listens at the joints of a model while a session runs."""

    def __init__(self, model, monkeypatch):
        self.model = model
        self.hidden, self.embedding, self.conditioned, self.memory, self.decoded = [], [], [], [], []
        self.memory_counts = []

        def head(_, inputs, output):
            self.hidden.append(inputs[0])
            self.embedding.append(output)

        model.text_head.register_forward_hook(head)
        segmenter = model.segmenter
        for name, note in (("condition", self._condition), ("encode_memory", self._memory), ("decode", self._decode)):
            monkeypatch.setattr(segmenter, name, note(getattr(Segmenter, name)))

    def _condition(self, call):
        def condition(coarse, memories):
            self.memory_counts.append(0 if memories is None else memories.shape[1])
            self.conditioned.append(call(self.model.segmenter, coarse, memories))
            return self.conditioned[-1]

        return condition

    def _memory(self, call):
        def encode_memory(*args):
            self.memory.append(call(self.model.segmenter, *args))
            return self.memory[-1]

        return encode_memory

    def _decode(self, call):
        def decode(*args, **options):
            self.decoded.append(call(self.model.segmenter, *args, **options))
            return self.decoded[-1]

        return decode

    def tensors(self):
        return {
            "seg_hidden": torch.cat(self.hidden),
            "pred_embedding": torch.cat(self.embedding),
            "image_embed_with_memory": torch.cat(self.conditioned),
            "memory_features": torch.cat(self.memory) if self.memory else None,
            "low_res_logits": torch.cat([d.logits for d in self.decoded]),
            "all_mask_logits": torch.cat([d.all_logits for d in self.decoded]),
            "all_ious": torch.cat([d.all_iou for d in self.decoded]),
            "object_score_logit": torch.cat([d.object_score for d in self.decoded])[:, None],
        }


def relative(got, wanted):
    return float((got.float() - wanted).norm() / wanted.norm())


def close(name, got, wanted):
    """Tolerances of the recording: 1e-4 absolute on hidden states and embeddings, 2e-4 relative norm on the rest, and
    1e-3 absolute on logits."""
    got = got.float()
    assert got.shape == wanted.shape, name
    if name in {"seg_hidden", "pred_embedding"}:
        assert (got - wanted).abs().max() < 1e-4, name
    else:
        assert relative(got, wanted) < 2e-4, name
    if "logits" in name:
        assert (got - wanted).abs().max() < 1e-3, name


def recorded_masks(case, tensors):
    packed = tensors["masks_packed"].numpy()
    return np.unpackbits(packed, axis=1)[:, : H * W].reshape(-1, H, W).astype(bool)


def check_masks(masks, wanted, logits=None):
    """Equal except where the resized logit is within 1e-3 of zero; seen: equal everywhere."""
    for number, (mask, expected) in enumerate(zip(masks, wanted, strict=True)):
        different = mask.mask != expected
        full = torch.nn.functional.interpolate(torch.from_numpy(mask.logits)[None, None], (H, W), mode="bilinear")
        assert not different[(full[0, 0].abs() >= 1e-3).numpy()].any(), number


def run(case, model, recorder, frames, **options):
    """Segment the recorded clip and compare everything that the case holds."""
    facts, wanted = FACTS[case], load_file(ORACLE / f"{case}.safetensors")
    masks = list(glus.segment(model, frames, EXPRESSION, **options))
    got = recorder.tensors()
    steps = len(facts["frames"])
    ok = facts.get("ok_frames", list(range(steps)))
    for name, value in wanted.items():
        if name not in got or got[name] is None:
            continue
        rows = got[name]
        every = facts.get(f"{name}_frames", ok if len(ok) < steps else list(range(len(rows))))
        rows = rows[every]
        close(name, rows[:: facts["every"][name]], value)
    tokens = [int(token) for decoded in recorder.decoded for token in decoded.token]
    recorded = [frame.get("used_token") for frame in facts["frames"]]
    assert all(w is None or w == got for got, w in zip(tokens, recorded, strict=True))
    return masks, wanted


@pytest.mark.parametrize(
    ("case", "gamma", "options", "rule"),
    [
        ("forward", "checkpoint", {}, None),
        ("forward_gamma_reset", "reset", {}, None),
        ("no_memory_bank", "checkpoint", {"memory": False}, None),
        ("mem_stride1", "checkpoint", {}, MemoryConfig(slots=7, stride=1)),
    ],
)
def test_every_frame_of_the_clip(case, gamma, options, rule, load_oracle, oracle_frames, monkeypatch):
    model = load_oracle(memory_fuser_gamma=gamma)
    if rule:
        model.config = dataclasses.replace(model.config, memory=rule)
    recorder = Recorder(model, monkeypatch)
    masks, wanted = run(case, model, recorder, oracle_frames, **options)
    check_masks(masks, recorded_masks(case, wanted))
    assert [m.frame_index for m in masks] == list(range(22))
    if options.get("memory", True):
        grid = model.config.segmenter.grid**2
        assert [n * grid for n in recorder.memory_counts] == [f["memory_tokens"] for f in FACTS[case]["frames"]]


def test_ids_rows_and_answers(load_oracle, recorded_tokenizer):
    for case in ("forward", "missing_seg"):
        for frame in FACTS[case]["frames"]:
            earlier = frame["question_frame_num"] - 1
            text = prompt_text("the tabby cat that moves to the left over the coffee cup", [True] * earlier)
            ids = prompt_ids(recorded_tokenizer, text)
            assert ids == frame["input_ids"]
            if frame["expanded_len"]:
                assert len(expand_images(ids, 64)) == frame["expanded_len"]
                assert frame["seg_row"] == frame["expanded_len"] - 1  # what the session reads: the last prompt position


def test_image_side(load_oracle, oracle_frames):
    model, facts = load_oracle(), FACTS["forward"]
    wanted = load_file(ORACLE / "forward.safetensors")
    with torch.inference_mode():
        clip = torch.stack([clip_pixels(frame, model.config.vision) for frame in oracle_frames])
        patches = model.vision.patches(clip[[facts["clip_hidden_frames"][i] for i in (0, 4)]])
        close("clip_hidden", patches, wanted["clip_hidden"])
        close("mm_tokens", model.image_tokens(clip[::7]), wanted["mm_tokens"])
        frames = torch.from_numpy(np.stack(oracle_frames))
        from glus.processing import sam_pixels

        features = model.segmenter.image_features(sam_pixels(frames, model.config.segmenter))
    close("fpn2", features.coarse[facts["fpn2_frames"]][::5], wanted["fpn2"])
    close("fpn1", features.middle[facts["fpn01_frames"]][::2], wanted["fpn1"])
    close("fpn0", features.fine[facts["fpn01_frames"]][::2], wanted["fpn0"])
    like = torch.zeros(1)
    for name, code in (("fpn2_pos", "image_code"), ("memory_pos", "memory_code"), ("dense_pe", "dense_code")):
        assert torch.equal(getattr(model.segmenter, code)(like), wanted[name].squeeze()), name


def test_key_frame_goes_forward_then_backward_under_true_indices(load_oracle, oracle_frames):
    wanted = recorded_masks("key_frame", load_file(ORACLE / "key_frame.safetensors"))
    order = [(step["pass"], step["clip_frame"]) for step in FACTS["key_frame"]["order"]]
    by_step = dict(zip(order, wanted, strict=True))
    masks = list(glus.segment(load_oracle(), oracle_frames, EXPRESSION, key_frame=13))
    assert [m.frame_index for m in masks] == [*range(13, 22), *range(12, -1, -1)]
    check_masks(masks, [by_step["forward" if m.frame_index >= 13 else "backward", m.frame_index] for m in masks])


def test_an_answer_without_seg_is_a_blank_mask_and_no_memory(load_oracle, oracle_frames, monkeypatch):
    model = load_oracle()
    wanted = load_file(ORACLE / "missing_seg.safetensors")
    model.language.llama.lm_head.weight.data[278] = wanted["lm_head_row_278"]
    recorder = Recorder(model, monkeypatch)
    masks, _ = run("missing_seg", model, recorder, oracle_frames)
    check_masks(masks, recorded_masks("missing_seg", wanted))
    blank = [m for m in masks if not m.present]
    assert [m.frame_index for m in blank] == [0, 9]
    assert all(m.score == 0.0 and not m.mask.any() and (m.logits < -1000).all() for m in blank)
    grid = model.config.segmenter.grid**2
    tokens = [f.get("memory_tokens") for f in FACTS["missing_seg"]["frames"]]
    seen = [n * grid for n in recorder.memory_counts]
    assert all(t is None or t == s for t, s in zip(tokens, seen, strict=True))


def test_a_clip_shorter_than_its_context(load_oracle, oracle_frames):
    # the recording held 22 frames while it ran over 3, so its context frame -1 was frame 21
    model, wanted = load_oracle(), load_file(ORACLE / "short_clip.safetensors")
    assert Segmentation(model, oracle_frames[:3], EXPRESSION).context_frames == FACTS["short_clip"]["context_frames"]
    context = [oracle_frames[i] for i in (21, 0, 1, 2)]
    session = VideoSession(model, EXPRESSION, context)
    masks = [session.step(frame)[0] for frame in oracle_frames[:3]]
    check_masks(masks, recorded_masks("short_clip", wanted))
    close("low_res_logits", torch.stack([torch.from_numpy(m.logits) for m in masks]), wanted["low_res_logits"])


def test_native_size(load_oracle, oracle_frames, tmp_path, monkeypatch):
    values = json.loads((ORACLE / "sam2.json").read_text(encoding="utf-8")) | {"image_size": 1024}
    (tmp_path / "sam2.json").write_text(json.dumps(values), encoding="utf-8")
    model = load_oracle(sam2_config=tmp_path / "sam2.json")
    recorder = Recorder(model, monkeypatch)
    masks = list(islice(glus.segment(model, oracle_frames, EXPRESSION), 5))
    wanted, got = load_file(ORACLE / "native1024.safetensors"), recorder.tensors()
    check_masks(masks, recorded_masks("native1024", wanted))
    close("seg_hidden", got["seg_hidden"], wanted["seg_hidden"])
    close("low_res_logits", got["low_res_logits"][:, ::16], wanted["low_res_logits_rows"])
    close("memory_features", got["memory_features"][..., ::8, ::8], wanted["memory_features_sub"])
    close("image_embed", got["image_embed_with_memory"][..., ::8, ::8], wanted["image_embed_sub"])


def test_bfloat16_stays_within_what_the_released_code_loses(load_oracle, oracle_frames, monkeypatch):
    model = load_oracle(dtype="bfloat16")
    recorder = Recorder(model, monkeypatch)
    list(glus.segment(model, oracle_frames, EXPRESSION))
    got, full = recorder.tensors(), load_file(ORACLE / "forward.safetensors")
    # the recording's own bfloat16 run is 1-3 % off; masks are no target, because the stability rule may flip
    assert max(relative(a, b) for a, b in zip(got["pred_embedding"], full["pred_embedding"], strict=True)) < 0.035
    every = FACTS["forward"]["all_mask_logits_frames"][::5]
    assert (
        max(relative(a, b) for a, b in zip(got["all_mask_logits"][every], full["all_mask_logits"], strict=True)) < 0.035
    )


def test_sam2_configuration_reads_yaml_as_well_as_json(tmp_path):
    import yaml

    values = json.loads((ORACLE / "sam2.json").read_text(encoding="utf-8"))
    (tmp_path / "sam2.yaml").write_text(yaml.safe_dump({"model": values}), encoding="utf-8")
    assert read_sam2_config(tmp_path / "sam2.yaml") == read_sam2_config(ORACLE / "sam2.json")
