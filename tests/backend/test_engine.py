"""The engine's worker process: a real one, with a disc for a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from backend_helpers import until
from disc_segmenter import disc

from glus_backend.engine import Engine
from glus_backend.errors import EngineError, EngineTaken, ModelNotLoaded, WorkerDied


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index:05d}.jpg").write_bytes(b"x")
    return folder


@pytest.fixture
def make_engine():
    made = []

    def make(loader="disc_segmenter:load", lock_file=None, **options):
        made.append(Engine(loader, options, lock_file=lock_file))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def test_masks_come_back_as_they_were_made(make_engine, clip):
    engine = make_engine()
    got = list(engine.segment(clip, ["the cat", "absent", "the bird"]))
    assert [(mask.frame_index, expression) for expression, mask in got] == [(f, e) for f in range(5) for e in range(3)]
    for expression, mask in got:
        assert mask.present is (expression != 1)
        wanted = disc(mask.frame_index, expression) & (expression != 1)
        assert np.array_equal(mask.mask(), wanted)
    assert got[0][1].score == 0.9


def test_the_first_masks_come_before_the_last_are_made(make_engine, clip, tmp_path):
    gate = tmp_path / "gate"
    engine = make_engine(gate=str(gate))
    steps = engine.segment(clip, ["gated"])
    assert [next(steps)[1].frame_index for _ in range(2)] == [0, 1]
    gate.touch()
    assert [mask.frame_index for _, mask in steps] == [2, 3, 4]


def test_loading_begins_at_start_and_ready_says_when_it_is_done(make_engine, clip, tmp_path):
    gate = tmp_path / "gate"
    engine = make_engine(load_gate=str(gate))
    assert (engine.state, engine.ready) == ("stopped", False)
    engine.start()
    until(lambda: engine.worker_pid is not None)
    assert (engine.state, engine.ready) == ("loading", False)
    gate.touch()
    until(lambda: engine.ready)
    pid = engine.worker_pid
    assert len(list(engine.segment(clip, ["the cat"]))) == 5
    assert engine.worker_pid == pid
    engine.stop()
    assert engine.state == "stopped"
    assert not psutil.pid_exists(pid)


def test_requests_take_turns(make_engine, clip):
    engine = make_engine()
    running = threading.Barrier(4)
    answers = []

    def ask(number):
        running.wait()
        answers.append([mask.frame_index for _, mask in engine.segment(clip, [f"object {number}"])])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [list(range(5))] * 4


def test_an_error_inside_comes_back_as_text_and_the_worker_stays(make_engine, clip):
    engine = make_engine()
    with pytest.raises(EngineError, match="ValueError: cannot segment 'broken'"):
        list(engine.segment(clip, ["broken"]))
    pid = engine.worker_pid
    assert len(list(engine.segment(clip, ["the cat"]))) == 5
    assert engine.worker_pid == pid


def test_a_worker_killed_in_the_middle_is_reported_and_replaced(make_engine, clip):
    engine = make_engine(gate="/nonexistent/gate")
    steps = engine.segment(clip, ["gated"])
    next(steps)
    pid = engine.worker_pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        list(steps)
    assert not engine.ready
    assert len(list(engine.segment(clip, ["the cat"]))) == 5
    assert engine.worker_pid not in {None, pid}
    assert engine.ready


def test_a_worker_that_dies_between_requests_is_replaced(make_engine, clip):
    engine = make_engine()
    list(engine.segment(clip, ["the cat"]))
    pid = engine.worker_pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not engine.ready)
    assert len(list(engine.segment(clip, ["the cat"]))) == 5
    assert engine.worker_pid != pid


def test_a_worker_that_exits_by_itself(make_engine, clip):
    engine = make_engine()
    with pytest.raises(WorkerDied, match="exit status 3"):
        list(engine.segment(clip, ["fatal"]))


def test_a_model_that_does_not_load(make_engine, clip):
    engine = make_engine(fail="no weights in /models/x")
    engine.start()
    until(lambda: engine.state == "failed")
    assert "RuntimeError: no weights in /models/x" in engine.failure
    with pytest.raises(ModelNotLoaded, match="no weights"):
        list(engine.segment(clip, ["the cat"]))
    with pytest.raises(ModelNotLoaded, match="ModuleNotFoundError"):
        list(make_engine("no_such_module:load").segment(clip, ["the cat"]))


def test_giving_up_frees_the_engine(make_engine, clip):
    engine = make_engine(gate="/nonexistent/gate")
    with closing(engine.segment(clip, ["gated"])) as steps:
        next(steps)
    assert len(list(engine.segment(clip, ["the cat"]))) == 5


def test_stopping_ends_a_running_request(make_engine, clip):
    engine = make_engine(gate="/nonexistent/gate")
    errors = []
    started = threading.Event()

    def ask():
        try:
            for _ in engine.segment(clip, ["gated"]):
                started.set()
        except WorkerDied as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert started.wait(30)
    engine.stop()
    thread.join(30)
    assert len(errors) == 1
    with pytest.raises(EngineError, match="stopping"):
        list(engine.segment(clip, ["the cat"]))


def test_a_second_owner_is_refused_with_the_reason(make_engine, tmp_path):
    first, second = (make_engine(lock_file=tmp_path / "engine.lock") for _ in range(2))
    first.start()
    with pytest.raises(EngineTaken, match=rf"process {os.getpid()} already serves.*--workers 1"):
        second.start()
    first.stop()
    second.start(patience=5)


def test_the_worker_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from glus_backend.engine import Engine\n"
        "engine = Engine('disc_segmenter:load'); engine.start()\n"
        "while not engine.ready: time.sleep(0.01)\n"
        "print(engine.worker_pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        assert psutil.pid_exists(worker)
        parent.kill()
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


def test_the_web_process_never_imports_torch_or_glus():
    code = (
        "import sys, glus_backend.app, glus_backend.wsgi\n"
        "heavy = {'torch', 'transformers', 'glus', 'cv2', 'pycocotools'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
