"""Names of SAM 2's tensors: what transformers' modules call them -> what Meta's files call them. No tensors here.

Files keep the published names, modules have the library's. One direction is enough for both ways of a checkpoint:
whoever reads or writes goes through the module's tensors and asks where each one stands in the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# module prefix -> (published prefix, rewrites of the rest in order, each at most once)
_RULES: dict[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "vision_encoder.backbone.": (
        "image_encoder.trunk.",
        (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
            (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
            (r"\.layer_norm(\d)\.", r".norm\1."),
        ),
    ),
    "vision_encoder.neck.": ("image_encoder.neck.", ((r"^convs\.(\d+)\.", r"convs.\1.conv."),)),
    "prompt_encoder.": (
        "sam_prompt_encoder.",
        (
            (r"^shared_embedding\.positional_embedding$", "pe_layer.positional_encoding_gaussian_matrix"),
            (r"^mask_embed\.conv1\.", "mask_downscaling.0."),
            (r"^mask_embed\.layer_norm1\.", "mask_downscaling.1."),
            (r"^mask_embed\.conv2\.", "mask_downscaling.3."),
            (r"^mask_embed\.layer_norm2\.", "mask_downscaling.4."),
            (r"^mask_embed\.conv3\.", "mask_downscaling.6."),
        ),
    ),
    "mask_decoder.transformer.": (
        "sam_mask_decoder.transformer.",
        (
            (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
            (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
            (r"\.o_proj\.", ".out_proj."),
            (r"^layer_norm_final_attn\.", "norm_final_attn."),
            (r"\.layer_norm(\d)\.", r".norm\1."),
        ),
    ),
    "mask_decoder.": (
        "sam_mask_decoder.",
        (
            (r"^upscale_conv1\.", "output_upscaling.0."),
            (r"^upscale_layer_norm\.", "output_upscaling.1."),
            (r"^upscale_conv2\.", "output_upscaling.3."),
            (r"\.layers\.0\.", ".layers.1."),
            (r"\.proj_in\.", ".layers.0."),
            (r"\.proj_out\.", ".layers.2."),
        ),
    ),
    "temporal_positional_encoding_projection_layer.": ("obj_ptr_tpos_proj.", ()),
    "object_pointer_proj.": (
        "obj_ptr_proj.",
        ((r"^layers\.0\.", "layers.1."), (r"^proj_in\.", "layers.0."), (r"^proj_out\.", "layers.2.")),
    ),
    "memory_encoder.mask_downsampler.": (
        "memory_encoder.mask_downsampler.",
        (
            # a flat sequence of (conv, norm, activation) triples in the file
            *((rf"^layers\.{i}\.conv\.", f"encoder.{3 * i}.") for i in range(4)),
            *((rf"^layers\.{i}\.layer_norm\.", f"encoder.{3 * i + 1}.") for i in range(4)),
            (r"^final_conv\.", "encoder.12."),
        ),
    ),
    "memory_encoder.": (
        "memory_encoder.",
        (
            (r"^projection\.", "out_proj."),
            (r"^feature_projection\.", "pix_feat_proj."),
            (r"^memory_fuser\.", "fuser."),
            (r"\.depthwise_conv\.", ".dwconv."),
            (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
            (r"\.layer_norm\.", ".norm."),
            (r"\.scale$", ".gamma"),
        ),
    ),
    "memory_attention.": (
        "memory_attention.",
        ((r"\.o_proj\.", ".out_proj."), (r"\.layer_norm(\d)\.", r".norm\1."), (r"^layer_norm\.", "norm.")),
    ),
    "mask_downsample.": ("mask_downsample.", ()),
}
_SINGLE = {
    "memory_temporal_positional_encoding": "maskmem_tpos_enc",
    "no_memory_embedding": "no_mem_embed",
    "no_memory_positional_encoding": "no_mem_pos_enc",
    "no_object_pointer": "no_obj_ptr",
    "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
    # the modules hold the Fourier matrix twice; the file holds it once
    "shared_image_embedding.positional_embedding": "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
}
_ROWS = {  # one tensor of the modules, four of the file: its rows
    "prompt_encoder.point_embed.weight": tuple(f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4))
}

FUSER_GAMMA = re.compile(r"memory_encoder\.memory_fuser\.layers\.\d+\.scale$")


def published_names(module_name: str) -> tuple[str, ...]:
    """Names under which a SAM 2 module tensor stands in a published file.

    Args:
        module_name: key of the transformers module's state dict, such as `mask_decoder.upscale_conv1.weight`.

    Returns:
        One name, or four when the file keeps the tensor's rows apart (to be concatenated along axis 0).

    Raises:
        KeyError: a tensor that SAM 2's files do not have.
    """
    if module_name in _ROWS:
        return _ROWS[module_name]
    if module_name in _SINGLE:
        return (_SINGLE[module_name],)
    for prefix, (published_prefix, rewrites) in _RULES.items():
        if module_name.startswith(prefix):
            rest = module_name.removeprefix(prefix)
            for pattern, text in rewrites:
                rest = re.sub(pattern, text, rest, count=1)
            return (published_prefix + rest,)
    raise KeyError(module_name)
