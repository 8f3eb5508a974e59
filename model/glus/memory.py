"""Memory bank: which past frames the mask decoder may look at. Knows tensors; not videos, text or HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glus.config import MemoryConfig

if TYPE_CHECKING:
    from torch import Tensor


def memory_frames(frame: int, *, slots: int, stride: int) -> list[int]:
    """Frames that step `frame` may remember, oldest first: the last one, and `slots` - 1 multiples of `stride` before.

    With 7 slots and stride 3, step 20 looks at 3, 6, 9, 12, 15, 18 and 19. Negative ones are left out, so the first
    steps look at fewer and step 0 at none.

    Args:
        frame: counter of the step, from 0 where the pass over the clip began.
        slots: how many frames at most.
        stride: distance of the older ones.
    """
    if frame < 1:
        return []
    newest = (frame - 2) // stride * stride
    older = [newest - k * stride for k in reversed(range(slots - 1))]
    return [f for f in older if 0 <= f < frame - 1] + [frame - 1]


def is_needed_after(stored: int, frame: int, *, slots: int, stride: int) -> bool:
    """Whether any step later than `frame` can ask for the memory of frame `stored` (<= `frame`).

    The bound behind a memory that does not grow: of the past, only multiples of the stride no older than the window.
    """
    if stored == frame:
        return True
    newest = (frame - 1) // stride * stride  # for the very next step; later ones only look further ahead
    return stored % stride == 0 and stored >= newest - (slots - 2) * stride and slots > 1


class MemoryBank:
    """Memories of one object in one pass over a clip; holds at most `slots` + 1 of them, whatever the clip's length."""

    def __init__(self, config: MemoryConfig) -> None:
        self._config = config
        self._entries: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def frames(self, frame: int) -> list[int]:
        """Frames remembered that step `frame` may look at, oldest first. One whose answer had no [SEG] is missing."""
        wanted = memory_frames(frame, slots=self._config.slots, stride=self._config.stride)
        return [f for f in wanted if f in self._entries]

    def get(self, frame: int) -> Tensor:
        """The (M, g, g) memory of a frame that `frames` named."""
        return self._entries[frame]

    def advance(self, frame: int, memory: Tensor | None) -> None:
        """Step `frame` is over: keep its (M, g, g) memory (None: nothing to keep), drop what no later step asks for."""
        if memory is not None:
            self._entries[frame] = memory
        slots, stride = self._config.slots, self._config.stride
        self._entries = {
            f: m for f, m in self._entries.items() if is_needed_after(f, frame, slots=slots, stride=stride)
        }

    def copy(self) -> MemoryBank:
        """A bank with the same memories, to go on from here in another direction."""
        twin = MemoryBank(self._config)
        twin._entries = dict(self._entries)
        return twin

    def entries(self) -> dict[int, Tensor]:
        """All memories held, by frame."""
        return dict(self._entries)

    def restore(self, entries: dict[int, Tensor]) -> None:
        """Replace what is held by `entries()` of another bank."""
        self._entries = dict(entries)
