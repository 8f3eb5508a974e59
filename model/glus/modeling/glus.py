"""Glus: the three parts wired together. The network is shared by all clips and keeps nothing between calls.

Shape alphabet, used in the whole package: B clips, T frames, K expressions (objects), N anything batched, L tokens of a
sequence, D width of the language model, C width of the segmenter, M channels of a memory, H W pixels of the video,
h w of the mask logits, g side of the memory grid, S side of the segmenter's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glus.config import GlusConfig
from glus.memory import memory_frames
from glus.modeling.language import Language, Prefix, pad_windows
from glus.modeling.recurrence import GraphedStep, Step, recurrent_step
from glus.modeling.segmenter import ImageFeatures, Segmenter
from glus.modeling.vision import VisionTower
from glus.processing import IMAGE_ID

if TYPE_CHECKING:
    from glus.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainingBatch:
    """B clips with N expressions in all, Q query frames each, ready for `Glus.forward`.

    Attributes:
        context: (B, 4, 3, s, s) CLIP pixels of the context frames.
        query: (B, Q, 3, s, s) CLIP pixels of the query frames.
        images: (B, D', 3, S, S) SAM 2 pixels of the decoded frames (all Q of them unless `decode` says otherwise).
        ids: (N, L) expanded ids of whole conversations, padded on the right.
        clip_of: (N,) which clip an expression belongs to; ascending.
        seg_places: (N, Q) positions that predict [SEG].
        decode: which of the query frames get a mask, in ascending order; None: all.
        points: (N, D', 2) x and y, 0..1, of points that are prompted with instead of [SEG] on the D' decoded frames...
        own: (N, D') ... where this is 0; where it is 1 the model's own embedding is decoded.
    """

    context: Tensor
    query: Tensor
    images: Tensor
    ids: Tensor
    clip_of: Tensor
    seg_places: Tensor
    decode: Tensor | None = None
    points: Tensor | None = None
    own: Tensor | None = None


@dataclass(frozen=True)
class GlusOutput:
    """What a training step needs of the network.

    Attributes:
        seg_states: (N, Q, D) states that predict [SEG].
        seg_logits: (N, Q, V) next-token logits there.
        embeddings: (N, Q, C) prompts for the mask decoder.
        mask_logits: (N, D', h, w) of the decoded frames; None if none was asked for.
        mask_iou: (N, D') the decoder's own estimate of its masks' IoU.
        hidden: (N, L, D) final states of all positions.
        patches: (B, 4 + Q, 64, width) CLIP features before the projector.
    """

    seg_states: Tensor
    seg_logits: Tensor
    embeddings: Tensor
    mask_logits: Tensor | None
    mask_iou: Tensor | None
    hidden: Tensor
    patches: Tensor


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

    def forward(
        self,
        batch: TrainingBatch,
        *,
        memory_gradients: bool = False,
        memory: bool = True,
        stride: int = 1,
        masks: bool = True,
    ) -> GlusOutput:
        """One conversation per expression, Q frames answered in one reading, masks frame by frame through the memory.

        Args:
            batch: see `TrainingBatch`.
            memory_gradients: let gradients flow through image features of SAM 2, memory attention and memories. The
                released code computes all of these without gradient.
            memory: whether the mask decoder remembers the earlier decoded frames.
            stride: of the memory rule; 1 in the released training.
            masks: whether masks are decoded at all.
        """
        clips = batch.query.shape[0]
        pixels = torch.cat((batch.context, batch.query), dim=1).flatten(0, 1)
        patches = self.vision(pixels.to(self.device, self.dtype))
        tokens = self.projector(patches)
        images = tokens.reshape(clips, -1, tokens.shape[-1])[batch.clip_of]  # (N, (4 + Q) * 64, D)
        places = batch.ids == IMAGE_ID
        which = (places.long().cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, images.shape[-1])
        embeddings = self.language.embed(batch.ids)
        embeddings = torch.where(places[..., None], images.gather(1, which).to(embeddings), embeddings)
        hidden = self.language.llama.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        states = hidden[torch.arange(len(hidden), device=hidden.device)[:, None], batch.seg_places]
        prompts = self.text_head(states)
        logits, iou = self._training_masks(batch, prompts, memory_gradients, memory, stride) if masks else (None, None)
        patches = patches.reshape(clips, -1, *patches.shape[1:])
        return GlusOutput(states, self.language.llama.lm_head(states), prompts, logits, iou, hidden, patches)

    def _training_masks(
        self, batch: TrainingBatch, prompts: Tensor, memory_gradients: bool, memory: bool, stride: int
    ) -> tuple[Tensor, Tensor]:
        queries = batch.images.shape[1]
        asked = prompts if batch.decode is None else prompts[:, batch.decode]
        if batch.points is not None and batch.own is not None:
            points = self.segmenter.point_prompts(batch.points, torch.ones_like(batch.own))
            asked = torch.where(batch.own[..., None] > 0.5, asked, points.to(asked))
        remembered: dict[int, Tensor] = {}
        logits, iou = [], []
        flow = memory_gradients and torch.is_grad_enabled()
        with torch.set_grad_enabled(flow):
            features = self.segmenter.image_features(batch.images.flatten(0, 1).to(self.dtype))
        for frame in range(queries):
            rows = batch.clip_of * queries + frame
            mine = ImageFeatures(features.fine[rows], features.middle[rows], features.coarse[rows])
            wanted = memory_frames(frame, slots=self.config.memory.slots, stride=stride) if memory else []
            with torch.set_grad_enabled(flow):
                past = torch.stack([remembered[f] for f in wanted], dim=1) if wanted else None
                conditioned = self.segmenter.condition(mine.coarse, past)
            decoded = self.segmenter.decode(mine, conditioned, asked[:, frame], single=True)
            logits.append(decoded.logits)
            iou.append(decoded.iou)
            if memory and frame < queries - 1:
                with torch.set_grad_enabled(flow):
                    remembered[frame] = self.segmenter.encode_memory(conditioned, decoded.logits)
        return torch.stack(logits, dim=1), torch.stack(iou, dim=1)

    def _apply(self, fn: Any, recurse: bool = True) -> Glus:
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
