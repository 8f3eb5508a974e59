"""Door to `glus`: one worker process that owns the model. Knows masks; not Label Studio, HTTP or torch.

The web process starts the worker, hands it one clip at a time and gets masks back as they are made. It
imports neither `glus` nor torch: the worker does.
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from glus_backend.contracts import BoolMask, ObjectMask
from glus_backend.errors import EngineError, EngineTaken, ModelNotLoaded, WorkerDied
from glus_backend.settings import Settings

log = logging.getLogger(__name__)

State = Literal["stopped", "loading", "ready", "failed"]

GLUS_LOADER = "glus_backend.engine:load_glus"
_STOP_SECONDS = 5.0  # between asking a worker to end and ending it


class StepMask(Protocol):
    """What a segmenter yields: the fields that we read of `glus.FrameMask`."""

    @property
    def frame_index(self) -> int:
        """Position of the frame, from 0."""

    @property
    def expression_index(self) -> int:
        """Position of the expression, from 0."""

    @property
    def mask(self) -> BoolMask:
        """(H, W) bool."""

    @property
    def score(self) -> float:
        """0..1."""

    @property
    def present(self) -> bool:
        """Whether the object is on this frame."""


Segmenter = Callable[[str, list[str]], Iterable[StepMask]]
Loader = Callable[..., Segmenter]


def load_glus(
    *, model: str, vision_tower: str | None = None, sam2_config: str | None = None, device: str | None = None
) -> Segmenter:
    """The loader of real models; runs in the worker, the only place where `glus` is imported."""
    import glus

    loaded = glus.load(
        model, vision_tower=vision_tower, sam2_config=sam2_config, device="auto" if device is None else device
    )

    def segment(video: str, prompts: list[str]) -> Iterable[StepMask]:
        steps: Iterable[StepMask] = glus.segment(loaded, video, prompts)
        return steps

    return segment


class Engine:
    """One model, one worker process, one clip at a time; requests wait for their turn.

    Args:
        loader: "module:function" that the worker imports and calls with `options`; it returns a function from
            (video path, prompts) to an iterator of masks.
        options: keyword arguments of the loader.
        lock_file: held while the engine is started, so that a second process is refused instead of loading a
            second copy of the model onto the same GPU.
    """

    def __init__(
        self,
        loader: str = GLUS_LOADER,
        options: Mapping[str, Any] | None = None,
        *,
        lock_file: Path | None = None,
    ) -> None:
        self._loader = loader
        self._options = dict(options or {})
        self._lock_file = lock_file
        self._lock: IO[str] | None = None
        self._turn = threading.Lock()  # held by whoever talks to the worker
        self._worker: _Worker | None = None
        self._state: State = "stopped"
        self._failure = ""
        self._closing = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Engine:
        """An engine for the real model."""
        options = {
            "model": settings.model,
            "vision_tower": settings.vision_tower,
            "sam2_config": settings.sam2_config,
            "device": settings.device,
        }
        return cls(GLUS_LOADER, options, lock_file=settings.data_dir / "engine.lock")

    @property
    def state(self) -> State:
        """`loading` until the weights are there; `failed` if they did not load or the worker ended."""
        worker = self._worker
        if self._state == "ready" and (worker is None or worker.ended):
            return "failed"
        return self._state

    @property
    def ready(self) -> bool:
        """Whether the weights are loaded, in a worker that is alive."""
        return self.state == "ready"

    @property
    def failure(self) -> str:
        """Why the state is `failed`."""
        return self._failure

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, if there is one."""
        worker = self._worker
        return None if worker is None else worker.pid

    def start(self, *, patience: float = 0.0) -> None:
        """Claim the engine and begin loading in the background; returns at once.

        With `patience`, wait that many seconds for another process to let go of the engine.
        """
        self._claim(patience)
        self._closing = False
        self._state = "loading"
        threading.Thread(target=self._load, name="engine-load", daemon=True).start()

    def segment(self, video: Path, prompts: Sequence[str]) -> Generator[tuple[int, ObjectMask], None, None]:
        """(expression index, mask) as the worker makes them; waits for its turn and for the weights.

        Close the iterator to give up: a step of the model cannot be interrupted, so the worker is then
        replaced.
        """
        with self._turn:
            worker = self._ready_worker()
            finished = False
            try:
                worker.send((str(video), list(prompts)))
                while True:
                    match worker.receive():
                        case ("mask", int(expression_index), ObjectMask() as mask):
                            yield expression_index, mask
                        case ("done",):
                            finished = True
                            return
                        case ("error", str(kind), str(text), str(trace)):
                            finished = True
                            log.error("segmentation failed in the worker:\n%s", trace)
                            raise EngineError(f"segmentation failed: {kind}: {text}")
            finally:
                if not finished:
                    self._drop_worker()

    def stop(self) -> None:
        """End the worker, also in the middle of a clip, and let go of the engine."""
        self._closing = True
        worker = self._worker
        if worker is not None:
            worker.kill()  # whoever is talking to it gets WorkerDied and leaves its turn
        with self._turn:
            self._drop_worker()
            self._state = "stopped"
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _load(self) -> None:
        with self._turn:
            try:
                self._ready_worker()
            except EngineError as error:
                log.error("%s", error)

    def _ready_worker(self) -> _Worker:
        """A worker with its weights loaded; call it in one's turn."""
        if self._closing:
            raise EngineError("the service is stopping; ask again when it runs")
        worker = self._worker
        if worker is not None and not worker.ended:
            return worker
        self._drop_worker()
        self._state = "loading"
        self._failure = ""
        started = time.monotonic()
        worker = self._worker = _Worker(self._loader, self._options)
        log.info("loading the model in worker process %s", worker.pid)
        try:
            message = worker.receive()
            if message[0] != "ready":
                _, kind, text, trace = message
                log.error("the model could not be loaded:\n%s", trace)
                raise ModelNotLoaded(f"the model could not be loaded: {kind}: {text}")
        except EngineError as error:
            self._drop_worker()
            self._failure = str(error)
            raise
        self._state = "ready"
        log.info("the model is loaded, after %.1f s", time.monotonic() - started)
        return worker

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            self._state = "failed"
            self._failure = self._failure or "the worker was ended; the next request starts another"

    def _claim(self, patience: float) -> None:
        if self._lock_file is None or self._lock is not None:
            return
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        handle = self._lock_file.open("a+")
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                handle.close()
                raise EngineTaken(
                    f"process {owner} already serves from {self._lock_file.parent}: a second one would load "
                    "a second copy of the model and miss the first one's masks. Run one process with threads "
                    "(gunicorn --workers 1 --threads 16), or give this one another GLUS_DATA_DIR"
                ) from error
            else:
                break
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        self._lock = handle


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, loader: str, options: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")  # never fork: CUDA and threads do not survive it
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, loader, dict(options)), name="glus-worker", daemon=True
        )
        self._process.start()
        theirs.close()  # the worker holds the only other end, so its death reads as the end of the stream
        self._sentinel = self._process.sentinel

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return bool(wait([self._sentinel], timeout=0))

    def send(self, message: tuple[Any, ...]) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> tuple[Any, ...]:
        """The next message; WorkerDied when there will be none."""
        if self._connection not in wait([self._connection, self._sentinel]):
            raise self._death()
        try:
            message: tuple[Any, ...] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        return message

    def kill(self) -> None:
        self._process.terminate()
        self._process.join(_STOP_SECONDS)
        if not self.ended:
            self._process.kill()
            self._process.join(_STOP_SECONDS)

    def close(self) -> None:
        self.kill()
        self._connection.close()

    def _death(self) -> WorkerDied:
        self._process.join(_STOP_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            hint = "; SIGKILL is what Linux sends when memory runs out" if -code == signal.SIGKILL else ""
        else:
            how, hint = f"ended with exit status {code}", ""
        return WorkerDied(
            f"the segmentation worker {how} in the middle of its work{hint}; ask again, another is started"
        )


def _work(connection: Connection[Any, Any], loader: str, options: dict[str, Any]) -> None:
    """Main function of the worker process: load, then segment what comes until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to the whole group; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        segment = _imported(loader)(**options)
    except Exception as error:  # noqa: BLE001 - the worker's boundary: whatever it was, the parent is told
        connection.send(("error", *_described(error)))
        return
    connection.send(("ready",))
    while True:
        try:
            video, prompts = connection.recv()
        except EOFError:  # the parent has ended
            return
        try:
            for step in segment(video, prompts):
                mask = ObjectMask.from_mask(step.frame_index, step.mask, float(step.score), present=bool(step.present))
                connection.send(("mask", step.expression_index, mask))
        except BrokenPipeError:  # the parent has ended
            return
        except Exception as error:  # noqa: BLE001 - the worker's boundary
            connection.send(("error", *_described(error)))
        else:
            connection.send(("done",))


def _imported(path: str) -> Loader:
    module, _, name = path.partition(":")
    loader: Loader = getattr(importlib.import_module(module), name)
    return loader


def _described(error: Exception) -> tuple[str, str, str]:
    """Class, text and traceback as text: the exception itself may not be importable over there."""
    return type(error).__name__, str(error), "".join(traceback.format_exception(error))
