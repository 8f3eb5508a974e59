"""The web application: routes, and errors to JSON. The wiring, nothing else."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flask import Flask, request
from werkzeug.exceptions import HTTPException

from glus_backend import results, tasks
from glus_backend.contracts import Project, StudioAccess, TextField, VideoTask
from glus_backend.engine import Engine
from glus_backend.errors import BackendError, RequestError
from glus_backend.jobs import Job, Jobs, Tracks
from glus_backend.settings import Settings
from glus_backend.storage import Storage
from glus_backend.studio import Projects

log = logging.getLogger(__name__)

Json = dict[str, Any]

# An item without `result` stores nothing, and Label Studio asks again: the answer for "not yet" and "failed".
_NOTHING_YET: Json = {"score": 0}


def create_app(settings: Settings, engine: Engine, jobs: Jobs | None = None) -> Flask:
    """The Flask application over collaborators that the caller starts and stops.

    Without `jobs`, one is made that sends its clips to `engine`; it is then under
    `app.extensions["glus_jobs"]`.
    """
    app = Flask("glus_backend")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    jobs = jobs or Jobs(settings, Storage(settings), engine.segment)
    app.extensions["glus_jobs"] = jobs
    projects = Projects(settings)
    predict = _Predict(settings, engine, jobs, projects)

    @app.get("/")
    @app.get("/health")
    def health() -> Json:
        return {"status": "UP", "model_class": "GLUS"}

    @app.post("/setup")
    def setup() -> Json:
        projects.remember(_project(_body()))
        return {"model_version": settings.model_version}

    @app.post("/predict")
    def predictions() -> Json:
        return {"results": predict(_body())}

    @app.post("/webhook")
    def webhook() -> Json:
        log.info("event %s, not used yet", _body().get("action"))
        return {}

    @app.get("/versions")
    def versions() -> Json:
        return {"versions": [settings.model_version]}

    @app.errorhandler(BackendError)
    def refused(error: BackendError) -> tuple[Json, int]:
        log.warning("%s %s: %s", request.method, request.path, error)
        return {"error": str(error)}, error.status

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Json, int]:
        return {"error": f"{request.method} {request.path}: {error.description}"}, error.code or 500

    return app


class _Predict:
    """One /predict request: its tasks become jobs, and what is finished in time becomes the answer."""

    def __init__(self, settings: Settings, engine: Engine, jobs: Jobs, projects: Projects) -> None:
        self._settings = settings
        self._engine = engine
        self._jobs = jobs
        self._projects = projects
        # Two threads stay free for /health and /setup: Label Studio gives up on those after 1 and 3 seconds.
        self._places = threading.BoundedSemaphore(settings.threads - 2)

    def __call__(self, body: Json) -> list[Json]:
        deadline = time.monotonic() + self._settings.predict_wait
        project, config, context, asked = _request(body)
        entries = [self._begin(task, project, config, context) for task in asked]
        with self._place() as may_wait:
            outcomes = [_outcome(entry, deadline if may_wait else 0.0) for entry in entries]
        status = tasks.status_field(config) if context is not None else None
        items = [self._item(entry, outcome, status) for entry, outcome in zip(entries, outcomes, strict=True)]
        answered = sum(isinstance(outcome, tuple) for outcome in outcomes)
        kind = "batch" if context is None else "interactive"
        log.info("predict (%s): project %s, %d of %d tasks answered", kind, project, answered, len(asked))
        return items

    def _begin(self, task: Json, project: str, config: str, context: Json | None) -> tuple[VideoTask, Job] | str:
        """The task and its job, or the sentence that says why there is none."""
        try:
            correction = tasks.correction_asked(context)
            if correction is not None:
                return _CORRECTIONS[correction]
            known = self._projects.get(project)
            video_task = tasks.video_task(
                task, tasks.read_config(config), project, context=context, extra_params=known.extra_params
            )
        except BackendError as error:
            log.warning("task %s: %s", task.get("id"), error)
            return str(error)
        access: StudioAccess = self._projects.access(project)
        return video_task, self._jobs.submit(video_task, access, interactive=context is not None)

    def _item(self, entry: tuple[VideoTask, Job] | str, outcome: Tracks | str | None, status: TextField | None) -> Json:
        """One item of the answer; `status` is where a person who waits can be told how it stands."""
        regions, sentence = self._told(entry, outcome)
        if regions is None and status is None:
            return dict(_NOTHING_YET)
        texts = [results.text_region(status, sentence)] if status is not None else []
        return {
            "result": [*(regions or []), *texts],
            "score": results.mean_score(regions or []),
            "model_version": self._settings.model_version,
        }

    def _told(self, entry: tuple[VideoTask, Job] | str, outcome: Tracks | str | None) -> tuple[list[Json] | None, str]:
        """Regions, or None for "nothing to store", and a sentence for the person."""
        if isinstance(outcome, str):
            return None, outcome
        if isinstance(entry, str):
            return None, entry
        task, job = entry
        if outcome is None:
            sentence = self._progress(job)
            log.info("task %s: %s", task.task_id, sentence)
            return None, sentence
        try:
            regions = results.brush_regions(task, outcome)
        except BackendError as error:
            log.error("task %s: %s", task.task_id, error)
            return None, str(error)
        return regions, _summary(task, regions)

    def _progress(self, job: Job) -> str:
        if job.frames_done:
            return f"still working, {job.frames_done} of {job.frames} frames; ask again for the masks"
        if self._engine.state == "loading":
            return "the model is still being loaded; ask again in a moment"
        return f"still working ({job.stage}), 0 of {job.frames} frames; ask again for the masks"

    @contextmanager
    def _place(self) -> Iterator[bool]:
        """Whether this request may wait for masks, or has to answer with what is there."""
        free = self._places.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self._places.release()


_CORRECTIONS = {
    "click": "clicks are not used yet: masks come from the prompt; the masks were left as they are",
    "box": "boxes are not used yet: masks come from the prompt; the masks were left as they are",
    "update": "corrections are not carried to other frames yet; the masks were left as they are",
}


def _outcome(entry: tuple[VideoTask, Job] | str, deadline: float) -> Tracks | str | None:
    """Masks, the sentence that says why there are none, or None: not finished."""
    if isinstance(entry, str):
        return entry
    _, job = entry
    try:
        return job.wait(deadline - time.monotonic())
    except BackendError as error:
        return str(error)


def _summary(task: VideoTask, regions: Sequence[Mapping[str, Any]]) -> str:
    if not regions:
        return f"nothing found for {', '.join(task.prompts)!r} on {len(task.frames)} frames"
    frames = len({region["item_index"] for region in regions})
    return f"{len(regions)} masks on {frames} of {len(task.frames)} frames"


def _body() -> Json:
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        start = request.get_data(as_text=True)[:40]
        raise RequestError(
            f"{request.path} got a body that is not a JSON object (it starts with {start!r}); wanted "
            f'what Label Studio sends, {{"project": ...}}'
        )
    return body


def _project(body: Json) -> Project:
    """What /setup says; the JSON of the connection form may come as text."""
    project = body.get("project")
    if not isinstance(project, str | int) or not str(project):
        raise RequestError('/setup got no "project"; wanted {"project": "<id>.<time>", "schema": ..., "hostname": ...}')
    extra = body.get("extra_params")
    if isinstance(extra, str) and extra.strip():
        try:
            extra = json.loads(extra)
        except ValueError as error:
            raise RequestError(f"the extra params of the model connection are not JSON: {error}") from error
    return Project(
        project=str(project),
        hostname=body.get("hostname") or None,
        access_token=body.get("access_token") or None,
        extra_params=extra if isinstance(extra, dict) else {},
        schema=str(body.get("schema") or ""),
    )


def _request(body: Json) -> tuple[str, str, Json | None, list[Json]]:
    """Project, labelling config, what the person just did (None for a batch), tasks."""
    asked = body.get("tasks")
    if not isinstance(asked, list) or not all(isinstance(task, dict) for task in asked):
        raise RequestError('/predict got no list of "tasks"; wanted {"tasks": [{"id": 1, "data": {...}}], ...}')
    config = body.get("label_config")
    if not isinstance(config, str):
        raise RequestError('/predict got no "label_config"; wanted the labelling config as XML text')
    params = body.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    return str(body.get("project") or ""), config, context if isinstance(context, dict) else None, asked
