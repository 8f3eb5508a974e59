"""How `glus-tiny` is made: the curriculum of `recipes.TinyRecipe` on clips drawn on the fly. `glus train --recipe tiny`.

The network and its forward pass are those of every GLUS; what is added here are four helper losses that stand in for
the pre-training that the published model had (CLIP, SAM 2, LISA), all from the exact masks of the clips:

    map       which image tokens of a query frame belong to the object, from the [SEG] state
    point     where the object's centre is and whether there is one, from the [SEG] state
    patch     which object a patch of the vision tower shows
    prompts   some [SEG] embeddings are replaced by points on the object, as SAM 2 encodes them

On CUDA a step is one captured graph (its shapes never change within a stage); several GPUs average their gradients.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from glus.checkpoints import model_tensors, new_folder
from glus.config import IMAGE_END_TOKEN, IMAGE_START_TOKEN, SEG_TOKEN
from glus.datasets.synthetic_batches import Batches, SyntheticBatch, Targets
from glus.losses import mask_bce, mask_dice, seg_loss
from glus.modeling.glus import Glus, GlusOutput
from glus.modeling.sam2_names import FUSER_GAMMA
from glus.recipes import Stage, TinyRecipe, tiny_config
from glus.recipes import recipe as find_recipe
from glus.tokenizer import Tokenizer
from glus.training import start_processes
from glus.weights import write_shards


class Helpers(nn.Module):
    """Heads of the helper losses; trained along, thrown away at the end."""

    def __init__(self, model: Glus, classes: int) -> None:
        super().__init__()
        width = model.config.language.hidden_size
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.point = nn.Linear(width, 3)  # x, y, presence
        self.patch = nn.Linear(model.config.vision.hidden_size, classes + 1)  # 0: background
        self.share: Tensor
        self.register_buffer("share", torch.cat((torch.tensor([0.1]), torch.ones(classes))))

    def map_logits(self, output: GlusOutput, image_places: Tensor) -> Tensor:
        """(N, Q, 64) evidence that an image token belongs to the object; `image_places` (N, Q, 64)."""
        count, queries, tokens = image_places.shape
        rows = torch.arange(count, device=image_places.device)[:, None]
        seen = output.hidden[rows, image_places.flatten(1)].reshape(count, queries, tokens, -1)
        asked: Tensor = self.query(output.seg_states)
        return torch.einsum("nqd,nqtd->nqt", asked, self.key(seen)) / math.sqrt(asked.shape[-1]) + self.bias


def terms(
    output: GlusOutput, batch: SyntheticBatch, helpers: Helpers, recipe: TinyRecipe, seg_token_id: int
) -> dict[str, Tensor]:
    """All weighted loss terms of a step, by name."""
    truth: Targets = batch.targets
    evidence = helpers.map_logits(output, batch.image_places).float()
    place = helpers.point(output.seg_states).float()
    there = truth.present.float()
    offset = (place[..., :2].sigmoid() - truth.centre).abs().sum(-1) * there
    result = {
        "seg": recipe.seg_weight * seg_loss(output.seg_logits, seg_token_id),
        "map": recipe.map_weight * F.binary_cross_entropy_with_logits(evidence, truth.map),
        "point": recipe.point_weight * offset.sum() / there.sum().clamp(min=1),
        "presence": recipe.presence_weight * F.binary_cross_entropy_with_logits(place[..., 2], there),
        "patch": recipe.patch_weight
        * F.cross_entropy(helpers.patch(output.patches).float().flatten(0, 2), truth.patches.flatten(), helpers.share),
    }
    if output.mask_logits is not None and output.mask_iou is not None:
        logits, wanted = output.mask_logits.flatten(0, 1).float(), truth.masks.flatten(0, 1)
        result["bce"] = recipe.bce_weight * mask_bce(logits, wanted).mean()
        result["dice"] = recipe.dice_weight * mask_dice(logits, wanted).mean()
        with torch.no_grad():
            right = iou(logits > 0, wanted > 0.5)
        result["iou"] = recipe.iou_weight * F.mse_loss(output.mask_iou.flatten().float(), right)
    return result


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of (N, h, w) bool masks, 1 where both are empty: (N,)."""
    both, either = (a & b).flatten(1).sum(1).float(), (a | b).flatten(1).sum(1).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


@dataclass
class Progress:
    """Where training stands; saved and resumed."""

    step: int = 0
    seconds: float = 0.0
    stage: int = 0


class TinyTrainer:
    """Runs the curriculum.

    Args:
        model: untrained, float32.
        recipe: what to do.
        out: folder for the log, checkpoints and the learning curves.
        batches: where the clips come from.
        device: of this process.
    """

    def __init__(self, model: Glus, recipe: TinyRecipe, out: Path, batches: Batches, device: torch.device) -> None:
        self.model, self.recipe, self.out, self.batches, self.device = model, recipe, out, batches, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.helpers = Helpers(model, batches.classes).to(device)
        self.progress = Progress()
        named = [*model.named_parameters(), *((f"helpers.{n}", p) for n, p in self.helpers.named_parameters())]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        total = sum(parameter.numel() for parameter in self.parameters)
        self.flat = torch.zeros(total, device=device)  # all gradients in one piece: one all-reduce, one norm
        offset = 0
        for parameter in self.parameters:
            parameter.grad = self.flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        self.optimizer = torch.optim.AdamW(
            self._groups(named), lr=recipe.learning_rate, betas=recipe.betas, fused=device.type == "cuda"
        )
        out.mkdir(parents=True, exist_ok=True)
        self._since_stage = 0

    def _groups(self, named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            groups.setdefault((name.startswith("segmenter."), parameter.ndim > 1), []).append(parameter)
        return [
            {"params": members, "weight_decay": self.recipe.weight_decay if decays else 0.0, "masks": masks}
            for (masks, decays), members in groups.items()
        ]

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _losses(self, stage: Stage, batch: SyntheticBatch) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda", cache_enabled=False):
            output = self.model(batch.training, memory_gradients=True, memory=stage.memory, masks=stage.masks)
            found = terms(output, batch, self.helpers, self.recipe, self.model.config.language.seg_token_id)
        found["loss"] = torch.stack(list(found.values())).sum()
        return found

    def _forward_backward(self, stage: Stage, batch: SyntheticBatch) -> dict[str, Tensor]:
        self.flat.zero_()
        found = self._losses(stage, batch)
        found["loss"].backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in found.items()}

    def _stepper(self, stage: Stage) -> Callable[[SyntheticBatch], dict[str, Tensor]]:
        if self.device.type != "cuda":
            return lambda batch: self._forward_backward(stage, batch)
        still = self.batches.next(stage, 0.0).to(self.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._forward_backward(stage, still)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread goes on drawing batches meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = self._forward_backward(stage, still)

        def step(batch: SyntheticBatch) -> dict[str, Tensor]:
            still.copy_(batch)
            graph.replay()
            return found

        return step

    def _update(self, stage: Stage, done: float) -> Tensor:
        if self.world > 1:
            dist.all_reduce(self.flat, op=dist.ReduceOp.AVG)
        norm: Tensor = self.flat.norm()
        self.flat.mul_((self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        rate = self._rate(done)
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self._since_stage if group["masks"] else self.progress.step) / self.recipe.warm_up)
            group["lr"] = rate * warm if stage.masks or not group["masks"] else 0.0
        self.optimizer.step()
        return norm

    def _rate(self, done: float) -> float:
        flat_until = 0.4
        if done < flat_until:
            return self.recipe.learning_rate
        fallen = 0.5 * (1 + math.cos(math.pi * (done - flat_until) / (1 - flat_until)))
        return self.recipe.learning_rate * (self.recipe.final_rate + (1 - self.recipe.final_rate) * fallen)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self, budget: float, *, validate_every: float = 120.0, log_every: int = 50) -> bool:
        """Train for at most `budget` seconds of this call; True when the whole recipe is done."""
        ends = [sum(s.share for s in self.recipe.stages[: i + 1]) for i in range(len(self.recipe.stages))]
        started, before = time.monotonic(), self.progress.seconds
        stepper: Callable[[SyntheticBatch], dict[str, Tensor]] | None = None
        validated = before
        while True:
            self._agree(before + time.monotonic() - started)
            done = self.progress.seconds / self.recipe.seconds
            if done >= 1.0 or self.progress.seconds - before >= budget:
                break
            number = next(i for i, end in enumerate(ends) if done < end + 1e-9 or i == len(ends) - 1)
            if stepper is None or number != self.progress.stage:
                if number != self.progress.stage:
                    self._since_stage = 0
                self.progress.stage = number
                stepper = None  # frees the old graph before the new one is captured
                stepper = self._stepper(self.recipe.stages[number])
            stage = self.recipe.stages[number]
            within = (done - (ends[number - 1] if number else 0.0)) / stage.share
            for _ in range(10):  # the clock is asked every ten steps: asking makes the processes wait for each other
                found = stepper(self.batches.next(stage, within).to(self.device))
                norm = self._update(stage, done)
                self.progress.step += 1
                self._since_stage += 1
                if self.progress.step % log_every == 0:
                    self._log({"norm": norm, **found}, stage.name, done)
            if self.progress.seconds - validated >= validate_every:
                validated = self.progress.seconds
                pause = time.monotonic()
                self._report(self.validate(stage))
                started += time.monotonic() - pause
        self.save_state()
        return self.progress.seconds >= self.recipe.seconds

    def _agree(self, seconds: float) -> None:
        """All processes go by the first one's clock."""
        clock = torch.tensor([seconds], device=self.device, dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(clock, 0)
        self.progress.seconds = float(clock)

    def _log(self, values: Mapping[str, Tensor], stage: str, done: float) -> None:
        numbers = {name: round(float(value), 4) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"step {self.progress.step}: {', '.join(bad)} is not finite")
        self._write("log.jsonl", {"step": self.progress.step, "stage": stage, "done": round(done, 4), **numbers})

    def _report(self, scores: dict[str, Any]) -> None:
        self._write("curve.jsonl", {"step": self.progress.step, "seconds": round(self.progress.seconds), **scores})
        if self.rank == 0:
            print(
                json.dumps({"step": self.progress.step, "seconds": round(self.progress.seconds), **scores}), flush=True
            )

    def _write(self, name: str, line: dict[str, Any]) -> None:
        if self.rank == 0:
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    # ---- validation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, stage: Stage, batches: int = 6) -> dict[str, Any]:
        """Right and swapped scores by kind of phrase on clips that training never sees.

        J at the logits' size where masks are learnt; else the share of frames whose surest image token is on the object.
        "Swapped" scores the mask of a phrase's partner in its clip against the phrase's own truth.
        """
        sums: dict[str, Tensor] = {}
        final = dataclasses.replace(stage, points=(0.0, 0.0), decode=4 if stage.masks else 0)
        for number in range(batches):
            batch = self.batches.validation(final, number * self.world + self.rank).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                output = self.model(batch.training, memory=stage.memory, masks=stage.masks)
                evidence = self.helpers.map_logits(output, batch.image_places)
            for kind, value in self._scores(output, evidence, batch).items():
                sums[kind] = sums.get(kind, torch.zeros(3, device=self.device)) + value
        kinds = self.batches.kinds
        table = torch.stack([sums.get(kind, torch.zeros(3, device=self.device)) for kind in kinds])
        if self.world > 1:
            dist.all_reduce(table)
        return {
            kind: [round(float(right / n), 3), round(float(swapped / n), 3), int(n)]
            for kind, (right, swapped, n) in zip(kinds, table, strict=True)
            if n
        }

    def _scores(self, output: GlusOutput, evidence: Tensor, batch: SyntheticBatch) -> dict[str, Tensor]:
        truth = batch.targets
        if output.mask_logits is not None:
            count, frames = truth.masks.shape[:2]
            own, wanted = output.mask_logits > 0, truth.masks > 0.5
            right = iou(own.flatten(0, 1), wanted.flatten(0, 1)).reshape(count, frames).mean(1)
            swapped = iou(own[batch.partner].flatten(0, 1), wanted.flatten(0, 1)).reshape(count, frames).mean(1)
        else:

            def hit(guess: Tensor) -> Tensor:
                share: Tensor = truth.map.gather(2, guess.argmax(-1, keepdim=True)).squeeze(2)
                return (share >= 0.15).float().mean(1)

            right, swapped = hit(evidence), hit(evidence[batch.partner])
        members = {kind: batch.kinds == number for number, kind in enumerate(self.batches.kinds)}
        return {kind: torch.stack([right[m].sum(), swapped[m].sum(), m.sum()]) for kind, m in members.items()}

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything needed to go on: weights, helpers, optimizer, progress."""
        if self.rank == 0:
            state = {
                "model": self.model.state_dict(),
                "helpers": self.helpers.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": dataclasses.asdict(self.progress),
            }
            part = self.out / "state.part"
            torch.save(state, part)
            part.replace(self.out / "state.pt")

    def load_state(self) -> bool:
        """Go on from a saved state, if there is one."""
        path = self.out / "state.pt"
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.helpers.load_state_dict(state["helpers"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self._since_stage = self.recipe.warm_up
        self.batches.skip(self.progress.step)
        return True


# ---- from nothing to a checkpoint -----------------------------------------------------------------------------------


def write_vocabulary(folder: Path, size: int = 1200, sentences: int = 30_000, seed: int = 0) -> Tokenizer:
    """Train the small vocabulary on phrases of the generator and write it, with the added tokens behind it."""
    import io

    import numpy as np
    import sentencepiece

    from glus.datasets.phrases import vocabulary
    from glus.datasets.synthetic import sample_clip, sample_phrases

    rng = np.random.default_rng([2, seed])
    texts = list(vocabulary())
    while len(texts) < sentences:
        texts += [phrase.text for phrase in sample_phrases(sample_clip(rng), rng, templates="train")]
    texts += ["USER: ASSISTANT: ."] * 20
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        vocab_size=size,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["USER:", "ASSISTANT:"],
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()).get_piece_size()
    added = {token: pieces + number for number, token in enumerate((SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN))}
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.from_folder(folder)


def untrained(tokenizer: Tokenizer, seed: int) -> Glus:
    """The network of `glus-tiny` as training begins."""
    torch.manual_seed(seed)
    model = Glus(tiny_config(max(tokenizer.added.values()) + 1), tokenizer, "glus-tiny")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if FUSER_GAMMA.search(name):
                parameter.fill_(0.1)  # the library begins with 1e-6, which keeps the fuser from learning
            elif name.endswith(("memory_temporal_positional_encoding", "no_memory_embedding")):
                nn.init.trunc_normal_(parameter, std=0.02)
    return model


def train(
    out: Path, vocabulary_folder: Path, recipe: TinyRecipe, *, budget: float, workers: int, device: str = "auto"
) -> bool:
    """Make `glus-tiny`, or go on making it, for at most `budget` seconds; `out`/model appears when it is done."""
    place = start_processes(device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    tokenizer = Tokenizer.from_folder(vocabulary_folder)
    model = untrained(tokenizer, recipe.seed).to(place)
    batches = Batches(tokenizer, model.config, recipe, place, process=rank, workers=workers)
    trainer = TinyTrainer(model, recipe, out, batches, place)
    resumed = trainer.load_state()
    if rank == 0:
        print(json.dumps({"resumed": resumed, "processes": world, "device": str(place)}), flush=True)
    done = trainer.run(budget)
    scores = trainer.validate(recipe.stages[trainer.progress.stage], batches=12)
    trainer._report(scores)
    batches.close()
    if rank == 0:
        save_bfloat16(model, out / ("model" if done else f"model-{trainer.progress.step}"))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return done


def save_bfloat16(model: Glus, folder: Path) -> None:
    """Save in our layout as bfloat16, in files of at most 12 MB; the Fourier matrix stays float32."""
    with new_folder(folder) as work:
        model.config.save(work / "config.json")
        for name, content in model.tokenizer.files.items():
            (work / name).write_bytes(content)
        kept = "positional_encoding_gaussian_matrix"
        tensors = ((n, t if n.endswith(kept) else t.to(torch.bfloat16)) for n, t in model_tensors(model))
        write_shards(work, tensors, shard_bytes=12_000_000)


def main() -> None:
    """`python -m glus.tiny_training OUT VOCABULARY [--budget S] [--seconds S] [--set FIELD=VALUE]`, under torchrun."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("vocabulary", type=Path, help="folder of tokenizer.model; made if it is not there")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds of this call")
    parser.add_argument("--workers", type=int, default=2, help="processes that compose clips, per training process")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the recipe")
    args = parser.parse_args()
    changes = {name: json.loads(value) for name, value in (change.split("=", 1) for change in args.set)}
    chosen = find_recipe("tiny", changes)
    assert isinstance(chosen, TinyRecipe)
    if not (args.vocabulary / "tokenizer.model").is_file():
        write_vocabulary(args.vocabulary)
    train(args.out, args.vocabulary, chosen, budget=args.budget, workers=args.workers, device=args.device)


if __name__ == "__main__":
    main()
