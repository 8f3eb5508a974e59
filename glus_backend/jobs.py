"""Prediction jobs: clips being segmented, and the masks that were. Knows files; not HTTP or the model.

Running jobs live in memory, as does an outcome that nobody heard yet; finished masks live on disk, under the
frames' contents, the prompts and the model version, so that a question asked again needs no model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glus_backend.contracts import MaskTrack, ObjectMask, StudioAccess, VideoTask
from glus_backend.errors import BackendError, EngineError
from glus_backend.settings import Settings
from glus_backend.storage import Storage, write_atomically

log = logging.getLogger(__name__)

UNTOLD_SECONDS = 600.0  # later, the frames may have changed: they are looked at again

Tracks = tuple[MaskTrack, ...]
Segment = Callable[[Path, Sequence[str]], Generator[tuple[int, ObjectMask], None, None]]


@dataclass(eq=False)
class Job:
    """One clip and its prompts on their way to masks."""

    key: str
    frames: int
    prompts: int
    interactive: bool
    stage: str = "queued"
    received: int = 0
    finished_at: float | None = None
    told: bool = False
    future: Future[Tracks] = field(default_factory=Future)

    @property
    def frames_done(self) -> int:
        """Frames of which the masks of all prompts are there, give or take the order they come in."""
        return min(self.frames, self.received // self.prompts)

    def wait(self, seconds: float) -> Tracks | None:
        """The masks, or None when they are not there in time; raises what made the job fail."""
        wait([self.future], timeout=max(0.0, seconds))
        if not self.future.done() or self.future.cancelled():  # cancelled: a person's request took it over
            return None
        self.told = True
        error = self.future.exception()
        if error is not None and not isinstance(error, BackendError):
            raise EngineError(f"internal error ({type(error).__name__}: {error}); see the log") from error
        return self.future.result()

    def answers(self, now: float) -> bool:
        """Whether somebody who asks now is answered by this job: it runs, or its outcome was not told yet."""
        if self.finished_at is None:
            return True
        return not self.told and now - self.finished_at < UNTOLD_SECONDS


class Jobs:
    """Runs jobs in the background: one typed by a person beside one of a batch, taking turns at the model."""

    def __init__(self, settings: Settings, storage: Storage, segment: Segment) -> None:
        self._version = settings.model_version
        self._folder = settings.data_dir / "predictions"
        self._storage = storage
        self._segment = segment
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        # A person waits for the clip that is being segmented, not for the 250 behind it.
        self._people = ThreadPoolExecutor(1, thread_name_prefix="interactive")
        self._batches = ThreadPoolExecutor(1, thread_name_prefix="batch")

    def submit(self, task: VideoTask, access: StudioAccess, *, interactive: bool = False) -> Job:
        """The job for this task: the one under way, the one whose outcome nobody heard, or a new one."""
        key = _digest(access.url, task.frames, task.prompts)
        with self._lock:
            now = time.monotonic()
            self._jobs = {other: job for other, job in self._jobs.items() if job.answers(now)}
            known = self._jobs.get(key)
            waits_behind_batch = known is not None and interactive and not known.interactive
            if known is not None and not (waits_behind_batch and known.future.cancel()):
                return known
            job = Job(key, len(task.frames), len(task.prompts), interactive)
            pool = self._people if interactive else self._batches
            job.future = pool.submit(self._run, job, task, access)
            self._jobs[key] = job
        job.future.add_done_callback(lambda future: self._finished(job, task, future))
        return job

    def stop(self) -> None:
        """Forget what is queued. Stop the engine first: a running job then ends at once."""
        for pool in (self._people, self._batches):
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job, task: VideoTask, access: StudioAccess) -> Tracks:
        job.stage = "fetching the frames"
        folder = self._storage.frame_folder(task.frames, access)
        file = self._folder / f"{_digest(folder.name, task.prompts, self._version)}.json"
        stored = _load(file)
        if stored is not None:
            return stored
        job.stage = "waiting for the model"
        masks: list[list[ObjectMask]] = [[] for _ in task.prompts]
        with closing(self._segment(folder, task.prompts)) as steps:
            for expression_index, mask in steps:
                job.stage = "segmenting"
                masks[expression_index].append(mask)
                job.received += 1
        if not job.received:
            raise EngineError(f"the model gave no masks for the {job.frames} frames of task {task.task_id}")
        tracks = tuple(
            MaskTrack(number, prompt, tuple(track))
            for number, (prompt, track) in enumerate(zip(task.prompts, masks, strict=True), start=1)
        )
        _save(file, tracks)
        return tracks

    def _finished(self, job: Job, task: VideoTask, future: Future[Tracks]) -> None:
        job.finished_at = time.monotonic()
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            log.info("task %s: %d frames are segmented", task.task_id, job.frames)
        elif isinstance(error, BackendError):
            log.error("task %s failed: %s", task.task_id, error)
        else:
            log.error("task %s failed", task.task_id, exc_info=error)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _save(file: Path, tracks: Tracks) -> None:
    write_atomically(file, json.dumps([asdict(track) for track in tracks]).encode())


def _load(file: Path) -> Tracks | None:
    """Masks that were kept; None when there are none, or the file is damaged and has to be made again."""
    if not file.exists():
        return None
    try:
        return tuple(_track(entry) for entry in json.loads(file.read_bytes()))
    except (ValueError, TypeError, KeyError) as error:
        log.warning("%s cannot be read (%s); its clip is segmented again", file, error)
        return None


def _track(entry: dict[str, Any]) -> MaskTrack:
    return MaskTrack(entry["object_id"], entry["prompt"], tuple(ObjectMask(**mask) for mask in entry["masks"]))
