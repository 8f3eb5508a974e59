"""Losses of training: [SEG] prediction, masks, object contrast. Own their weights; know tensors, not data or networks.

Shapes: N expressions, Q query frames, H W pixels of the truth, h w of the logits, C width of a [SEG] embedding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

DICE_SCALE = 1000.0  # the released dice sums thousandths, so its eps of 1e-6 weighs more than it looks
DICE_EPS = 1e-6


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the defaults are the released ones."""

    seg: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    contrast: float = 0.1


def mask_bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross entropy, mean over pixels: (N, H, W) logits and 0/1 truth -> (N,)."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1).mean(1)


def mask_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss with the released scale: (N, H, W) logits and 0/1 truth -> (N,), 0 where equal."""
    chance, truth = logits.sigmoid().flatten(1), truth.flatten(1)
    overlap = 2 * (chance / DICE_SCALE * truth).sum(1)
    total = (chance / DICE_SCALE).sum(1) + (truth / DICE_SCALE).sum(1)
    return 1 - (overlap + DICE_EPS) / (total + DICE_EPS)


def mask_losses(logits: Sequence[Tensor], truth: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """BCE and dice at the truth's size, each a mean over all expressions and frames.

    Args:
        logits: for each clip (K, Q, h, w).
        truth: for each clip (K, Q, H, W), 0 or 1; any number type.
    """
    bce, dice = [], []
    for small, wanted in zip(logits, truth, strict=True):
        full = F.interpolate(small.float(), wanted.shape[-2:], mode="bilinear", align_corners=False).flatten(0, 1)
        target = wanted.flatten(0, 1).to(full)
        bce.append(mask_bce(full, target))
        dice.append(mask_dice(full, target))
    return torch.cat(bce).mean(), torch.cat(dice).mean()


def seg_loss(logits: Tensor, seg_token_id: int) -> Tensor:
    """Cross entropy at the positions that predict [SEG], and at no other: (..., V) logits -> mean."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(flat, flat.new_full((len(flat),), seg_token_id, dtype=torch.long))


@dataclass(frozen=True)
class TokenKey:
    """Where an embedding came from."""

    dataset: str
    video: str
    expression: str
    objects: frozenset[str]
    frame: str


Draw = Callable[[int, int], Tensor]  # (how many, from how many) -> (how many,) indices, with replacement


class ObjectContrast:
    """Pulls together the embeddings of two phrases for one object on one frame, pushes the others apart.

    Keeps a bank of the last embeddings, detached. Of it, an embedding of the same video, frame and object set under
    another expression is the positive (one at random); negatives are drawn with replacement from everything that is
    neither a positive nor the same expression of the same video. No positive or too few candidates: no term. With fewer
    than two terms in a step the loss is 0, as in the released code.

    Args:
        size: embeddings kept.
        negatives: drawn for each term, and candidates needed.
        temperature: of the cosine similarities.
        datasets: only embeddings of these data sets take part.
    """

    def __init__(
        self,
        size: int = 512,
        negatives: int = 128,
        temperature: float = 0.07,
        datasets: Sequence[str] = ("mevis",),
    ) -> None:
        self.negatives, self.temperature, self.datasets = negatives, temperature, frozenset(datasets)
        self.bank: deque[tuple[TokenKey, Tensor]] = deque(maxlen=size)

    def __call__(
        self,
        embeddings: Tensor,
        keys: Sequence[TokenKey],
        *,
        draw_negatives: Draw | None = None,
        draw_positive: Callable[[int], int] | None = None,
    ) -> Tensor:
        """The loss of a step's embeddings, which go into the bank first.

        Args:
            embeddings: (E, C) with gradient.
            keys: one for each.
            draw_negatives: for tests; by default uniform on the embeddings' device.
            draw_positive: for tests; by default uniform.
        """
        taking_part = [i for i, key in enumerate(keys) if key.dataset in self.datasets]
        for i in taking_part:
            self.bank.append((keys[i], embeddings[i].detach().float()))
        choose = draw_positive or (lambda count: int(torch.randint(count, ())))
        terms = []
        for i in taking_part:
            key = keys[i]
            positives = [n for n, (other, _) in enumerate(self.bank) if _same_object(key, other)]
            taken = set(positives)
            pool = [n for n, (other, _) in enumerate(self.bank) if n not in taken and not _same_phrase(key, other)]
            if not positives or len(pool) < self.negatives:
                continue
            if draw_negatives is None:
                drawn = torch.randint(len(pool), (self.negatives,)).tolist()
            else:
                drawn = draw_negatives(self.negatives, len(pool)).tolist()
            others = [positives[choose(len(positives))], *(pool[n] for n in drawn)]
            bank = torch.stack([self.bank[n][1] for n in others]).to(embeddings.device)
            similarity = F.cosine_similarity(embeddings[i][None].float(), bank) / self.temperature
            terms.append(torch.logsumexp(similarity, 0) - similarity[0])
        return torch.stack(terms).mean() if len(terms) >= 2 else embeddings.sum() * 0.0

    def state_dict(self) -> dict[str, list[tuple[TokenKey, Tensor]]]:
        """The bank, for resuming."""
        return {"bank": [(key, value.cpu()) for key, value in self.bank]}

    def load_state_dict(self, state: dict[str, list[tuple[TokenKey, Tensor]]]) -> None:
        """Put a saved bank back."""
        self.bank.clear()
        self.bank.extend(state["bank"])


def _same_phrase(a: TokenKey, b: TokenKey) -> bool:
    return (a.dataset, a.video, a.expression) == (b.dataset, b.video, b.expression)


def _same_object(a: TokenKey, b: TokenKey) -> bool:
    """Another expression for the same objects on the same frame of the same video."""
    same_place = (a.dataset, a.video, a.frame) == (b.dataset, b.video, b.frame)
    return same_place and a.objects == b.objects and a.expression != b.expression
