"""SAM 2 behind one adapter: image features, mask from an embedding, memory. The only file that touches transformers'
SAM 2 internals; keeps no state between calls and knows neither text nor video.

Shapes: N images or objects in a batch, S side of the input image, g = S/16 side of the memory grid, C hidden size (256),
M memory channels (64), T memories attended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
from transformers.models.sam2_video.configuration_sam2_video import (
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from glus.config import MemoryFuserGamma, SegmenterConfig
from glus.modeling.sam2_names import FUSER_GAMMA

RESET_GAMMA = 1e-6  # what the published evaluation script ran with: its library lost the trained values on loading


@dataclass(frozen=True)
class ImageFeatures:
    """Features of N images, finest first; the two finer ones have been through the decoder's 1x1 convolutions."""

    fine: Tensor  # (N, C/8, 4g, 4g)
    middle: Tensor  # (N, C/4, 2g, 2g)
    coarse: Tensor  # (N, C, g, g)

    def __getitem__(self, index: slice) -> ImageFeatures:
        return ImageFeatures(self.fine[index], self.middle[index], self.coarse[index])

    def expand(self, objects: int) -> ImageFeatures:
        """The same single image for several objects, without a copy."""
        fine, middle, coarse = (x.expand(objects, -1, -1, -1) for x in (self.fine, self.middle, self.coarse))
        return ImageFeatures(fine, middle, coarse)


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says about N objects."""

    logits: Tensor  # (N, 4g, 4g) the selected mask
    iou: Tensor  # (N,) predicted IoU of it, 0..1
    token: Tensor  # (N,) which mask token it came from: 0 = single-mask token, 1..3 = multimask tokens
    stability: Tensor  # (N,) stability score of the single-mask token
    all_logits: Tensor  # (N, 4, 4g, 4g)
    all_iou: Tensor  # (N, 4)
    object_score: Tensor  # (N,) logit; trained in SAM 2, not used by GLUS


class _AllMasksDecoder(Sam2VideoMaskDecoder):  # type: ignore[misc] # transformers is untyped
    """The library's decoder, giving all four masks: choosing among them is `select_mask`'s business."""

    def train(self, mode: bool = True) -> _AllMasksDecoder:  # noqa: ARG002
        # In training mode the library would cut the masks down to token 0; nothing else in it depends on the mode.
        super().train(mode=False)
        return self

    def _dynamic_multimask_via_stability(self, masks: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        return masks, iou


def build_sam2(config: SegmenterConfig) -> Sam2VideoModel:
    """SAM 2 modules of transformers at our sizes, with every width that the library hard-wires put right."""
    widths = [config.embed_dim * 2**i for i in range(len(config.stages))]
    grids = [[config.image_size // s] * 2 for s in (4, 8, 16)]
    backbone = Sam2HieraDetConfig(
        hidden_size=config.embed_dim,
        num_attention_heads=config.heads,
        image_size=[config.image_size] * 2,
        blocks_per_stage=list(config.stages),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[config.heads * 2**i for i in range(len(config.stages))],
        window_size_per_stage=list(config.windows),
        window_positional_embedding_background_size=list(config.window_background),
        global_attention_blocks=list(config.global_attention_blocks),
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=grids,
        fpn_hidden_size=config.hidden_size,
    )
    decoder = Sam2VideoMaskDecoderConfig(
        hidden_size=config.hidden_size,
        mlp_dim=config.decoder_mlp,
        num_attention_heads=config.decoder_heads,
        iou_head_hidden_dim=config.iou_head_size,
        dynamic_multimask_via_stability=True,
    )
    sam2_config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(
            hidden_size=config.hidden_size, image_size=config.image_size, patch_size=16
        ),
        mask_decoder_config=decoder,
        image_size=config.image_size,
        num_maskmem=config.memory_slots,
        enable_occlusion_spatial_embedding=config.occlusion_embedding,
        enable_temporal_pos_encoding_for_object_pointers=config.pointer_time_projection,
        memory_attention_hidden_size=config.hidden_size,
        memory_attention_num_layers=config.memory_attention_layers,
        memory_attention_feed_forward_hidden_size=config.memory_attention_mlp,
        memory_attention_dropout=config.memory_attention_dropout,
        memory_attention_rope_dropout=config.memory_attention_dropout,
        memory_attention_rope_feat_sizes=[config.grid] * 2,
        memory_encoder_hidden_size=config.hidden_size,
        memory_encoder_output_channels=config.memory_size,
        mask_downsampler_embed_dim=config.mask_downsampler_size,
        memory_fuser_num_layers=config.memory_fuser_layers,
        memory_fuser_embed_dim=config.hidden_size,
        memory_fuser_intermediate_dim=4 * config.hidden_size,
    )
    model = Sam2VideoModel(sam2_config)
    model.mask_decoder = _AllMasksDecoder(model.config.mask_decoder_config)
    for layer in model.memory_attention.layers:  # the library writes 64 here, whatever the memory's width
        attention = layer.cross_attn_image
        attention.k_proj = nn.Linear(config.memory_size, attention.internal_dim)
        attention.v_proj = nn.Linear(config.memory_size, attention.internal_dim)
    return model


class Segmenter(nn.Module):
    """SAM 2's sub-modules, called one by one: `image_features`, `condition`, `decode`, `encode_memory`."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.sam2 = build_sam2(config)
        self._trained_gamma: dict[str, Tensor] = {}
        self._codes: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    # ---- weights ----------------------------------------------------------------------------------------------------

    def set_memory_fuser_gamma(self, convention: MemoryFuserGamma) -> None:
        """Use the memory fuser's trained scales, or 1e-6 as the published evaluation did. May be switched at will."""
        with torch.no_grad():  # in place: captured CUDA graphs hold the address
            for name, parameter in self.sam2.named_parameters():
                if not FUSER_GAMMA.search(name):
                    continue
                if convention == "reset":
                    self._trained_gamma.setdefault(name, parameter.detach().clone())
                    parameter.data.fill_(RESET_GAMMA)
                elif name in self._trained_gamma:
                    parameter.data.copy_(self._trained_gamma.pop(name))

    def trained_gamma(self) -> dict[str, Tensor]:
        """Trained scales that `set_memory_fuser_gamma("reset")` put aside, by the SAM 2 module's parameter name."""
        return dict(self._trained_gamma)

    # ---- position codes: made once in float32, because in bfloat16 they are off by up to 0.1 ------------------------

    def _code(self, kind: str, like: Tensor) -> Tensor:
        key = (kind, like.device, like.dtype)
        if key not in self._codes:
            grid, config = self.config.grid, self.config
            with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
                if kind == "dense":
                    matrix = self.sam2.shared_image_embedding.positional_embedding.detach().float()
                    code = fourier_code(grid, matrix)
                else:
                    channels = config.hidden_size if kind == "image" else config.memory_size
                    code = sine_code(grid, channels, like.device)
            self._codes[key] = code.to(like)
        return self._codes[key]

    def _apply(self, fn: Any, recurse: bool = True) -> Segmenter:
        self._codes.clear()  # moved or cast: the cached codes follow the weights
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def dense_code(self, like: Tensor) -> Tensor:
        """(C, g, g) Fourier position code of the decoder's image side."""
        return self._code("dense", like)

    def image_code(self, like: Tensor) -> Tensor:
        """(C, g, g) sine position code of the coarse feature map."""
        return self._code("image", like)

    def memory_code(self, like: Tensor) -> Tensor:
        """(M, g, g) sine position code of a memory."""
        return self._code("memory", like)

    # ---- the four parts ---------------------------------------------------------------------------------------------

    def image_features(self, pixels: Tensor) -> ImageFeatures:
        """Hiera and its feature pyramid.

        Args:
            pixels: (N, 3, S, S) normalised image, aspect ratio squashed to a square.
        """
        fine, middle, coarse = self.sam2.vision_encoder(pixels, return_dict=True).fpn_hidden_states[:3]
        decoder = self.sam2.mask_decoder
        return ImageFeatures(decoder.conv_s0(fine), decoder.conv_s1(middle), coarse)

    def condition(self, coarse: Tensor, memories: Tensor | None) -> Tensor:
        """The coarse features with what is remembered worked in.

        Args:
            coarse: (N, C, g, g) raw encoder output.
            memories: (N, T, M, g, g), oldest first, or None when nothing is remembered (the learnt "no memory"
                embedding is added instead).

        Returns:
            (N, C, g, g).
        """
        if memories is None:
            nothing: Tensor = self.sam2.no_memory_embedding
            return coarse + nothing.reshape(1, -1, 1, 1).to(coarse)
        batch, channels, grid, _ = coarse.shape
        count = memories.shape[1]
        tokens = memories.flatten(3).permute(1, 3, 0, 2).reshape(count * grid * grid, batch, -1)  # (T*g*g, N, M)
        code = self.memory_code(memories).flatten(1).t()[:, None]  # (g*g, 1, M)
        out = self.sam2.memory_attention(
            coarse.flatten(2).permute(2, 0, 1),
            tokens,
            self.image_code(coarse).flatten(1).t()[:, None].expand(-1, batch, -1),
            code.repeat(count, 1, 1).expand(-1, batch, -1),
            0,
        )
        # (1, N, g*g, C): the library says sequence first but returns this
        flat: Tensor = out.reshape(batch, grid * grid, channels)
        return flat.transpose(1, 2).reshape(batch, channels, grid, grid)

    def decode(self, features: ImageFeatures, conditioned: Tensor, prompt: Tensor, *, single: bool = False) -> Decoded:
        """Masks from an embedding that is the only sparse prompt.

        Args:
            features: of N images (or one, expanded).
            conditioned: (N, C, g, g) from `condition`.
            prompt: (N, C) the language model's embedding of the object.
            single: take mask token 0 whatever its stability, as in training.
        """
        batch = prompt.shape[0]
        dense = self.sam2.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).to(conditioned)
        masks, iou, _, object_score = self.sam2.mask_decoder(
            image_embeddings=conditioned,
            image_positional_embeddings=self.dense_code(conditioned)[None].expand(batch, -1, -1, -1),
            sparse_prompt_embeddings=prompt[:, None, None],
            dense_prompt_embeddings=dense.expand(batch, -1, *conditioned.shape[-2:]),
            multimask_output=False,
            high_resolution_features=[features.fine, features.middle],
        )
        logits, scores = masks.squeeze(1).float(), iou.squeeze(1).float()
        # the library scores all four tokens; the single-mask token is first
        stability = stability_score(logits[:, 0], self.config.stability_delta)
        chosen = torch.zeros_like(scores[:, 0], dtype=torch.long)
        if not single:
            best = scores[:, 1:].argmax(dim=1) + 1
            chosen = torch.where(stability >= self.config.stability_threshold, chosen, best)
        pick = chosen[:, None]
        return Decoded(
            logits=logits.gather(1, pick[..., None, None].expand(-1, -1, *logits.shape[-2:])).squeeze(1),
            iou=scores.gather(1, pick).squeeze(1),
            token=chosen,
            stability=stability,
            all_logits=logits,
            all_iou=scores,
            object_score=object_score.reshape(batch).float(),
        )

    def point_prompts(self, points: Tensor, positive: Tensor) -> Tensor:
        """Sparse prompts of single points, as SAM 2 encodes them.

        Args:
            points: (..., 2) x and y, 0..1 of the squashed image.
            positive: (...) bool: on the object, or off it.

        Returns:
            (..., C).
        """
        matrix = self.sam2.shared_image_embedding.positional_embedding.detach().float()
        with torch.autocast(points.device.type, enabled=False):
            angle = 2 * torch.pi * ((2 * points.float() - 1) @ matrix)
            code = torch.cat((angle.sin(), angle.cos()), dim=-1)
        kinds: Tensor = self.sam2.prompt_encoder.point_embed.weight  # off, on, box corners
        return code.to(kinds) + kinds[positive.long()]

    def encode_memory(self, conditioned: Tensor, logits: Tensor) -> Tensor:
        """A memory of the mask just decided.

        The feature that it is fused with is the memory-conditioned one: so GLUS was trained, where SAM 2 takes the raw.

        Args:
            conditioned: (N, C, g, g) from `condition`.
            logits: (N, 4g, 4g) mask logits.

        Returns:
            (N, M, g, g).
        """
        size = (self.config.image_size, self.config.image_size)
        mask = F.interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)
        mask = mask.sigmoid() * self.config.sigmoid_scale + self.config.sigmoid_bias
        memory, _ = self.sam2.memory_encoder(conditioned, mask.to(conditioned))
        return memory  # type: ignore[no-any-return]


def stability_score(logits: Tensor, delta: float) -> Tensor:
    """Area above +delta over area above -delta, of (N, h, w) logits; 1 where the latter is empty. Returns (N,)."""
    inner = (logits > delta).flatten(1).sum(1)
    outer = (logits > -delta).flatten(1).sum(1)
    return torch.where(outer > 0, inner.float() / outer.clamp(min=1).float(), torch.ones_like(inner, dtype=torch.float))


def sine_code(grid: int, channels: int, device: torch.device) -> Tensor:
    """(channels, grid, grid) float32 sine position code, y half first, positions scaled to 2 pi."""
    half = channels // 2
    place = torch.arange(1, grid + 1, dtype=torch.float32, device=device) / (grid + 1e-6) * (2 * torch.pi)
    power = 2 * torch.div(torch.arange(half, dtype=torch.float32, device=device), 2, rounding_mode="floor") / half
    angle = place[:, None] / 10000.0**power
    wave = torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1).t()  # (half, grid)
    return torch.cat((wave[:, :, None].expand(-1, -1, grid), wave[:, None, :].expand(-1, grid, -1)))


def fourier_code(grid: int, matrix: Tensor) -> Tensor:
    """(2F, grid, grid) random Fourier code of pixel centres, from the checkpoint's (2, F) matrix."""
    centre = (torch.arange(grid, dtype=torch.float32, device=matrix.device) + 0.5) / grid
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    angle = 2 * torch.pi * ((2 * torch.stack((x, y), dim=-1) - 1) @ matrix)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).permute(2, 0, 1)
