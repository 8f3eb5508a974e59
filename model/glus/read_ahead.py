"""Reading ahead on a thread of its own, through a bounded queue. Knows threads; not videos or what an item is."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

AHEAD = 8  # frames decoded ahead of the reader: 50 MB at 1080p


def read_ahead(
    produce: Callable[[threading.Event], Iterator[Item]],
    depth: int = AHEAD,
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[Item]:
    """Iterate over `produce(stopped)` from a thread of its own, at most `depth` items ahead; None is no item.

    The thread starts with the first `next()` and ends with this generator, whether it is exhausted, closed or
    collected. What `produce` raises is raised here, with its traceback.
    """
    items: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(max(1, depth))
    stopped = threading.Event()

    def fill() -> None:
        end: BaseException | None = None
        try:
            for item in produce(stopped):
                if stopped.is_set():  # asked before putting: this thread itself may have collected the reader
                    return
                items.put((item, None))
        except BaseException as caught:  # noqa: BLE001 - raised again by the reader
            end = caught
        if not stopped.is_set():
            items.put((None, end))

    thread = threading.Thread(target=fill, name="glus-video-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            before_each()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        error = None
        stopped.set()
        while thread.is_alive() and thread is not threading.current_thread():
            try:
                items.get_nowait()  # a full queue would hold the thread
            except queue.Empty:
                thread.join(0.02)
