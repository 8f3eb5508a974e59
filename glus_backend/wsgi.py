"""The service as one process with threads, under gunicorn. Knows how it starts and stops, no more."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]

from glus_backend.app import create_app
from glus_backend.engine import Engine
from glus_backend.errors import SettingError
from glus_backend.settings import Settings

log = logging.getLogger(__name__)

_GRACE = 5  # seconds for open requests at the end
# A reload starts the new process before the old one has ended: long enough to wait for that.
_PATIENCE = 2.0 * _GRACE


def application(settings: Settings | None = None) -> Flask:
    """The application with its engine started: `gunicorn "glus_backend.wsgi:application()" --threads 16`.

    A second process (--workers 2) is refused with EngineTaken when it starts.
    """
    settings = settings or Settings.from_env()
    engine = Engine.from_settings(settings)
    app = create_app(settings, engine)
    app.extensions["glus_engine"] = engine
    engine.start(patience=_PATIENCE)
    return app


def close(app: Flask) -> None:
    """End the engine's worker and what is queued."""
    app.extensions["glus_engine"].stop()
    app.extensions["glus_jobs"].stop()


def serve(
    host: str = "127.0.0.1",
    port: int = 9090,
    settings: Settings | None = None,
    *,
    model: str | None = None,
    vision_tower: str | None = None,
    sam2_config: str | None = None,
    device: str | None = None,
) -> None:
    """Serve until a signal ends it; then gunicorn exits the process (SystemExit), as from its own command
    line.

    Args:
        host: address to listen on; 0.0.0.0 to be reached from elsewhere.
        port: port to listen on.
        settings: by default those of the environment.
        model: as the next three, what to load: given here, it comes before the settings.
        vision_tower: where the CLIP tower is.
        sam2_config: the SAM 2 configuration.
        device: where to run.
    """
    settings = settings or Settings.from_env()
    given = {"model": model, "vision_tower": vision_tower, "sam2_config": sam2_config, "device": device}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(settings, **changes)
    wanted = os.environ.get("WEB_CONCURRENCY", "1")
    if wanted not in {"", "1"}:
        raise SettingError(
            f"WEB_CONCURRENCY is {wanted!r}, and this service is one process with threads: a second one "
            "would load a "
            "second copy of the model onto the same GPU. Unset it; GLUS_THREADS is the number to raise"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _Server(host, port, settings).run()


class _Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured here and nowhere else."""

    def __init__(self, host: str, port: int, settings: Settings) -> None:
        self._settings = settings
        self._bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._app: Flask | None = None
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": self._bind,
            "workers": 1,
            "worker_class": "gthread",
            "threads": self._settings.threads,
            "timeout": 120,  # of the process's own heartbeat; a request may last as long as it likes
            "graceful_timeout": _GRACE,
            "nworkers_changed": _keep_one,
            "worker_exit": self._worker_exit,
            "proc_name": "glus",
            "control_socket_disable": True,  # gunicorn 25 and later; it would be a file in the home folder
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in gunicorn's worker, after its fork: the engine belongs to that process."""
        self._app = application(self._settings)
        return self._app

    def _worker_exit(self, _arbiter: Any, _worker: Any) -> None:
        if self._app is not None:
            close(self._app)


def _keep_one(arbiter: Any, new: int, _old: int | None) -> None:
    """A signal (TTIN) may ask for more processes while we run."""
    if new > 1:
        log.error("refused a second worker process: one process owns the model; raise GLUS_THREADS instead")
        arbiter.num_workers = 1
