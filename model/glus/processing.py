"""Frames and an expression -> what the model takes in: pixels, prompt, ids. Prompt wording lives here and nowhere else.

Two views of a frame: CLIP's is cropped (its sides are lost), SAM 2's is squashed to a square (aspect ratio is lost).
Both as in the released code, checked against recorded values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glus.config import IMAGE_END_TOKEN, IMAGE_START_TOKEN, SEG_TOKEN, PromptConfig, SegmenterConfig, VisionConfig
from glus.errors import PromptError, SettingError, VideoError

if TYPE_CHECKING:
    from torch import Tensor

    from glus.tokenizer import Tokenizer

Frame = NDArray[np.uint8]  # (H, W, 3) RGB

IMAGE = "<image>"
IMAGE_ID = -200  # stands where an image's tokens go
PUBLISHED_WORDING = PromptConfig()
MAX_EXPRESSION = 1000  # characters; the language model's window ends near 2,000 positions


# ---- pixels ---------------------------------------------------------------------------------------------------------


def check_frame(frame: Frame, index: int | None = None) -> Frame:
    """The frame itself, if it is (H, W, 3) uint8.

    Raises:
        VideoError: otherwise, saying what came.
    """
    which = "a frame" if index is None else f"frame {index}"
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        got = f"shape {frame.shape}, {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise VideoError(f"{which} is {got}; wanted an (H, W, 3) uint8 RGB array (0-255)")
    if min(frame.shape[:2]) < 1:
        raise VideoError(f"{which} is empty ({frame.shape[1]} x {frame.shape[0]})")
    return frame


def clip_pixels(frame: Frame, config: VisionConfig) -> Tensor:
    """(3, s, s) float32 input of the CLIP tower: shorter side to s (224) by bicubic, centre crop, CLIP's mean and std.

    The resize is Pillow's, on 8-bit values, because the released code resizes before it converts to float.
    """
    import torch
    from PIL import Image

    height, width = frame.shape[:2]
    size = config.image_size
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    new_height, new_width = (size, longer) if height <= width else (longer, size)
    resized = np.asarray(Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BICUBIC))
    top, left = (new_height - size) // 2, (new_width - size) // 2
    crop = torch.from_numpy(resized[top : top + size, left : left + size].copy())
    return normalise(crop.permute(2, 0, 1).float() / 255, config.image_mean, config.image_std)


def sam_pixels(frames: Tensor, config: SegmenterConfig) -> Tensor:
    """(N, 3, S, S) float32 input of SAM 2 from (N, H, W, 3) uint8: squashed to a square, bilinear with antialias.

    Runs where `frames` is, so that a GPU can do it.
    """
    import torch.nn.functional as F  # noqa: N812

    pixels = frames.permute(0, 3, 1, 2).float() / 255
    size = (config.image_size, config.image_size)
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    return normalise(pixels, config.image_mean, config.image_std)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., 3, H, W) pixels 0..1, less the mean of each channel and over its standard deviation."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


# ---- which frames ---------------------------------------------------------------------------------------------------


def context_indices(length: int, count: int = 4) -> list[int]:
    """Frames of a clip that give the language model its overview: near the middle of each of `count` equal parts.

    The rule of the released evaluation script. A clip shorter than `count` gets -1 (its last frame) where a part is
    empty, as there.

    Args:
        length: frames of the clip, at least 1.
        count: how many.
    """
    if length < 1:
        raise SettingError("a clip without frames has no context frames")
    starts = np.linspace(0, length, count + 1, dtype=int)
    offset = math.ceil(length / count) // 2
    return [int(min(start + offset, end - 1)) for start, end in pairwise(starts)]


# ---- text -----------------------------------------------------------------------------------------------------------


def clean_expression(expression: str, reserved: Sequence[str] = ()) -> str:
    """An expression as it stands in the prompt: one trailing dot removed, lower-cased.

    Raises:
        PromptError: nothing is left of it, it holds a token with a meaning of its own, or it is far too long.
    """
    if not isinstance(expression, str):
        raise PromptError(
            f"an expression is {type(expression).__name__}; wanted a string such as 'the dog on the left'"
        )
    if not expression.replace(".", "").strip():
        raise PromptError(
            f"the prompt is empty ({expression!r}); say what to segment, for example 'the dog that turns left'"
        )
    if any("\ud800" <= character <= "\udfff" for character in expression):
        raise PromptError(f"the prompt {expression!r} holds half a character (a lone surrogate); write it again")
    for token in (IMAGE, *reserved):
        if token.lower() in expression.lower():
            raise PromptError(f"the prompt {expression!r} holds {token}, which the model reserves; leave it out")
    if len(expression) > MAX_EXPRESSION:
        raise PromptError(
            f"the prompt has {len(expression)} characters; at most {MAX_EXPRESSION} fit the model's window"
        )
    return expression.removesuffix(".").lower()


def prompt_text(
    expression: str, answered: Sequence[bool], context_frames: int = 4, wording: PromptConfig = PUBLISHED_WORDING
) -> str:
    """The conversation up to the open answer of the newest frame.

    Args:
        expression: cleaned expression.
        answered: for each earlier frame of the window, oldest first, whether its answer held [SEG]. The text then
            differs by a space that the tokenizer removes again, so the ids are the same.
        context_frames: images of the opening.
        wording: of the model.
    """
    text = _opening(context_frames, wording)
    question = _question(wording.questions[0], expression)
    for found in answered:
        ending = f"{SEG_TOKEN}." if found else f"{SEG_TOKEN} ."
        text += f"{question} ASSISTANT: {wording.answer_opening}{ending}</s>USER: "
    return (
        f"{text}{question} ASSISTANT: {wording.answer_opening}"
        if wording.answer_opening
        else f"{text}{question} ASSISTANT:"
    )


def training_text(
    expression: str,
    templates: Sequence[tuple[int, int]],
    context_frames: int = 4,
    wording: PromptConfig = PUBLISHED_WORDING,
) -> str:
    """A whole conversation, one answered question for each query frame.

    Args:
        expression: cleaned expression.
        templates: for each query frame which question and which answer of `wording`.
        context_frames: images of the opening.
        wording: of the model.
    """
    turns = [
        f"{_question(wording.questions[question], expression)} ASSISTANT: {wording.answers[answer]}</s>"
        for question, answer in templates
    ]
    return _opening(context_frames, wording) + "USER: ".join(turns)


def _opening(context_frames: int, wording: PromptConfig) -> str:
    images = f"{IMAGE_START_TOKEN}{IMAGE}{IMAGE_END_TOKEN}" * context_frames
    system = f"{wording.system} " if wording.system else ""
    task = f"{wording.context_task}\n" if wording.context_task else ""
    return f"{system}USER: {images}\n{task}"


def _question(template: str, expression: str) -> str:
    return f"{IMAGE_START_TOKEN}{IMAGE}{IMAGE_END_TOKEN}\n{template.format(expression=expression)}"


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a prompt: BOS, then each stretch between images encoded by itself, with IMAGE_ID between."""
    ids = [tokenizer.bos_id]
    for position, chunk in enumerate(text.split(IMAGE)):
        if position:
            ids.append(IMAGE_ID)
        ids.extend(tokenizer.encode(chunk))
    return ids


def expand_images(ids: Sequence[int], tokens: int) -> list[int]:
    """Each IMAGE_ID repeated once per image token (64), so that ids, labels and hidden states line up."""
    return [i for token in ids for i in ([IMAGE_ID] * tokens if token == IMAGE_ID else [token])]


def split_prefix(ids: Sequence[int], context_frames: int) -> tuple[list[int], list[int]]:
    """Split a prompt before the image of its first question: (what every step shares, the window).

    The first part holds the system text, the context images and the fixed sentence: no expression, so that all
    expressions and all frames of a clip can share its attention keys and values.
    """
    images = [i for i, token in enumerate(ids) if token == IMAGE_ID]
    cut = images[context_frames] - 1  # the <im_start> before the image
    return list(ids[:cut]), list(ids[cut:])
