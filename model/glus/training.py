"""`glus train`: build, load, loop, save. Reads top to bottom; the parts do not know that they are being trained.

One process a GPU under torchrun; gradients are averaged when a step is complete. Trained weights are float32 masters,
frozen ones bfloat16, computation runs under autocast.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glus.adapters import LoraSettings, add_lora, choose_trained, merge_lora
from glus.checkpoints import load, save
from glus.errors import SettingError
from glus.losses import LossWeights, ObjectContrast, TokenKey, mask_losses, seg_loss
from glus.modeling.glus import Glus, TrainingBatch
from glus.recipes import Recipe
from glus.sampling import Mix, Sample, collate, step_rng

STATE = "state.pt"
Prepared = tuple[TrainingBatch, list[Tensor], list[TokenKey]]


class Trainer:
    """Trains a model by a recipe.

    Args:
        model: from `glus.load`, trained scales in place (`memory_fuser_gamma="checkpoint"`).
        recipe: what to do.
        mix: where samples come from.
        out: folder for `log.jsonl`, `state.pt` and the result.
        device: of this process.
        validate: called every `recipe.validate_every` steps with the model; returns scores for the log.
    """

    def __init__(
        self,
        model: Glus,
        recipe: Recipe,
        mix: Mix,
        out: Path,
        device: torch.device,
        validate: Callable[[Glus], Mapping[str, float]] | None = None,
    ) -> None:
        self.recipe, self.mix, self.out, self.device = recipe, mix, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._validate, self._stop, self.step = validate, False, 0
        torch.manual_seed(recipe.seed)  # LoRA starts alike in every process
        self.model = prepare(model, recipe)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.contrast = ObjectContrast(datasets=recipe.contrast_datasets)
        self.weights = LossWeights(recipe.seg_weight, recipe.bce_weight, recipe.dice_weight, recipe.contrast_weight)
        self._forward: Callable[..., Any] = torch.compile(self.model) if recipe.compile else self.model
        torch.manual_seed(recipe.seed * 1_000_003 + self.rank)  # dropout and contrast differ between processes
        out.mkdir(parents=True, exist_ok=True)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> bool:
        """Train to the recipe's last step (or to `until`); a first Ctrl-C saves and returns False."""
        last = self.recipe.steps if until is None else min(until, self.recipe.steps)
        self.model.train()
        with _Interrupt(self._ask_to_stop), ThreadPoolExecutor(max_workers=1) as reader:
            pending = reader.submit(self._prepared, self.step)
            while self.step < last and not self._stopping():
                started = time.perf_counter()
                turns = pending.result()
                pending = reader.submit(self._prepared, self.step + 1)
                terms = self._accumulate(turns)
                norm = self._update()
                self.step += 1
                self._log(terms | {"norm": norm}, time.perf_counter() - started)
                if self.step % self.recipe.save_every == 0:
                    self.save_state()
                if self._validate and self.recipe.validate_every and self.step % self.recipe.validate_every == 0:
                    self._write({"step": self.step, "validation": dict(self._validate(self.model.eval()))})
                    self.model.train()
            pending.cancel()
        self.save_state()
        return self.step >= self.recipe.steps

    def _samples(self, step: int) -> list[list[Sample]]:
        recipe = self.recipe
        return [
            [
                self.mix.sample(step_rng(recipe.seed, step, self.rank, turn * recipe.batch_clips + clip))
                for clip in range(recipe.batch_clips)
            ]
            for turn in range(recipe.accumulate)
        ]

    def _prepared(self, step: int) -> list[Prepared]:
        """Drawn, resized and laid out on a thread of its own, while the step before is computed."""
        return [collate(samples, self.model.tokenizer, self.model.config) for samples in self._samples(step)]

    def _accumulate(self, turns: list[Prepared]) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for batch, truth, keys in turns:
            terms = self._terms(_to(batch, self.device), [mask.to(self.device) for mask in truth], keys)
            bad = [name for name, value in terms.items() if not math.isfinite(value.item())]
            if bad:
                names = ", ".join(sorted({key.video for key in keys}))
                raise FloatingPointError(
                    f"step {self.step}: the loss term {', '.join(bad)} is not finite (videos {names}); "
                    "the state before this step is in state.pt"
                )
            loss = torch.stack(list(terms.values())).sum() / len(turns)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in terms.items():
                total[name] = total.get(name, torch.zeros((), device=self.device)) + value.detach() / len(turns)
        return total

    def _terms(self, batch: TrainingBatch, truth: list[Tensor], keys: list[Any]) -> dict[str, Tensor]:
        recipe, weights = self.recipe, self.weights
        mixed = recipe.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            output = self._forward(batch, memory_gradients=recipe.memory_gradients, stride=recipe.memory_stride)
        counts = torch.bincount(batch.clip_of, minlength=len(truth)).tolist()
        bce, dice = mask_losses(output.mask_logits.split(counts), truth)
        terms = {
            "seg": weights.seg * seg_loss(output.seg_logits, self.model.config.language.seg_token_id),
            "bce": weights.bce * bce,
            "dice": weights.dice * dice,
        }
        if weights.contrast:
            terms["contrast"] = weights.contrast * self.contrast(output.embeddings.flatten(0, 1), keys)
        return terms

    def _update(self) -> Tensor:
        if self.world > 1:
            for parameter in self.trained.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(
                    parameter.grad, op=dist.ReduceOp.AVG if self.device.type == "cuda" else dist.ReduceOp.SUM
                )
                if self.device.type != "cuda":  # gloo has no average
                    parameter.grad /= self.world
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(self.step, self.recipe)
        self.optimizer.step()
        return norm

    def _stopping(self) -> bool:
        """Whether any process was asked to stop: all leave at the same step, or they would wait for each other."""
        if self.world > 1:
            asked = torch.tensor([float(self._stop)], device=self.device)
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)
            self._stop = bool(asked.item())
        return self._stop

    def _ask_to_stop(self) -> None:
        self._stop = True

    # ---- log and state ----------------------------------------------------------------------------------------------

    def _log(self, terms: Mapping[str, Tensor], seconds: float) -> None:
        numbers = {name: round(value.item(), 6) for name, value in terms.items()}
        clips = self.recipe.batch_clips * self.recipe.accumulate * self.world
        self._write({"step": self.step, **numbers, "clips_per_second": round(clips / seconds, 3)})

    def _write(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def save_state(self) -> None:
        """Write `state.pt` (and one file of random states a process), whole or not at all."""
        self._replace(f"random-{self.rank}.pt", {"torch": torch.get_rng_state(), **self._cuda_state()})
        if self.rank == 0:
            self._replace(
                STATE,
                {
                    "step": self.step,
                    "recipe": json.dumps(dataclasses.asdict(self.recipe)),
                    "trained": {name: parameter.detach() for name, parameter in self.trained.items()},
                    "optimizer": self.optimizer.state_dict(),
                },
            )
        bank = self.contrast.state_dict()["bank"]
        self._replace(
            f"contrast-{self.rank}.pt",
            {
                "keys": [[k.dataset, k.video, k.expression, sorted(k.objects), k.frame] for k, _ in bank],
                "values": [value for _, value in bank],
            },
        )
        if self.world > 1:
            dist.barrier()

    def _cuda_state(self) -> dict[str, Tensor]:
        return {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}

    def _replace(self, name: str, content: dict[str, Any]) -> None:
        part = self.out / f"{name}.part"
        torch.save(content, part)
        part.replace(self.out / name)

    def resume(self) -> bool:
        """Go on from `out`, to the same next step; False if there is nothing.

        Raises:
            SettingError: the state is of another recipe or other weights.
        """
        path = self.out / STATE
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if json.loads(state["recipe"]) != json.loads(json.dumps(dataclasses.asdict(self.recipe))):
            raise SettingError(f"{path} was made by another recipe; give the same one, or a new folder")
        if state["trained"].keys() != self.trained.keys():
            raise SettingError(f"{path} trained other weights than this run would; give a new folder")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        random = torch.load(self.out / f"random-{self.rank}.pt", weights_only=True)
        torch.set_rng_state(random["torch"])
        if "cuda" in random and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)
        bank = torch.load(self.out / f"contrast-{self.rank}.pt", map_location=self.device, weights_only=True)
        self.contrast.load_state_dict(
            {
                "bank": [
                    (TokenKey(d, v, e, frozenset(o), f), value)
                    for (d, v, e, o, f), value in zip(bank["keys"], bank["values"], strict=True)
                ]
            }
        )
        return True

    def finish(self, folder: Path) -> Path:
        """Merge LoRA and save the model in our layout."""
        merge_lora(self.model)
        return save(self.model.eval(), folder)


def prepare(model: Glus, recipe: Recipe) -> Glus:
    """Freeze what is frozen (in the recipe's type), make float32 masters of what learns, in place."""
    if recipe.lora_rank and not recipe.train_everything:
        add_lora(model, LoraSettings(recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout))
    choose_trained(model, (r".*",) if recipe.train_everything else None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if recipe.gradient_checkpointing:
        model.language.llama.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the learning rate: linear warm-up, then linear decay to 0 at the last step."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return max(0.0, (recipe.steps - step) / max(1, recipe.steps - recipe.warm_up))


def train(
    checkpoint: str,
    recipe: Recipe,
    root: Path,
    out: Path,
    *,
    vision_tower: str | None = None,
    sam2_config: str | None = None,
    device: str = "auto",
    resume: bool = True,
) -> bool:
    """Train from a checkpoint on the data sets under `root`; True when the recipe is done and `out`/model is saved."""
    place = start_processes(device)
    frozen = recipe.dtype if place.type == "cuda" else "float32"
    model = load(
        checkpoint,
        vision_tower=vision_tower,
        sam2_config=sam2_config,
        device=place,
        dtype=frozen,
        memory_fuser_gamma="checkpoint",
    )
    trainer = Trainer(model, recipe, Mix.open(root, recipe, model.config), out, place)
    if resume:
        trainer.resume()
    done = trainer.run()
    if done and trainer.rank == 0:
        trainer.finish(out / "model")
    return done


def start_processes(device: str = "auto") -> torch.device:
    """Join the processes that torchrun started, one a GPU; alone without it. Returns this process's device."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and device != "cpu"
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return place


def _to(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    given = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return TrainingBatch(
        **{name: value.to(device, non_blocking=True) for name, value in given.items() if value is not None}
    )


class _Interrupt:
    """While it lasts, a first Ctrl-C calls `ask`; a second one is the usual KeyboardInterrupt."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask

    def __enter__(self) -> _Interrupt:
        try:
            self._before = signal.signal(signal.SIGINT, self._heard)
        except ValueError:  # not the main thread: nobody sends us signals
            self._before = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _heard(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        self._ask()
