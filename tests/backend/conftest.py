"""Fixtures: recorded payloads, an HTTP server of our own, an engine with a disc for a model."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
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


class Site:
    """A real HTTP server on its own port. `pages` maps a path to bytes or to a function of the handler."""

    def __init__(self) -> None:
        self.pages: dict = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                length = int(self.headers.get("Content-Length") or 0)
                self.body = self.rfile.read(length)
                site.seen.append((self.command, self.path, dict(self.headers)))
                page = site.pages.get(self.path.partition("?")[0])
                if page is None:
                    self.reply(404)
                elif isinstance(page, bytes):
                    self.reply(200, page)
                else:
                    page(self)

            do_POST = do_GET

            def reply(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def authorizations(self, path: str) -> list[str | None]:
        return [headers.get("Authorization") for _, seen, headers in self.seen if seen == path]


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


def jpeg(index: int) -> bytes:
    """Starts as a JPEG does; nobody decodes it here."""
    return b"\xff\xd8\xff\xe0" + index.to_bytes(4, "big") * 10


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


class Service:
    def __init__(self, app, engine, settings, calls) -> None:
        self.app, self.engine, self.settings, self.calls = app, engine, settings, calls
        self.client = app.test_client()

    def clips_segmented(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def predict(self, body) -> list[dict]:
        answer = self.client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json["results"]


def until(condition, seconds: float = 30.0) -> None:
    """Wait for a condition; generous, because only its never coming true is a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this should have happened by now"
        time.sleep(0.01)
