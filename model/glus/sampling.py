"""What one training step sees: data sets mixed by weight, frames and phrases drawn, everything laid out as tensors.

Every draw follows from (seed, step, process, place in the step), so a resumed run sees what an uninterrupted one saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glus.config import GlusConfig
from glus.datasets.base import DataError, Dataset, open_dataset
from glus.losses import TokenKey
from glus.modeling.glus import TrainingBatch
from glus.processing import (
    Frame,
    clean_expression,
    clip_pixels,
    expand_images,
    prompt_ids,
    sam_pixels,
    training_text,
)
from glus.recipes import Recipe

if TYPE_CHECKING:
    from glus.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One clip of a step.

    Attributes:
        context: frames of the overview, (H, W, 3) uint8 each.
        query: consecutive frames that are asked about.
        texts: for each expression, a whole conversation.
        masks: (K, Q, H, W) bool.
        keys: for each expression and query frame, where it came from.
    """

    context: tuple[Frame, ...]
    query: tuple[Frame, ...]
    texts: tuple[str, ...]
    masks: np.ndarray
    keys: tuple[TokenKey, ...]


class Mix:
    """Data sets drawn from by weight, their videos uniformly.

    Args:
        datasets: opened, with masks.
        weights: one each.
        recipe: how many expressions, how often an absent one.
        config: of the model: window and wording.

    Raises:
        DataError: a data set without masks or without a video that is long enough.
    """

    def __init__(
        self, datasets: Sequence[Dataset], weights: Sequence[float], recipe: Recipe, config: GlusConfig
    ) -> None:
        self.datasets, self.recipe, self.config = list(datasets), recipe, config
        self._chance = np.asarray(weights, dtype=float) / sum(weights)
        self._usable: list[list[int]] = []
        for dataset in self.datasets:
            if not dataset.has_masks:
                raise DataError(f"{dataset.name} ({dataset.split}) has no masks here; training needs them")
            need = config.window.query_frames
            usable = [i for i, video in enumerate(dataset.videos) if len(video.frames) >= need and video.expressions]
            if not usable:
                raise DataError(f"{dataset.name} ({dataset.split}) has no video of {need} frames with expressions")
            self._usable.append(usable)

    @classmethod
    def open(cls, root: Path, recipe: Recipe, config: GlusConfig) -> Mix:
        """The recipe's data sets under one folder."""
        datasets = [open_dataset(part.dataset, root, part.split) for part in recipe.parts]
        return cls(datasets, [part.weight for part in recipe.parts], recipe, config)

    def sample(self, rng: np.random.Generator) -> Sample:
        """Draw one clip."""
        number = int(rng.choice(len(self.datasets), p=self._chance))
        dataset = self.datasets[number]
        video = int(rng.choice(self._usable[number]))
        record, window, wording = dataset.videos[video], self.config.window, self.config.prompt
        length = len(record.frames)
        bounds = np.linspace(0, length, window.context_frames + 1).astype(int)
        context = [int(rng.integers(low, max(high, low + 1))) for low, high in pairwise(bounds)]
        start = int(rng.integers(0, length - window.query_frames + 1))
        query = list(range(start, start + window.query_frames))
        asked = rng.choice(
            len(record.expressions), min(self.recipe.expressions, len(record.expressions)), replace=False
        ).tolist()
        pictures = {t: dataset.frame(video, t) for t in {*(min(c, length - 1) for c in context), *query}}
        texts, masks, keys = [], [], []
        for place in asked:
            expression = record.expressions[place]
            phrase, truth = expression.text, np.stack([dataset.mask(video, place, t) for t in query])
            absent = self.recipe.no_target > 0 and rng.random() < self.recipe.no_target
            if absent:
                phrase, truth = self._foreign(rng, number, video), np.zeros_like(truth)
            templates = [
                (int(rng.integers(len(wording.questions))), int(rng.integers(len(wording.answers)))) for _ in query
            ]
            texts.append(training_text(clean_expression(phrase), templates, window.context_frames, wording))
            masks.append(truth)
            objects = frozenset() if absent else frozenset(expression.objects)
            keys += [
                TokenKey("" if absent else dataset.name, record.name, expression.id, objects, record.frame_names[t])
                for t in query
            ]
        return Sample(
            tuple(pictures[min(c, length - 1)] for c in context),
            tuple(pictures[t] for t in query),
            tuple(texts),
            np.stack(masks),
            tuple(keys),
        )

    def _foreign(self, rng: np.random.Generator, number: int, video: int) -> str:
        """A phrase of another video."""
        dataset = self.datasets[number]
        others = [i for i in self._usable[number] if i != video] or [video]
        expressions = dataset.videos[int(rng.choice(others))].expressions
        return expressions[int(rng.integers(len(expressions)))].text


def step_rng(seed: int, step: int, process: int, place: int) -> np.random.Generator:
    """The generator of one place in one step."""
    return np.random.default_rng([seed, step, process, place])


def collate(
    samples: Sequence[Sample], tokenizer: Tokenizer, config: GlusConfig
) -> tuple[TrainingBatch, list[Tensor], list[TokenKey]]:
    """Lay clips out for `Glus.forward`: the batch, (K, Q, H, W) truth of each clip, and a key for each embedding."""
    ids = [expand_images(prompt_ids(tokenizer, text), config.vision.tokens) for s in samples for text in s.texts]
    longest = max(len(row) for row in ids)
    if longest > config.language.max_positions:
        raise DataError(f"a conversation has {longest} positions; the model has {config.language.max_positions}")
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    seg = config.language.seg_token_id
    places = torch.tensor([[at - 1 for at, token in enumerate(row) if token == seg] for row in ids])
    batch = TrainingBatch(
        context=torch.stack([torch.stack([clip_pixels(f, config.vision) for f in s.context]) for s in samples]),
        query=torch.stack([torch.stack([clip_pixels(f, config.vision) for f in s.query]) for s in samples]),
        images=torch.stack([_sam(s.query, config) for s in samples]),
        ids=padded,
        clip_of=torch.tensor([number for number, s in enumerate(samples) for _ in s.texts]),
        seg_places=places,
    )
    return batch, [torch.from_numpy(s.masks) for s in samples], [key for s in samples for key in s.keys]


def _sam(frames: Sequence[Frame], config: GlusConfig) -> Tensor:
    return torch.cat(
        [sam_pixels(torch.from_numpy(np.require(f, requirements=["C", "W"]))[None], config.segmenter) for f in frames]
    )
