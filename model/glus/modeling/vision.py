"""CLIP's vision tower and the pooling to 64 tokens an image. Knows pixels and tokens; not text or video."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from glus.config import VisionConfig


class VisionTower(nn.Module):
    """Images to pooled patch features, before the projector."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
                projection_dim=config.projection_dim,
            )
        )

    def patches(self, pixels: Tensor) -> Tensor:
        """Hidden state of the chosen layer without the class token: (N, 3, s, s) -> (N, patches, width)."""
        states = self.clip(pixels, output_hidden_states=True).hidden_states
        return states[self.config.feature_layer][:, 1:]  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, s, s) normalised pixels -> (N, tokens, width).

        Neighbours along the raster sequence are averaged, so a token is a strip of 1 x 4 patches.
        """
        patches = self.patches(pixels)
        count, length, width = patches.shape
        return patches.reshape(count, length // self.config.pool, self.config.pool, width).mean(dim=2)
