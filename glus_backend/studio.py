"""What Label Studio told us of its projects: hosts, tokens, extras. Knows a JSON file; not tasks or masks."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

from glus_backend.contracts import Project, StudioAccess
from glus_backend.errors import SettingError
from glus_backend.settings import Settings
from glus_backend.storage import write_atomically


class Projects:
    """Projects by the name that requests give them; kept over a restart, because /setup is not sent with
    /predict.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = settings.data_dir / "projects.json"
        self._lock = threading.Lock()
        self._projects = _read(self._file)

    def remember(self, project: Project) -> None:
        """Keep what /setup said. It is sent before every request, so only news are written."""
        with self._lock:
            if self._projects.get(project.project) == project:
                return
            self._projects[project.project] = project
            every = [asdict(known) for known in self._projects.values()]
            write_atomically(self._file, json.dumps(every, indent=1).encode())

    def get(self, project: str) -> Project:
        """What is known of a project; of an unknown one, its name only."""
        with self._lock:
            return self._projects.get(project) or Project(project)

    def access(self, project: str) -> StudioAccess:
        """Where to fetch a project's files, and with what.

        Our own key comes first: Label Studio sends a legacy token in /setup even where it refuses such
        tokens. It belongs to LABEL_STUDIO_URL alone, never to a host that a request names.
        """
        known = self.get(project)
        return StudioAccess(
            url=self._settings.label_studio_url or known.hostname,
            key=self._settings.label_studio_api_key or known.access_token,
        )


def _read(file: Path) -> dict[str, Project]:
    if not file.exists():
        return {}
    try:
        return {entry["project"]: Project(**entry) for entry in json.loads(file.read_bytes())}
    except (ValueError, TypeError, KeyError) as error:
        raise SettingError(
            f"{file} cannot be read ({error}); delete it: Label Studio sends its contents again when it next connects"
        ) from error
