"""The service under gunicorn, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from backend_helpers import until

from glus_backend.errors import SettingError
from glus_backend.settings import Settings
from glus_backend.wsgi import serve

# The loader is named by an import path, so that the worker finds the disc without torch being there.
SERVE = """
import sys; sys.path.insert(0, sys.argv[1])
from glus_backend import engine, wsgi
from glus_backend.settings import Settings
wsgi._PATIENCE = 0.5
engine.GLUS_LOADER = "disc_segmenter:load_real"
wsgi.serve("127.0.0.1", int(sys.argv[2]), Settings.from_env(), model="given-here")
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    started = []

    def start(port, **environ):
        with (tmp_path / f"log-{len(started)}").open("w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", SERVE, str(Path(__file__).parent), str(port)],
                    env={
                        **os.environ,
                        "GLUS_DATA_DIR": str(tmp_path / "data"),
                        "HOME": str(tmp_path),
                        **environ,
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        started[-1].log = tmp_path / f"log-{len(started) - 1}"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def answers(port) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["status"] == "UP"
    except requests.ConnectionError:
        return False


def test_one_process_serves_and_ends_with_its_worker(start, port, tmp_path):
    server = start(port)
    until(lambda: answers(port))
    versions = requests.get(f"http://127.0.0.1:{port}/versions", timeout=5).json()
    assert versions == {"versions": ["glus-given-here"]}
    family = psutil.Process(server.pid).children(recursive=True)
    assert family
    server.send_signal(signal.SIGTTIN)  # asks gunicorn for one more process
    until(lambda: "refused a second worker process" in server.log.read_text())
    assert answers(port)
    server.terminate()
    assert server.wait(30) == 0
    until(lambda: not any(child.is_running() for child in family))
    assert not list(tmp_path.glob(".gunicorn"))


def test_a_second_service_on_the_same_data_is_refused_with_the_reason(start, tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    start(ports[0])
    until(lambda: answers(ports[0]))
    second = start(ports[1])
    assert second.wait(60) != 0
    assert "already serves from" in second.log.read_text()
    assert answers(ports[0])


def test_more_processes_by_environment_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    with pytest.raises(SettingError, match="one process with threads"):
        serve("127.0.0.1", 1, Settings.for_tests(tmp_path))
