"""Errors that people meet, and their HTTP status. Knows nothing else of the package.

    BackendError                500
    ├── SettingError            500  a setting that cannot be right, or two that cannot be together
    ├── RequestError            400  a body that is not what Label Studio sends
    ├── ConfigError             422  a labelling config that has no place for masks
    ├── TaskError               422  a task without its frames, or without a prompt
    ├── ResultError             422  a Label Studio result, or a mask, that cannot be converted
    ├── StorageError            502  a file of a task that cannot be had
    │   ├── NotAllowed          403  an address that we do not open
    │   └── FileTooLarge        413  a file over the cap
    └── EngineError             500  segmentation failed
        ├── ModelNotLoaded      503  the weights could not be loaded
        ├── WorkerDied          503  the worker process ended in the middle of a request
        └── EngineTaken         503  another process owns the engine already

Each says what came, what was wanted and what to try. The caller gets the sentence, the log gets the
traceback.
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all errors meant for people; `status` is the HTTP status of the answer."""

    status = 500


class SettingError(BackendError, ValueError):
    """A setting that cannot be right, or two that cannot be together."""


class RequestError(BackendError, ValueError):
    """A body that is not what Label Studio sends."""

    status = 400


class ConfigError(BackendError, ValueError):
    """A labelling config that has no place for masks."""

    status = 422


class TaskError(BackendError, ValueError):
    """A task without its frames, or without a prompt."""

    status = 422


class ResultError(BackendError, ValueError):
    """A Label Studio result, or a mask, that cannot be converted."""

    status = 422


class StorageError(BackendError):
    """A file of a task that cannot be had."""

    status = 502


class NotAllowed(StorageError):  # noqa: N818 - reads better where it is raised
    """An address that we do not open."""

    status = 403


class FileTooLarge(StorageError):  # noqa: N818
    """A file over the cap."""

    status = 413


class EngineError(BackendError):
    """Segmentation failed."""


class ModelNotLoaded(EngineError):  # noqa: N818
    """The weights could not be loaded."""

    status = 503


class WorkerDied(EngineError):  # noqa: N818
    """The worker process ended in the middle of a request."""

    status = 503


class EngineTaken(EngineError):  # noqa: N818
    """Another process owns the engine already."""

    status = 503
