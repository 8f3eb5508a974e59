"""Fixtures: recorded payloads, an HTTP server of our own, an engine with a disc for a model."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from backend_helpers import Service, Site, jpeg

from glus_backend.app import create_app
from glus_backend.engine import Engine
from glus_backend.settings import Settings

DATA = Path(__file__).parent.parent / "data" / "label_studio"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith(("GLUS_", "LABEL_STUDIO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def capture():
    """A recorded payload: the body of a request, or the whole file."""

    def read(name: str):
        if name.endswith(".xml"):
            return (DATA / name).read_text()
        recorded = json.loads((DATA / f"{name}.json").read_text())
        return recorded.get("body", recorded) if "method" in recorded else recorded

    return read


@pytest.fixture
def new_site():
    with contextlib.ExitStack() as stack:

        def make() -> Site:
            site = Site()
            stack.callback(site.close)
            return site

        yield make


@pytest.fixture
def site(new_site):
    return new_site()


@pytest.fixture
def frames(site):
    """Addresses of six frames on the site."""
    for index in range(6):
        site.pages[f"/frames/{index:05d}.jpg"] = jpeg(index)
    return [f"{site.url}/frames/{index:05d}.jpg" for index in range(6)]


@pytest.fixture
def service(tmp_path):
    """Makes the whole service over the disc segmenter; ends its workers afterwards."""
    with contextlib.ExitStack() as stack:

        def make(*, start: bool = True, options: dict | None = None, **settings):
            chosen = Settings.for_tests(tmp_path, **settings)
            calls = tmp_path / "calls"
            engine = Engine("disc_segmenter:load", {"calls": str(calls), **(options or {})})
            app = create_app(chosen, engine)
            stack.callback(app.extensions["glus_jobs"].stop)
            stack.callback(engine.stop)
            if start:
                engine.start()
            return Service(app, engine, chosen, calls)

        yield make
