"""The part of a step that waits for the step before: look at memories, decode, remember. As one call, and on CUDA as one
captured graph, because its few milliseconds of work are some 400 kernel launches that cost more than they do.

Measured on an H200 at full size (see benchmarks/results): the figures are in the README's table.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from glus.modeling.segmenter import Decoded, ImageFeatures, Segmenter

MAX_GRAPHS = 24  # (objects, memories) pairs kept captured; one clip needs 8 for its first steps
_WARM_UP = 2  # runs before a capture: libraries choose their kernels in them


@dataclass(frozen=True)
class Step:
    """What one recurrent step gives for N objects."""

    decoded: Decoded
    memory: Tensor | None  # (N, M, g, g)


def recurrent_step(
    segmenter: Segmenter, features: ImageFeatures, prompts: Tensor, memories: Tensor | None, *, remember: bool
) -> Step:
    """One frame, N objects that remember the same frames.

    Args:
        segmenter: SAM 2.
        features: of the one image.
        prompts: (N, C) embeddings.
        memories: (N, T, M, g, g), oldest first, or None.
        remember: whether a memory of this step is wanted.
    """
    count = prompts.shape[0]
    conditioned = segmenter.condition(features.coarse.expand(count, -1, -1, -1), memories)
    decoded = segmenter.decode(features.expand(count), conditioned, prompts)
    memory = segmenter.encode_memory(conditioned, decoded.logits) if remember else None
    return Step(decoded, memory)


class GraphedStep:
    """`recurrent_step` replayed from captured CUDA graphs, one for each (objects, memories) pair; same results.

    The graphs hold the addresses of the segmenter's weights: make a new one when the weights are replaced.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._graphs: dict[tuple[int, int, bool], Callable[..., Step]] = {}
        self._pool: Any = None
        self._turn = threading.Lock()

    def __call__(self, features: ImageFeatures, prompts: Tensor, memories: Tensor | None, *, remember: bool) -> Step:
        """See `recurrent_step`."""
        key = (prompts.shape[0], 0 if memories is None else memories.shape[1], remember)
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))  # the oldest
            self._graphs[key] = self._capture(features, prompts, memories, remember)
        with self._turn:  # the buffers that graphs read are shared by all who call
            return self._graphs[key](features, prompts, memories)

    def _capture(
        self, features: ImageFeatures, prompts: Tensor, memories: Tensor | None, remember: bool
    ) -> Callable[..., Step]:
        still = ImageFeatures(*(getattr(features, f.name).clone() for f in fields(ImageFeatures)))
        still_prompts = prompts.clone()
        still_memories = None if memories is None else memories.clone()

        def run() -> Step:
            return recurrent_step(self._segmenter, still, still_prompts, still_memories, remember=remember)

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()

        def replay(features: ImageFeatures, prompts: Tensor, memories: Tensor | None) -> Step:
            for f in fields(ImageFeatures):
                getattr(still, f.name).copy_(getattr(features, f.name))
            still_prompts.copy_(prompts)
            if still_memories is not None and memories is not None:
                still_memories.copy_(memories)
            graph.replay()
            # graphs share their memory: results are copied out before the next one runs
            decoded = Decoded(*(getattr(result.decoded, f.name).clone() for f in fields(Decoded)))
            return Step(decoded, None if result.memory is None else result.memory.clone())

        return replay
