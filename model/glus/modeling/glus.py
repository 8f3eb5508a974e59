"""Glus: the three parts wired together. The network is shared by all clips and keeps nothing between calls.

Shape alphabet, used in the whole package: B clips, T frames, K expressions (objects), N anything batched, L tokens of a
sequence, D width of the language model, C width of the segmenter, M channels of a memory, H W pixels of the video,
h w of the mask logits, g side of the memory grid, S side of the segmenter's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glus.config import GlusConfig
from glus.modeling.language import Language, Prefix, pad_windows
from glus.modeling.recurrence import GraphedStep, Step, recurrent_step
from glus.modeling.segmenter import ImageFeatures, Segmenter
from glus.modeling.vision import VisionTower
from glus.processing import IMAGE_ID

if TYPE_CHECKING:
    from glus.tokenizer import Tokenizer


class Glus(nn.Module):
    """GLUS with its vocabulary.

    Attributes:
        config: sizes and rules.
        tokenizer: text to ids.
        name: what it was loaded from, for reports; not a path that must exist.
    """

    def __init__(self, config: GlusConfig, tokenizer: Tokenizer, name: str = "unnamed") -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.name = name
        width, out = config.language.hidden_size, config.segmenter.hidden_size
        self.vision = VisionTower(config.vision)
        self.projector = nn.Linear(config.vision.hidden_size, width)
        self.language = Language(config.language)
        self.text_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
        self.segmenter = Segmenter(config.segmenter)
        self.use_cuda_graphs = True  # no effect on a CPU
        self._graphed: GraphedStep | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.projector.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept and computed in."""
        return self.projector.weight.dtype

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(N, 3, s, s) CLIP pixels -> (N, 64, D): an image as the language model sees it."""
        return self.projector(self.vision(pixels.to(self.device, self.dtype)))  # type: ignore[no-any-return]

    def embed_prompt(self, ids: Tensor, images: Tensor) -> Tensor:
        """Embeddings of expanded ids with the images' tokens put in their places.

        Args:
            ids: (L,) ids, IMAGE_ID repeated once per image token.
            images: (I, 64, D) tokens of the images in order.

        Returns:
            (L, D).
        """
        places = ids == IMAGE_ID
        embeddings = self.language.embed(ids)
        return embeddings.masked_scatter(places[:, None], images.reshape(-1, images.shape[-1]).to(embeddings))

    def read_prefix(self, ids: Tensor, images: Tensor) -> Prefix:
        """Read the opening that all windows of a clip share; see `processing.split_prefix`."""
        return self.language.read_prefix(self.embed_prompt(ids, images))

    def read_windows(self, prefix: Prefix, windows: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The state that predicts [SEG] for each window.

        Args:
            prefix: of `read_prefix`.
            windows: pairs of (L_i,) expanded ids and (I_i, 64, D) image tokens.

        Returns:
            (N, D) final hidden states.
        """
        embeddings, last = pad_windows([self.embed_prompt(ids, images) for ids, images in windows])
        return self.language.read_windows(prefix, embeddings, last)

    def _apply(self, fn: Any, recurse: bool = True) -> Glus:  # noqa: ANN401 - nn.Module's own signature
        self.forget_graphs()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def recurrent_step(
        self, features: ImageFeatures, prompts: Tensor, memories: Tensor | None, *, remember: bool
    ) -> Step:
        """Look at memories, decode, remember; see `recurrence.recurrent_step`. Replays a CUDA graph where it can."""
        if self.device.type != "cuda" or not self.use_cuda_graphs or torch.is_grad_enabled():
            return recurrent_step(self.segmenter, features, prompts, memories, remember=remember)
        if self._graphed is None:
            self._graphed = GraphedStep(self.segmenter)
        return self._graphed(features, prompts, memories, remember=remember)

    def forget_graphs(self) -> None:
        """Drop captured CUDA graphs; to be called after weights were replaced, and to free their memory."""
        self._graphed = None
