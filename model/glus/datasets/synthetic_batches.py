"""Training batches of clips drawn on the fly: worker processes compose scenes and phrases, the device draws them.

Shapes never change between batches of a stage, so that a step can be one captured CUDA graph. Conversations are padded
on the right to a fixed length; a clip with fewer phrases than asked for repeats some.
"""

from __future__ import annotations

import dataclasses
import multiprocessing as mp
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from glus.config import GlusConfig
from glus.datasets.phrases import KINDS, Templates
from glus.datasets.scenes import ClipSpec, render
from glus.datasets.sprites import load_sprites
from glus.datasets.synthetic import DEFAULT_MIX, Mix, sample_clip, sample_phrases
from glus.modeling.glus import TrainingBatch
from glus.processing import IMAGE_ID, expand_images, normalise, prompt_ids, training_text
from glus.recipes import Stage, TinyRecipe
from glus.tokenizer import Tokenizer

MAP = 8  # side of the grid of image tokens
_AHEAD = 4  # batches drawn ahead


@dataclass(frozen=True)
class Targets:
    """The truth of a batch.

    Attributes:
        masks: (N, D', h, w) 0..1, share of each logit's area, on the decoded frames.
        map: (N, Q, 64) 0..1, share of each image token's area.
        centre: (N, Q, 2) x and y, 0..1.
        present: (N, Q) 0 or 1.
        patches: (B, 4 + Q, 64) 0 for background, else 1 + number of the sprite at the patch's middle.
    """

    masks: Tensor
    map: Tensor
    centre: Tensor
    present: Tensor
    patches: Tensor


@dataclass(frozen=True)
class SyntheticBatch:
    """A batch with its truth.

    Attributes:
        training: what the network takes.
        targets: what it should say.
        image_places: (N, Q, 64) positions of the query frames' image tokens.
        partner: (N,) the row whose phrase is this one's swapped phrase; itself if there is none.
        kinds: (N,) index into `KINDS`.
    """

    training: TrainingBatch
    targets: Targets
    image_places: Tensor
    partner: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> SyntheticBatch:
        """On another device."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=True))

    def copy_(self, other: SyntheticBatch) -> None:
        """Take over another batch's values, in place."""
        for mine, yours in zip(_tensors(self), _tensors(other), strict=True):
            mine.copy_(yours)


_T = TypeVar("_T")


def _mapped(value: _T, change: Any) -> _T:
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[no-any-return]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [tensor for f in dataclasses.fields(value) for tensor in _tensors(getattr(value, f.name))]
    return []


@dataclass(frozen=True)
class _Plan:
    """One batch before it is drawn: plain numbers, from a worker process."""

    specs: tuple[ClipSpec, ...]
    times: np.ndarray  # (B, 4 + Q)
    ids: np.ndarray  # (N, L) expanded
    seg_places: np.ndarray  # (N, Q)
    image_places: np.ndarray  # (N, Q, 64)
    objects: np.ndarray  # (N, most objects) 0 or 1
    sprites: np.ndarray  # (B, most objects) number of the sprite + 1, 0 for none
    partner: np.ndarray
    kinds: np.ndarray
    decode: np.ndarray  # (D',)


class Planner:
    """Composes batches; lives in a worker."""

    def __init__(self, tokenizer: Tokenizer, config: GlusConfig, recipe: TinyRecipe, length: int) -> None:
        self.tokenizer, self.config, self.recipe, self.length = tokenizer, config, recipe, length
        self._laid_out: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def conversation(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(L,) ids, (Q,) places that predict [SEG], (Q, 64) places of the query images' tokens."""
        if text not in self._laid_out:
            window, tokens = self.config.window, self.config.vision.tokens
            whole = training_text(text, [(0, 0)] * window.query_frames, window.context_frames, self.config.prompt)
            ids = expand_images(prompt_ids(self.tokenizer, whole), tokens)
            if len(ids) > self.length:
                raise ValueError(f"{text!r} takes {len(ids)} positions, the batches have {self.length}")
            row = np.zeros(self.length, np.int64)
            row[: len(ids)] = ids
            seg = np.flatnonzero(row == self.config.language.seg_token_id) - 1
            images = np.flatnonzero(row == IMAGE_ID).reshape(-1, tokens)[-window.query_frames :]
            self._laid_out[text] = (row, seg, images)
        return self._laid_out[text]

    def plan(self, rng: np.random.Generator, mix: Mix, decode: int, templates: Templates = "train") -> _Plan:
        """Compose one batch."""
        recipe, window = self.recipe, self.config.window
        most = 6
        specs, times, rows, objects, sprites, partner, numbers = [], [], [], [], [], [], []
        for clip in range(recipe.batch_clips):
            spec = sample_clip(rng, mix=mix)
            phrases = sample_phrases(spec, rng, templates=templates, most=recipe.phrases)
            first = clip * recipe.phrases
            for place in range(recipe.phrases):
                phrase = phrases[place % len(phrases)]
                rows.append(self.conversation(phrase.text))
                chosen = np.zeros(most, np.float32)
                chosen[list(phrase.objects)] = 1
                objects.append(chosen)
                own = place % len(phrases) if phrase.partner is None else phrase.partner
                partner.append(first + (own if own < recipe.phrases else place))
                numbers.append(KINDS.index(phrase.kind))
            specs.append(spec)
            shown = [o.sprite + 1 for o in spec.objects]
            sprites.append(shown + [0] * (most - len(shown)))
            quarter = (np.arange(window.context_frames) + rng.random(window.context_frames)) / window.context_frames
            spacing = rng.uniform(0.03, 0.12)
            start = rng.uniform(0, 1 - spacing * (window.query_frames - 1))
            times.append([*quarter, *(start + spacing * np.arange(window.query_frames))])
        chosen_frames = np.sort(rng.choice(window.query_frames, decode, replace=False)) if decode else np.zeros(0, int)
        return _Plan(
            tuple(specs),
            np.asarray(times),
            np.stack([r[0] for r in rows]),
            np.stack([r[1] for r in rows]),
            np.stack([r[2] for r in rows]),
            np.stack(objects),
            np.asarray(sprites),
            np.asarray(partner),
            np.asarray(numbers),
            chosen_frames,
        )


def stage_mix(stage: Stage, within: float) -> Mix:
    """The generator's settings at a point (0..1) of a stage."""
    low, high = stage.classes
    classes = round(low * (high / low) ** min(1.0, within * 1.5))  # geometric growth, done after two thirds
    easy = stage.easy[0] + (stage.easy[1] - stage.easy[0]) * within
    kinds = tuple((k, w * (1 - easy) + (easy if k == "category" else 0.0)) for k, w in DEFAULT_MIX.kinds)
    return dataclasses.replace(DEFAULT_MIX, classes=classes, kinds=kinds)


class Batches:
    """Endless training batches, and fixed validation batches, drawn on a device.

    Args:
        tokenizer: of the model.
        config: of the model.
        recipe: batch sizes and seed.
        device: where to draw.
        process: number of this process among `processes`; they see different clips.
        workers: processes that compose; 0 composes in this one.
    """

    kinds = KINDS

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: GlusConfig,
        recipe: TinyRecipe,
        device: torch.device,
        *,
        process: int = 0,
        workers: int = 0,
        length: int = 640,
    ) -> None:
        self.config, self.recipe, self.device, self.process = config, recipe, device, process
        self.planner = Planner(tokenizer, config, recipe, length)
        self.sheet = load_sprites()
        self.classes = len(self.sheet)
        self._drawn = 0
        self._stage: tuple[Stage, float] | None = None
        self._lock = threading.Lock()
        self._workers = _Workers(self.planner, recipe.seed, process, workers) if workers else None
        self._ready: queue.Queue[tuple[str, SyntheticBatch, Any]] = queue.Queue(maxsize=_AHEAD)
        self._thread: threading.Thread | None = None

    def skip(self, count: int) -> None:
        """Go on behind the batches that an interrupted run has seen."""
        self._drawn = count
        if self._workers:
            self._workers.skip(count)

    def next(self, stage: Stage, within: float) -> SyntheticBatch:
        """The next training batch for a point of a stage."""
        mix = stage_mix(stage, within)
        with self._lock:
            self._stage = (stage, within)
        if self._workers is None:
            rng = np.random.default_rng([0, self.recipe.seed, self.process, self._drawn])
            self._drawn += 1
            return self._draw(self.planner.plan(rng, mix, stage.decode), stage, within)
        self._workers.set(mix)  # starts them the first time
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_drawing, daemon=True)
            self._thread.start()
        while True:
            name, batch, done = self._ready.get()
            if name == stage.name:  # a batch drawn for the stage before has other shapes
                if done is not None:
                    torch.cuda.current_stream().wait_event(done)
                    for tensor in _tensors(batch):
                        tensor.record_stream(torch.cuda.current_stream())
                return batch

    def _keep_drawing(self) -> None:
        """Draw ahead on a stream of its own, while the training step runs on another."""
        assert self._workers is not None
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        rng = np.random.default_rng([3, self.recipe.seed, self.process, self._drawn])
        while True:
            plan = self._workers.get()
            with self._lock:
                assert self._stage is not None
                stage, within = self._stage
            decode = np.sort(rng.choice(self.config.window.query_frames, stage.decode, replace=False))
            plan = dataclasses.replace(plan, decode=decode.astype(np.int64))
            if stream is None:
                self._ready.put((stage.name, self._draw(plan, stage, within), None))
                continue
            with torch.cuda.device(self.device), torch.cuda.stream(stream):
                batch = self._draw(plan, stage, within)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(stream)
            self._ready.put((stage.name, batch, done))

    def validation(self, stage: Stage, number: int) -> SyntheticBatch:
        """A batch that no training run sees, the same for the same number."""
        rng = np.random.default_rng([1, 0, number])
        plan = self.planner.plan(rng, stage_mix(stage, 1.0), stage.decode)
        plan = dataclasses.replace(plan, decode=np.arange(stage.decode))
        return self._draw(plan, stage, 1.0)

    @torch.no_grad()
    def _draw(self, plan: _Plan, stage: Stage, within: float) -> SyntheticBatch:
        """Draw a plan and work out its truth, all on the device and without waiting for it."""
        config, device = self.config, self.device
        size = config.segmenter.image_size if stage.masks else config.vision.image_size
        context = config.window.context_frames
        drawn = render(plan.specs, plan.times, (size, size), device, self.sheet, dtype=torch.float32)
        clips, count = drawn.frames.shape[:2]
        small = drawn.frames.flatten(0, 1)
        if size != config.vision.image_size:
            small = F.avg_pool2d(small, size // config.vision.image_size)
        small = normalise(small, config.vision.image_mean, config.vision.image_std)
        small = small.reshape(clips, count, *small.shape[1:])

        def send(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

        clip_of = torch.arange(clips, device=device).repeat_interleave(self.recipe.phrases)
        chosen = send(plan.objects)[:, : drawn.masks.shape[1]]
        masks = drawn.masks[:, :, context:]  # (B, n, Q, S, S)
        shares = F.adaptive_avg_pool2d(masks.flatten(0, 2)[:, None].float(), 64).reshape(*masks.shape[:3], 64, 64)
        union = torch.einsum("no,noqhw->nqhw", chosen, shares[clip_of])  # masks are disjoint, so shares add up
        coarse = F.avg_pool2d(union, 64 // MAP).flatten(2)
        area = union.sum((2, 3))
        line = (torch.arange(64, device=device) + 0.5) / 64
        centre = torch.stack([(union.sum(2) * line).sum(-1), (union.sum(3) * line).sum(-1)], -1) / area[
            ..., None
        ].clamp(min=1e-3)

        step = size // MAP
        at = torch.arange(MAP, device=device) * step + step // 2
        shown = drawn.masks[..., at[:, None], at[None]].flatten(3)  # (B, n, T, 64)
        names = send(plan.sprites)[:, : shown.shape[1], None, None]
        patches = (shown * names).sum(1)  # (B, T, 64)

        training = TrainingBatch(
            context=small[:, :context],
            query=small[:, context:],
            images=small[:, :0],
            ids=send(plan.ids),
            clip_of=clip_of,
            seg_places=send(plan.seg_places),
        )
        wanted = union[:, :0]
        if stage.masks:
            decode = send(plan.decode)
            images = drawn.frames[:, context:][:, decode]
            flat = normalise(images.flatten(0, 1), config.segmenter.image_mean, config.segmenter.image_std)
            wanted = union[:, decode]
            flat_wanted = wanted.flatten(0, 1).flatten(1)  # (N * D', 4096)
            pixel = torch.multinomial((flat_wanted > 0.5) + 1e-6, 1).squeeze(1)
            visible = ((flat_wanted > 0.5).sum(1) >= 4).reshape(wanted.shape[:2])
            xy = torch.stack([pixel % 64, pixel // 64], -1).float().add(0.5).div(64).reshape(*wanted.shape[:2], 2)
            share = stage.points[0] + (stage.points[1] - stage.points[0]) * within
            own = 1 - ((torch.rand(wanted.shape[:2], device=device) < share) & visible).float()
            training = dataclasses.replace(
                training, images=flat.reshape(images.shape), decode=decode, points=xy, own=own
            )
        targets = Targets(wanted, coarse, centre, (area >= 4).float(), patches)
        return SyntheticBatch(training, targets, send(plan.image_places), send(plan.partner), send(plan.kinds))

    def close(self) -> None:
        """End the worker processes."""
        if self._workers:
            self._workers.close()


class _Workers:
    """Processes that compose plans, each a stretch of the endless sequence."""

    def __init__(self, planner: Planner, seed: int, process: int, count: int) -> None:
        context = mp.get_context("spawn")
        self._queue: Any = context.Queue(maxsize=2 * count)
        self._settings: Any = context.Manager().dict()
        self._processes: list[Any] = []
        self._arguments = (planner, seed, process, count)
        self._context = context
        self._first = 0

    def skip(self, count: int) -> None:
        """Begin behind `count` batches."""
        self._first = count

    def set(self, mix: Mix) -> None:
        """Settings for the batches composed from now on."""
        if self._settings.get("mix") != mix:
            self._settings["mix"] = mix
        if not self._processes:
            planner, seed, process, count = self._arguments
            self._processes = [
                self._context.Process(
                    target=_compose,
                    args=(planner, self._queue, self._settings, [seed, process, number, self._first]),
                    daemon=True,
                )
                for number in range(count)
            ]
            for one in self._processes:
                one.start()

    def get(self) -> _Plan:
        """The next plan that is ready."""
        return self._queue.get()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End them."""
        for one in self._processes:
            one.terminate()


def _compose(planner: Planner, out: Any, settings: Mapping[str, Mix], seed: list[int]) -> None:
    torch.set_num_threads(1)
    number = 0
    while True:
        rng = np.random.default_rng([0, *seed, number])
        out.put(planner.plan(rng, settings["mix"], 0))
        number += 1
