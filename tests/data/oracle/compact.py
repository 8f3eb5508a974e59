"""Make this folder from a full recording of the released code: `python compact.py RECORDING`.

RECORDING holds weights, frames and per-step tensors of the released GLUS code at a tiny random size. What the tests
compare is kept, at most a few steps of the large tensors; of the embedding table only the rows that any prompt uses.
LLaMA's vocabulary is not copied: `text.json` lists the ids of the stretches of text that the prompts contain.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from glus.processing import IMAGE_ID, clean_expression, prompt_ids, prompt_text
from glus.tokenizer import Tokenizer

HERE = Path(__file__).parent
EXPRESSION = "The tabby cat that moves to the left over the coffee cup."  # of all clip cases
# tensor -> every how-many-th of its rows is kept, by case; a tensor that is not named is left out
KEEP = {
    "forward": {
        "seg_hidden": 1, "pred_embedding": 1, "low_res_logits": 1, "memory_features": 2, "masks_packed": 1,
        "image_embed_with_memory": 7, "all_ious": 1, "object_score_logit": 1, "mm_tokens": 7, "clip_hidden": 4,
        "fpn0": 2, "fpn1": 2, "fpn2": 5, "fpn2_pos": 1, "memory_pos": 1, "dense_pe": 1, "mask_for_memory_0": 1,
        "all_mask_logits": 5, "final_logits": 2,
    },
    "forward_gamma_reset": {"pred_embedding": 1, "low_res_logits": 3, "memory_features": 7, "masks_packed": 1},
    "no_memory_bank": {"pred_embedding": 1, "low_res_logits": 3, "masks_packed": 1},
    "mem_stride1": {"low_res_logits": 3, "masks_packed": 1},
    "key_frame": {"pred_embedding": 1, "low_res_logits": 3, "masks_packed": 1},
    "missing_seg": {"pred_embedding": 1, "low_res_logits": 3, "masks_packed": 1, "lm_head_row_278": 1},
    "short_clip": {"pred_embedding": 1, "low_res_logits": 1, "masks_packed": 1},
    "native1024": {
        "seg_hidden": 1, "pred_embedding": 1, "low_res_logits_rows": 1, "memory_features_sub": 1, "masks_packed": 1,
        "image_embed_sub": 1, "fpn2_sub": 1,
    },
    "bf16": {"pred_embedding": 1},
    "preprocess": {},
}  # fmt: skip


class _Recorder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.seen: dict[str, list[int]] = {}
        self._encode = tokenizer._encode
        tokenizer._encode = self

    def __call__(self, text: str) -> list[int]:
        return self.seen.setdefault(text, self._encode(text))


def _save(tensors: dict[str, torch.Tensor], name: str) -> None:
    path = HERE / f"{name}.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)  # the library makes it private


def main(recording: Path) -> None:
    tokenizer = Tokenizer.from_folder(recording / "glus-tiny")
    recorder = _Recorder(tokenizer)
    text = json.loads((recording / "cases/text.json").read_text(encoding="utf-8"))
    used = {0, 278, *tokenizer.added.values()}
    for kind in ("inference", "training"):
        for entry in text[kind]:
            ids = prompt_ids(tokenizer, entry["prompt"])
            assert entry["input_ids"][: len(ids)] == ids
            used.update(i for i in ids if i != IMAGE_ID)
    kept_text = {
        "stretches": recorder.seen,
        "inference": text["inference"],
        "training": [{key: entry[key] for key in ("prompt", "input_ids")} for entry in text["training"]],
    }

    for earlier in range(4):
        used.update(prompt_ids(tokenizer, prompt_text(clean_expression(EXPRESSION), [True] * earlier)))
    for conversation in json.loads((recording / "cases/train_step.json").read_text(encoding="utf-8"))["conversations"]:
        used.update(prompt_ids(tokenizer, conversation))
    used.discard(IMAGE_ID)

    cases = {}
    for case, keep in KEEP.items():
        tensors = load_file(recording / f"cases/{case}.safetensors")
        path = recording / f"cases/{case}.json"
        facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for frame in facts.get("frames", []):
            used.update(i for i in frame.get("input_ids", []) if i != IMAGE_ID)
        cases[case] = facts | {"every": keep}
        names = keep or dict.fromkeys(tensors, 1)
        _save({n: tensors[n][::s].contiguous() if s > 1 else tensors[n] for n, s in names.items()}, case)
    (HERE / "cases.json").write_text(json.dumps(cases, separators=(",", ":")), encoding="utf-8")
    (HERE / "text.json").write_text(json.dumps(kept_text, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

    step = load_file(recording / "cases/train_step.safetensors")
    used.update(i for i in step["input_ids"].flatten().tolist() if i != IMAGE_ID)
    step["gt_masks_0"], step["gt_masks_1"] = step["gt_masks_0"].bool(), step["gt_masks_1"].bool()
    _save(step, "train_step")
    for name in ("train_lora.safetensors", "lora_merged.safetensors", "train_step.json"):
        shutil.copyfile(recording / "cases" / name, HERE / name)

    weights = load_file(recording / "glus-tiny/model.safetensors")
    rows = torch.tensor(sorted(used))
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][rows].contiguous()
    weights["rows"] = rows
    _save(weights, "weights")
    for name in ("config.json", "generation_config.json", "added_tokens.json"):
        shutil.copyfile(recording / "glus-tiny" / name, HERE / name)
    shutil.copytree(recording / "clip-vit-tiny", HERE / "clip-vit-tiny", dirs_exist_ok=True)
    shutil.copytree(recording / "frames", HERE / "frames", dirs_exist_ok=True)
    shutil.copyfile(recording / "frames_extra_500x333.png", HERE / "frames_extra_500x333.png")
    shutil.copyfile(recording / "sam2.json", HERE / "sam2.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
