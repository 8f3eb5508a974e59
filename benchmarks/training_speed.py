"""Clips per second and memory of training, on a model with random weights, on one or several GPUs of a machine.

    torchrun --standalone --nproc-per-node 4 benchmarks/training_speed.py --size full --also-single --out training.json
    python benchmarks/training_speed.py --size tiny             # one process, any machine

The trainer is the one of `glus train`; only saving is left out. Reading and preparing the pictures is part of the time.
The device is waited for between the parts of a step, so that each can be timed. With `--also-single`, process 0 then
repeats the same steps as a training of one process, on the same model, while the others wait.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from PIL import Image
from torch import Tensor

from glus.config import GlusConfig
from glus.masks import encode_rle
from glus.miniature import random_model, write_vocabulary
from glus.recipes import recipe
from glus.sampling import Mix
from glus.tokenizer import Tokenizer
from glus.training import Trainer, start_processes

WARM_UP = 3  # steps that are not counted
CLIPS, FRAMES = 6, 12
PICTURES = {"full": (1280, 720), "tiny": (160, 90)}
PHRASES = (
    ("the disc that moves to the right", 0),
    ("the square that moves down", 1),
    ("the red one", 0),
    ("the blue one", 1),
)


def make_dataset(root: Path, width: int, height: int) -> None:
    """Clips of a disc and a square that move over a textured background, in MeViS's layout."""
    folder = root / "mevis" / "train"
    y, x = np.ogrid[:height, :width]
    videos, masks = {}, {}
    for clip in range(CLIPS):
        rng = np.random.default_rng(clip)
        pictures = folder / "JPEGImages" / f"clip{clip}"
        pictures.mkdir(parents=True)
        coarse = rng.integers(60, 200, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        background = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        frames: tuple[list[Any], list[Any]] = [], []
        for t in range(FRAMES):
            picture, along = background.copy(), t / FRAMES
            disc = (x - width * (0.2 + 0.6 * along)) ** 2 + (y - height / 2) ** 2 < (height / 8) ** 2
            square = (abs(x - width / 3) < height / 12) & (abs(y - height * (0.1 + 0.8 * along)) < height / 12)
            for listed, shape, colour in zip(frames, (disc, square), ((220, 40, 40), (40, 60, 220)), strict=True):
                picture[shape] = colour
                listed.append(encode_rle(shape))
            Image.fromarray(picture).save(pictures / f"{t:05d}.jpg", quality=90)
        masks |= {str(2 * clip + which): listed for which, listed in enumerate(frames)}
        videos[pictures.name] = {
            "frames": [f"{t:05d}" for t in range(FRAMES)],
            "expressions": {
                str(i): {"exp": text, "obj_id": [which], "anno_id": [2 * clip + which]}
                for i, (text, which) in enumerate(PHRASES)
            },
        }
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}), encoding="utf-8")
    (folder / "mask_dict.json").write_text(json.dumps(masks), encoding="utf-8")


class Measured(Trainer):
    """A trainer that takes the time of each part of a step and saves nothing."""

    def start(self, world: int) -> None:
        """Begin at step 0 with nothing measured, as one of `world` processes; what was learnt stays."""
        self.world, self.step = world, 0
        self.contrast.bank.clear()
        self.steps: list[dict[str, float]] = []
        self.terms: list[dict[str, float]] = []
        self.positions: list[int] = []
        self._now: dict[str, float] = {}
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._last = time.perf_counter()

    def save_state(self) -> None:
        """Not part of the measurement."""

    def _mark(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._now[part] = self._now.get(part, 0.0) + now - self._last
        self._last = now

    def _accumulate(self, turns: Any) -> dict[str, Tensor]:
        self._mark("wait_for_samples")
        total = super()._accumulate(turns)
        self._mark("forward_and_backward")
        return total

    def _terms(self, batch: Any, truth: Any, keys: Any) -> dict[str, Tensor]:
        self._mark("prepare_and_copy_batch")
        self.positions.append(batch.ids.shape[1])
        return super()._terms(batch, truth, keys)

    def _update(self) -> Tensor:
        norm = super()._update()
        self._mark("exchange_and_update")
        return norm

    def _log(self, terms: Mapping[str, Tensor], seconds: float) -> None:
        super()._log(terms, seconds)
        self._mark("log")
        self.terms.append({name: round(value.item(), 4) for name, value in terms.items()})
        self.steps.append(self._now)
        self._now = {}


def measure(trainer: Measured, world: int) -> dict[str, Any]:
    """Run the recipe's steps in `world` processes; all of them get the same figures back."""
    cuda = trainer.device.type == "cuda"
    if world > 1:
        dist.barrier()
    trainer.start(world)
    trainer.run()
    mine = {
        "steps": trainer.steps[WARM_UP:],
        "positions": max(trainer.positions),
        "peak": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "reserved": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
    }
    everyone: list[Any] = [mine]
    if world > 1:
        everyone = [None] * world
        dist.all_gather_object(everyone, mine)
    # a step is over when the slowest process is done with it
    seconds = [max(sum(parts.values()) for parts in step) for step in zip(*(p["steps"] for p in everyone), strict=True)]
    median = statistics.median(seconds)
    clips = trainer.recipe.batch_clips * trainer.recipe.accumulate * world
    return {
        "world_size": world,
        "clips_per_step": clips,
        "steps_counted": len(seconds),
        "median_seconds_per_step": round(median, 4),
        "fastest_and_slowest_step": [round(min(seconds), 4), round(max(seconds), 4)],
        "clips_per_second": round(clips / median, 3),
        "peak_memory_gib": [process["peak"] for process in everyone] if cuda else None,
        "peak_reserved_gib": [process["reserved"] for process in everyone] if cuda else None,
        "warm_up_seconds_process_0": [round(sum(parts.values()), 3) for parts in trainer.steps[:WARM_UP]],
        "longest_conversation_positions": max(process["positions"] for process in everyone),
        "median_seconds_of_parts_process_0": {
            part: round(statistics.median(step[part] for step in mine["steps"]), 4) for part in mine["steps"][0]
        },
        "loss_terms_process_0": {"first_step": trainer.terms[0], "last_step": trainer.terms[-1]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["full", "tiny"], default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto")
    parser.add_argument("--also-single", action="store_true", help="then repeat it in process 0 alone")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.steps <= WARM_UP:
        parser.error(f"--steps must be more than the {WARM_UP} that are not counted")
    if args.also_single and os.environ.get("WORLD_SIZE", "1") == "1":
        parser.error("--also-single is for several processes; start it with torchrun")

    started = time.perf_counter()
    device = start_processes(args.device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    cuda = device.type == "cuda"
    config = GlusConfig() if args.size == "full" else GlusConfig.tiny()
    width, height = PICTURES[args.size]
    place = [tempfile.mkdtemp(prefix="glus-training-speed-") if rank == 0 else ""]
    if rank == 0:
        make_dataset(Path(place[0]), width, height)
        write_vocabulary(Path(place[0]), config.language.vocab_size - 3)
    if world > 1:
        dist.broadcast_object_list(place)  # the others wait here until the folder is complete
    work = Path(place[0])

    model = random_model(config, Tokenizer.from_folder(work), seed=0, device=device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    if cuda:
        torch.cuda.empty_cache()
    plan: Any = recipe(
        "glus-s",
        {
            "parts": [{"dataset": "mevis", "weight": 1}],
            "steps": args.steps,
            "batch_clips": 2,
            "accumulate": 1,
            "expressions": 3,
            "gradient_checkpointing": True,
            "dtype": "bfloat16",
            "save_every": 10**9,
        },
    )
    trainer = Measured(model, plan, Mix.open(work, plan, config), work / f"run-{rank}", device)
    trained = sum(p.numel() for p in trainer.trained.values())
    ready = time.perf_counter()
    start = f"torchrun --standalone --nproc-per-node {world}" if world > 1 else "python"
    report: dict[str, Any] = {
        "command": " ".join([start, "benchmarks/training_speed.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if cuda else f"CPU {platform.machine()}",
        "cpu_threads_per_process": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
            "transformers": transformers.__version__,
        },
        "model": args.size,
        "weights": "random; float32 where trained, bfloat16 where frozen",
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": trained,
        "gradients_exchanged_gib": round(4 * trained / 2**30, 3) if world > 1 else None,
        "recipe": {
            name: getattr(plan, name)
            for name in (
                *("name", "batch_clips", "accumulate", "expressions", "gradient_checkpointing", "dtype"),
                *("contrast_weight", "lora_rank", "compile", "memory_gradients", "memory_stride"),
            )
        },
        "differs_from_published_recipe": "mevis alone; accumulate 1, not 10; no saving",
        "data": f"{CLIPS} synthetic clips of {FRAMES} JPEG frames, {width}x{height}, in MeViS's layout",
        "steps": args.steps,
        "warm_up_steps_not_counted": WARM_UP,
        "start_up_seconds": round(ready - started, 1),
    }
    if rank == 0:
        print(json.dumps(report, indent=1), flush=True)
    report["measured"] = measure(trainer, world)
    if args.also_single:
        if rank == 0:
            print(json.dumps(report["measured"], indent=1), flush=True)
            report["single"] = measure(trainer, 1)
            ratio = report["measured"]["clips_per_second"] / report["single"]["clips_per_second"]
            report["clips_per_second_ratio"] = round(ratio, 3)
            report["clips_per_second_ratio_per_process"] = round(ratio / world, 3)
        dist.barrier()
    if rank == 0:
        report["total_seconds"] = round(time.perf_counter() - started, 1)
        text = json.dumps(report, indent=1)
        print(text)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(work)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
