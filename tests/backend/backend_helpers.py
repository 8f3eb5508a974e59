"""What the tests of the backend share: an HTTP server of our own, the service under test, patience."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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


def jpeg(index: int) -> bytes:
    """Starts as a JPEG does; nobody decodes it here."""
    return b"\xff\xd8\xff\xe0" + index.to_bytes(4, "big") * 10


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
