"""Segment a clip as its frames come: VideoSession holds what time needs, the network holds nothing.

A session takes frames one at a time (or a few together, which a GPU likes), computes each frame's CLIP and SAM 2
features once for all expressions, and keeps a bounded window: the image tokens of the last three frames and, per
expression, the memories that a later step can still ask for. It does not know files, tasks or HTTP.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from glus.config import MemoryConfig
from glus.errors import PromptError, SettingError
from glus.masks import NO_OBJECT_LOGIT, FrameMask
from glus.memory import MemoryBank
from glus.modeling.glus import Glus
from glus.modeling.language import Prefix
from glus.modeling.segmenter import ImageFeatures
from glus.processing import (
    Frame,
    check_frame,
    clean_expression,
    clip_pixels,
    context_indices,
    expand_images,
    prompt_ids,
    prompt_text,
    sam_pixels,
    split_prefix,
)

if TYPE_CHECKING:
    from glus.video import FrameSource

    Video = str | os.PathLike[str] | Sequence[Frame] | FrameSource

CUDA_CHUNK = 8  # frames read together: the image encoders and the language model are then busy, not waiting
WINDOW_TOKENS = 16_384  # positions given to the language model at once, so that many expressions do not exhaust memory


@dataclass(frozen=True)
class _Pixels:
    """A frame prepared for the two encoders."""

    height: int
    width: int
    clip: Tensor  # (3, s, s) float32
    sam: Tensor  # (3, S, S) float32, or (H, W, 3) uint8 to be resized on the GPU


@dataclass(frozen=True)
class _Opening:
    """What all sessions of a clip share: the opening's keys and values, and the ids of windows of 1..4 frames."""

    prefix: Prefix
    windows: tuple[tuple[Tensor, ...], ...]  # [expression][frames - 1] -> (L,) expanded ids


class VideoSession:
    """One pass over one clip, for one or several expressions.

    Args:
        model: shared, not changed.
        expressions: a phrase or several.
        context: the frames that give the overview, (H, W, 3) uint8 RGB; as many as the model's window says (4).
        memory: whether the mask decoder remembers past frames; or the rule by which it does.
        first_frame: index that the first frame of the pass has in its video.
        direction: +1 if frames come in order, -1 if backwards.

    Raises:
        PromptError: an expression that cannot be asked.
        SettingError: a wrong number of context frames.
    """

    def __init__(
        self,
        model: Glus,
        expressions: str | Sequence[str],
        context: Sequence[Frame],
        *,
        memory: bool | MemoryConfig = True,
        first_frame: int = 0,
        direction: int = 1,
    ) -> None:
        self.model = model
        self.expressions = _expressions(model, expressions)
        wanted = model.config.window.context_frames
        if len(context) != wanted:
            raise SettingError(f"{len(context)} context frames were given; this model was trained with {wanted}")
        self._rule = memory if isinstance(memory, MemoryConfig) else (model.config.memory if memory else None)
        with torch.inference_mode():
            pixels = torch.stack([clip_pixels(check_frame(frame), model.config.vision) for frame in context])
            self._opening = _read_opening(model, self.expressions, model.image_tokens(pixels))
        self._count = 0  # steps done in this pass
        self._first, self._direction = first_frame, direction
        self._tokens: list[Tensor] = []  # (64, D) each, of the last frames
        self._banks = self._empty_banks()
        self._before: VideoSession | None = None  # as it was before the chunk whose masks are being handed out

    def _empty_banks(self) -> list[MemoryBank]:
        return [MemoryBank(self._rule) for _ in self.expressions] if self._rule else []

    @property
    def next_frame(self) -> int:
        """Index of the frame that the next step takes."""
        return self._first + self._direction * self._count

    @property
    def steps_done(self) -> int:
        """Frames segmented in this pass; the memory rule counts by it."""
        return self._count

    @property
    def memories(self) -> int:
        """Memories held now, over all expressions; bounded by the memory rule, not by the clip."""
        return sum(len(bank) for bank in self._banks)

    def turn(self, direction: int = -1) -> VideoSession:
        """A session that goes on from this one's only frame in another direction, sharing its features.

        For a key frame: do one step, turn, then run one session forwards and the other backwards.

        Raises:
            SettingError: more than one step was done, so there is no single frame to turn at.
        """
        if self._count != 1:
            raise SettingError(f"a session turns after its first step; this one has done {self._count}")
        return self._twin(direction)

    def fresh(self) -> VideoSession:
        """A session at the start of its pass over the same clip; the opening is not read again."""
        twin = self._twin(self._direction)
        twin._count, twin._tokens = 0, []
        twin._banks = self._empty_banks()
        return twin

    def _twin(self, direction: int) -> VideoSession:
        twin = object.__new__(VideoSession)
        twin.__dict__.update(self.__dict__)
        twin._direction = direction
        twin._tokens = list(self._tokens)
        twin._banks = [bank.copy() for bank in self._banks]
        twin._before = None
        return twin

    def step(self, frame: Frame) -> list[FrameMask]:
        """Segment the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            One FrameMask for each expression, in their order.
        """
        return self.steps([frame])[0]

    def steps(self, frames: Sequence[Frame]) -> list[list[FrameMask]]:
        """Segment the next few frames together; the same results as one by one, up to rounding.

        Returns:
            For each frame, one FrameMask for each expression.
        """
        return self._steps([self._prepare(frame) for frame in frames]) if len(frames) else []

    def run(self, frames: Iterable[Frame], chunk: int | None = None) -> Iterator[FrameMask]:
        """Segment all frames of an iterator, reading and preparing ahead while the model works.

        Args:
            frames: (H, W, 3) uint8 RGB each, in the session's direction.
            chunk: how many are segmented together; by default 8 on CUDA and 1 on a CPU. At most two chunks of frames
                are held.

        Yields:
            All expressions of a frame, then the next frame.
        """
        size = chunk or (CUDA_CHUNK if self.model.device.type == "cuda" else 1)
        frames = iter(frames)
        with ThreadPoolExecutor(max_workers=min(4, size)) as pool:

            def ahead() -> list[_Pixels] | None:
                futures = [pool.submit(self._prepare, frame) for frame in islice(frames, size)]
                return [future.result() for future in futures] or None

            reader = ThreadPoolExecutor(max_workers=1)
            try:
                pending = reader.submit(ahead)
                while (pixels := pending.result()) is not None:
                    pending = reader.submit(ahead)
                    self._before = self._twin(self._direction)
                    masks = [mask for row in self._steps(pixels) for mask in row]
                    yield from masks[:-1]
                    self._before = None  # with the last one, the chunk has been handed out
                    yield masks[-1]
            finally:
                self._before = None
                reader.shutdown(wait=True, cancel_futures=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next step needs besides the model and the context frames, on the CPU.

        While `run` is handing out the masks of a chunk, this is the state before that chunk.
        """
        if self._before is not None:
            return self._before.state_dict()
        state = {"count": torch.tensor(self._count)}
        for number, tokens in enumerate(self._tokens):
            state[f"tokens.{number}"] = tokens.cpu().clone()
        for expression, bank in enumerate(self._banks):
            for frame, memory in bank.entries().items():
                state[f"memory.{expression}.{frame}"] = memory.cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken; the session must have been made with the same arguments."""
        device = self.model.device
        self._count = int(state["count"])
        names = sorted((n for n in state if n.startswith("tokens.")), key=lambda n: int(n.removeprefix("tokens.")))
        self._tokens = [state[name].to(device) for name in names]
        for number, bank in enumerate(self._banks):
            prefix = f"memory.{number}."
            entries = {
                int(name.removeprefix(prefix)): m.to(device) for name, m in state.items() if name.startswith(prefix)
            }
            bank.restore(entries)

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _prepare(self, frame: Frame) -> _Pixels:
        check_frame(frame)
        raw = torch.from_numpy(np.require(frame, requirements=["C", "W"]))  # a copy only where it must be one
        on_gpu = self.model.device.type == "cuda"
        sam = raw if on_gpu else sam_pixels(raw[None], self.model.config.segmenter)[0]
        return _Pixels(frame.shape[0], frame.shape[1], clip_pixels(frame, self.model.config.vision), sam)

    @torch.inference_mode()
    def _steps(self, frames: Sequence[_Pixels]) -> list[list[FrameMask]]:
        model = self.model
        new = model.image_tokens(torch.stack([frame.clip for frame in frames]))
        features = model.segmenter.image_features(self._sam_input(frames))
        states = self._read(new)  # (T * K, D), frame by frame
        found, confidence = model.language.seg_answer(states)
        prompts = model.text_head(states)
        count = len(self.expressions)
        found_list = found.reshape(-1, count).tolist()  # the one moment per chunk when we wait for the GPU

        decided = [
            self._decide(features[slice(t, t + 1)], prompts[t * count : (t + 1) * count], found_list[t])
            for t in range(len(frames))
        ]
        logits = torch.stack([small for small, _ in decided])  # (T, K, h, w)
        scores = (torch.stack([iou for _, iou in decided]) * confidence.reshape(-1, count)).clamp(0, 1).tolist()
        return self._masks(frames, logits, scores, found_list)

    def _sam_input(self, frames: Sequence[_Pixels]) -> Tensor:
        model = self.model
        if frames[0].sam.dtype != torch.uint8:
            return torch.stack([frame.sam for frame in frames]).to(model.device, model.dtype)
        same = len({(frame.height, frame.width) for frame in frames}) == 1
        groups = [torch.stack([f.sam for f in frames])] if same else [frame.sam[None] for frame in frames]
        pixels = [sam_pixels(group.to(model.device, non_blocking=True), model.config.segmenter) for group in groups]
        return torch.cat(pixels).to(model.dtype)

    def _read(self, new: Tensor) -> Tensor:
        """States that predict [SEG] for the new frames, (T * K, D). No window depends on an earlier answer: a missed
        one changes only a space that the tokenizer removes, so all windows can be read in one go.
        """
        tokens = [*self._tokens, *new]
        past, query = len(self._tokens), self.model.config.window.query_frames
        windows = []
        for position in range(past, len(tokens)):
            images = torch.stack(tokens[max(0, position - query + 1) : position + 1])
            windows += [(ids[len(images) - 1], images) for ids in self._opening.windows]
        self._tokens = tokens[-(query - 1) :] if query > 1 else []
        longest = max(len(ids) for ids, _ in windows)
        batch = max(1, WINDOW_TOKENS // longest)
        parts = [
            self.model.read_windows(self._opening.prefix, windows[start : start + batch])
            for start in range(0, len(windows), batch)
        ]
        return torch.cat(parts)

    def _decide(self, features: ImageFeatures, prompts: Tensor, found: list[bool]) -> tuple[Tensor, Tensor]:
        """One frame, all expressions: look at the memories, decode, remember. Advances the counter.

        Returns:
            (K, h, w) logits and (K,) predicted IoU.
        """
        frame, count = self._count, len(self.expressions)
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in range(count):
            key = tuple(self._banks[number].frames(frame)) if self._banks else ()
            groups.setdefault(key, []).append(number)  # expressions that remember the same frames go together
        logits: list[Tensor] = [features.coarse] * count
        iou: list[Tensor] = [features.coarse] * count
        for key, members in groups.items():
            memories = None
            if key:
                memories = torch.stack([torch.stack([self._banks[n].get(f) for f in key]) for n in members])
            mine = prompts if len(members) == count else prompts[members]
            step = self.model.recurrent_step(features, mine, memories, remember=bool(self._banks))
            for place, number in enumerate(members):
                logits[number], iou[number] = step.decoded.logits[place], step.decoded.iou[place]
                if step.memory is not None:
                    self._banks[number].advance(frame, step.memory[place] if found[number] else None)
        self._count += 1
        return torch.stack(logits), torch.stack(iou)

    def _masks(
        self, frames: Sequence[_Pixels], logits: Tensor, scores: list[list[float]], found: list[list[bool]]
    ) -> list[list[FrameMask]]:
        first = self.next_frame - self._direction * len(frames)
        small = logits.cpu().numpy()
        results = []
        for t, frame in enumerate(frames):
            size = (frame.height, frame.width)
            full = F.interpolate(logits[t][None], size, mode="bilinear", align_corners=False)[0] > 0
            masks = full.cpu().numpy()
            row = []
            for number in range(len(self.expressions)):
                present = found[t][number] and bool(masks[number].any())
                row.append(
                    FrameMask(
                        frame_index=first + self._direction * t,
                        expression_index=number,
                        mask=masks[number] if present else np.zeros(size, dtype=bool),
                        logits=small[t, number]
                        if found[t][number]
                        else np.full_like(small[t, number], NO_OBJECT_LOGIT),
                        score=scores[t][number] if present else 0.0,
                        present=present,
                    )
                )
            results.append(row)
        return results


def _expressions(model: Glus, expressions: str | Sequence[str]) -> tuple[str, ...]:
    listed = [expressions] if isinstance(expressions, str) else list(expressions)
    if not listed:
        raise PromptError("no prompt was given; say what to segment, for example 'the dog that turns left'")
    return tuple(clean_expression(expression, model.tokenizer.reserved) for expression in listed)


def _read_opening(model: Glus, expressions: Sequence[str], context: Tensor) -> _Opening:
    """Read the opening and lay out the windows of 1..query_frames frames for each expression."""
    window = model.config.window
    tokens = model.config.vision.tokens
    windows, prefix_ids = [], None
    for expression in expressions:
        laid_out = []
        for earlier in range(window.query_frames):
            text = prompt_text(expression, [True] * earlier, window.context_frames, model.config.prompt)
            prefix_ids, ids = split_prefix(prompt_ids(model.tokenizer, text), window.context_frames)
            laid_out.append(torch.tensor(expand_images(ids, tokens), device=model.device))
        windows.append(tuple(laid_out))
        longest = len(expand_images(prefix_ids or [], tokens)) + len(laid_out[-1])
        if longest > model.config.language.max_positions:
            raise PromptError(
                f"the prompt {expression[:60]!r}... takes {longest} positions; the model has "
                f"{model.config.language.max_positions}: use a shorter one"
            )
    opening = torch.tensor(expand_images(prefix_ids or [], tokens), device=model.device)
    return _Opening(model.read_prefix(opening, context), tuple(windows))


class Segmentation:
    """Segment a whole video: context frames chosen, key frame honoured, resumable. Iterate over it once.

    Args:
        model: from `glus.load`.
        video: path of a file or of a folder of images, a sequence of (H, W, 3) uint8 RGB arrays, or an open source.
        expressions: a phrase or several.
        memory: whether the mask decoder remembers past frames.
        key_frame: index of the frame to begin with: forwards from it, then backwards to 0. None begins at 0.
        context_frames: indices of the frames that give the overview; by default spread over the clip.
        state: of `state_dict` of an earlier, interrupted one with the same arguments.
        chunk: frames segmented together; see `VideoSession.run`.
    """

    def __init__(
        self,
        model: Glus,
        video: Video,
        expressions: str | Sequence[str],
        *,
        memory: bool = True,
        key_frame: int | None = None,
        context_frames: Sequence[int] | None = None,
        state: Mapping[str, Tensor] | None = None,
        chunk: int | None = None,
    ) -> None:
        from glus.video import open_video

        self.model = model
        self.expressions = _expressions(model, expressions)  # before the video is opened: the cheaper mistake first
        self.source = open_video(video)
        self.total_frames = len(self.source)
        self._key = 0 if key_frame is None else _index("key frame", key_frame)
        if not 0 <= self._key < self.total_frames:
            raise SettingError(
                f"key frame {key_frame} is outside the clip, which has frames 0 to {self.total_frames - 1}"
            )
        indices = context_indices(self.total_frames, model.config.window.context_frames)
        if context_frames is not None:
            indices = [_in_range(_index("context frame", i), self.total_frames) for i in context_frames]
        self.context_frames = indices
        self._memory, self._chunk = memory, chunk
        self._turned: VideoSession | None = None  # the backward pass, waiting at the key frame
        self._session: VideoSession | None = None
        self._backward = False
        self._state = dict(state) if state else None

    def __iter__(self) -> Iterator[FrameMask]:
        session = self._start()
        if not self._backward:
            if session.steps_done == 0:
                yield from session.run([self.source[self._key]], self._chunk)
            if self._key and session.steps_done == 1:
                self._turned = session.turn()
            if session.next_frame < self.total_frames:
                yield from session.run(self.source.frames(session.next_frame), self._chunk)
            if self._turned is None:
                return
            self._session = session = self._turned
            self._turned, self._backward = None, True
        if session.next_frame >= 0:
            yield from session.run(self.source.frames(session.next_frame, None, -1), self._chunk)

    def _start(self) -> VideoSession:
        context = [self.source[index] for index in self.context_frames]
        session = VideoSession(self.model, self.expressions, context, memory=self._memory, first_frame=self._key)
        if self._state is not None:
            self._backward = bool(self._state["backward"])
            if turned := _part(self._state, "turned."):
                self._turned = session._twin(-1)
                self._turned.load_state_dict(turned)
            session = session._twin(-1 if self._backward else 1)
            session.load_state_dict(_part(self._state, "session."))
        self._session = session
        return session

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on after the last frame that was yielded whole, as CPU tensors."""
        if self._session is None:
            return {}
        state = {"backward": torch.tensor(self._backward)}
        state |= {f"session.{name}": value for name, value in self._session.state_dict().items()}
        if self._turned is not None:
            state |= {f"turned.{name}": value for name, value in self._turned.state_dict().items()}
        return state


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _index(what: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise SettingError(f"{what} {value!r} is not a frame number; wanted a whole number from 0") from error


def _in_range(index: int, length: int) -> int:
    if not -length <= index < length:
        raise SettingError(f"context frame {index} is outside the clip, which has frames 0 to {length - 1}")
    return index


def segment(
    model: Glus,
    video: Video,
    expressions: str | Sequence[str],
    *,
    memory: bool = True,
    key_frame: int | None = None,
    context_frames: Sequence[int] | None = None,
) -> Iterator[FrameMask]:
    """Masks of one or several expressions on every frame of a video.

    Args:
        model: from `glus.load`.
        video: path of a file or of a folder of images, or a sequence of (H, W, 3) uint8 RGB arrays (0-255).
        expressions: a phrase ("the dog that turns left") or several; several share all image features.
        memory: whether the mask decoder remembers past frames.
        key_frame: index of the frame to begin with: forwards from it to the end, then backwards to 0. None: frame 0.
        context_frames: indices of the four frames that give the language model its overview of the clip; by default
            spread over it by the released rule.

    Yields:
        FrameMask: all expressions of a frame, then the next frame; with a key frame K the order of frames is K, K+1,
        ..., n-1, K-1, ..., 0, each once, under its true index.

    Raises:
        PromptError: an expression that cannot be asked. VideoError: a video that cannot be read.
        SettingError: a key frame or context frame outside the clip.
    """
    # not a generator itself: a wrong prompt, video or key frame is an error here, not at the first mask
    return iter(
        Segmentation(model, video, expressions, memory=memory, key_frame=key_frame, context_frames=context_frames)
    )
