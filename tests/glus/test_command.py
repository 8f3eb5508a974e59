"""The `glus` command as people meet it: real processes, their messages and exit codes, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

# pycocotools decodes with a signature that numpy 2 wants changed.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
FRAMES = 20
PROMPTS = ("the red square", "what moves")


def environment(**changes):
    path = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLUS_", "HF_"))}
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "120", **changes}


def start(*arguments, before="", **changes):
    """The command in a process of its own; `before` is Python that runs first."""
    code = f"{textwrap.dedent(before)}\nfrom glus_backend.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**changes),
    )


def glus(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def segment(clip, out, checkpoint, *more, prompts=PROMPTS):
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    return ["segment", clip, *asked, "--model", checkpoint, "--out", out, "--device", "cpu", *more]


def assert_said(result, code, *words):
    """Left with `code`, and said it in a few lines without a traceback."""
    returned, _, err = result
    assert returned == code, err
    for word in words:
        assert word in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    pytest.importorskip("av")
    from glus.video import VideoWriter

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, 64, 48, Fraction(10)) as writer:
        for t in range(FRAMES):
            picture = np.full((48, 64, 3), 40, np.uint8)
            picture[10:26, 4 + 2 * t : 20 + 2 * t] = (200, 30, 30)
            writer.write(picture)
    return path


def outputs(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix == ".png" or path.name == "masks.json"
    }


@pytest.fixture(scope="module")
def whole(clip, tiny_checkpoint, tmp_path_factory):
    """An uninterrupted run of the command."""
    out = tmp_path_factory.mktemp("whole") / "out"
    result = glus(*segment(clip, out, tiny_checkpoint))
    assert result[0] == 0, result[2]
    return out, result


def test_what_a_run_prints(whole):
    out, (_, printed, err) = whole
    for prompt in PROMPTS:
        assert re.search(rf"{prompt}.*\d+/{FRAMES}", printed)
    assert "overlay.mp4, masks.json" in printed
    assert f"{FRAMES} frames in" in printed
    assert "frames/s" in printed
    assert "segmenting" in err
    assert "\x1b" not in printed + err
    assert len(outputs(out)) == 2 * FRAMES + 1


# ---- killed and resumed ------------------------------------------------------------------------------------


def wait_for_frames(process, out, frames):
    while process.poll() is None and len(list(out.glob("*/*.png"))) < 2 * frames:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]


def went_on_after(err):
    return int(re.search(rf"going on after (\d+) of {FRAMES} frames", err)[1])


def test_killed_killed_again_interrupted_terminated_and_then_left_to_finish(clip, tiny_checkpoint, whole, tmp_path):
    out = tmp_path / "out"
    # First with a state saved at every frame, then without one since: those frames are computed again.
    for every, frames in (("0", 4), ("1000", 7)):
        process = start(*segment(clip, out, tiny_checkpoint, "--save-every", every))
        wait_for_frames(process, out, frames)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    done = 0
    for number, code, frames in ((signal.SIGINT, 130, 9), (signal.SIGTERM, 143, 13)):
        process = start(*segment(clip, out, tiny_checkpoint))
        wait_for_frames(process, out, frames)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert went_on_after(err) in ({3, 4, 5, 6} if number == signal.SIGINT else {done})
        done = int(re.search(rf"stopped after (\d+) of {FRAMES} frames", err)[1])
        assert frames - 1 <= done < FRAMES
        assert shlex.join(["glus", *map(str, segment(clip, out, tiny_checkpoint))]) in err
        assert len(list(out.glob("*/*.png"))) == 2 * done
    assert not (out / "masks.json").exists()

    # The same in this process, to save the time of starting another.
    from glus import runs

    settings = runs.Settings(str(clip), PROMPTS, str(tiny_checkpoint), device="cpu")
    assert runs.run(settings, out).computed == FRAMES - done
    assert outputs(out) == outputs(whole[0])
    assert not (out / ".run").exists()


def test_a_finished_and_another_run(clip, tiny_checkpoint, whole):
    code, printed, err = glus(*segment(clip, whole[0], tiny_checkpoint))
    assert code == 0, err
    assert "finished already" in printed
    other = glus(*segment(clip, whole[0], tiny_checkpoint, prompts=["a cat"]))
    assert_said(other, 2, "a cat", "red square", "--overwrite")


# ---- what can be wrong -------------------------------------------------------------------------------------


def test_no_such_video(tmp_path):
    assert_said(glus(*segment(tmp_path / "none.mp4", tmp_path / "out", "m")), 3, "none.mp4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["text", "noise", "sound", "empty folder", "empty file"])
def test_not_a_video(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    if kind == "text":
        path.write_text("a shopping list\n" * 50)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "empty folder":
        path.mkdir()
    else:
        import wave

        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(16000))
    assert_said(glus(*segment(path, tmp_path / "out", "m")), 4, "clip.mp4")


def test_bad_arguments(clip, tmp_path):
    out = tmp_path / "out"
    assert_said(glus(*segment(clip, out, "m", prompts=["a dog", "  "])), 2, "prompt 2 is empty", "--prompt")
    assert_said(glus(*segment(clip, out, "m", "--key-frame", FRAMES)), 2, f"{FRAMES} frames", f"0 to {FRAMES - 1}")
    assert_said(glus(*segment(clip, out, "m", "--key-frame", "-1")), 2, "key frame -1")
    assert_said(glus(*segment(clip, out, "m", "--key-frame", "first")), 2, "'first'", "auto")
    assert_said(glus(*segment(clip, out, "m", "--format", "gif")), 2, "gif", "overlay")
    assert_said(glus(*segment(clip, out, "m", "--device", "gpu")), 2, "gpu", "cuda:N")
    assert_said(glus("segment", clip, "--model", "m", "--out", out), 2, "--prompt")
    assert not out.exists()


def test_no_checkpoint(clip, tmp_path):
    pytest.importorskip("torch")
    assert_said(glus(*segment(clip, tmp_path / "out", tmp_path / "none")), 5, "none")
    assert not (tmp_path / "out").exists()


def test_out_of_memory(clip, tmp_path):
    before = """
        import sys, types
        class OutOfMemoryError(RuntimeError):
            pass
        def load(*_, **__):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        sys.modules["glus.checkpoints"] = types.SimpleNamespace(load=load)
    """
    result = glus(*segment(clip, tmp_path / "out", "m"), before=before)
    assert_said(result, 6, "Tried to allocate 20.00 GiB", "fewer prompts", "--dtype bfloat16", "--device")


def test_tracebacks_on_request(tmp_path):
    for more, changes in (((), {"GLUS_DEBUG": "1"}), (("--debug",), {})):
        code, _, err = glus(*segment(tmp_path / "none.mp4", tmp_path / "out", "m", *more), **changes)
        assert code == 3
        assert "Traceback" in err


def without(*names):
    """Python after which these packages are not installed."""
    return f"""
        import sys
        from importlib import metadata
        class Without:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {names!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Without())
        real = metadata.version
        def version(name):
            if name in {names!r}:
                raise metadata.PackageNotFoundError(name)
            return real(name)
        metadata.version = version
    """


def test_without_the_model_extra(clip, tmp_path):
    result = glus(*segment(clip, tmp_path / "out", "m"), before=without("torch", "transformers"))
    assert_said(result, 1, "torch", "pip install 'glus-label-studio[model]'")
    assert_said(
        glus("convert", "a", tmp_path / "b", before=without("torch", "transformers")),
        1,
        "pip install 'glus-label-studio[model]'",
    )


def broken_torchvision(folder):
    (folder / "torchvision").mkdir()
    (folder / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (folder / "torchvision-0.28.0.dist-info").mkdir()
    (folder / "torchvision-0.28.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    return os.pathsep.join([str(ROOT / "model"), str(ROOT), str(folder)])


def test_a_torchvision_that_does_not_load(clip, tiny_checkpoint, tmp_path):
    path = broken_torchvision(tmp_path)
    result = glus(*segment(clip, tmp_path / "out", tiny_checkpoint), PYTHONPATH=path)
    assert_said(result, 1, "pip uninstall torchvision")
    code, printed, _ = glus("doctor", PYTHONPATH=path)
    assert code == 1
    assert "torchvision::nms" in printed
    assert "pip uninstall torchvision" in printed


def test_an_unexpected_error_is_one_line_and_a_hint(clip, tmp_path):
    before = "import glus.video\nglus.video.open_video = lambda *_: 1 / 0"
    assert_said(glus(*segment(clip, tmp_path / "out", "m"), before=before), 1, "ZeroDivisionError", "--debug")


# ---- the other commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["--version"], ["serve", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    before = """
        import atexit, sys
        heavy = {"torch", "transformers", "numpy", "av", "cv2", "flask", "rich"}
        atexit.register(lambda: print("imported:", sorted(heavy & set(sys.modules))))
    """
    code, printed, err = glus(*arguments, before=before)
    assert code == 0, err
    heavy = re.search(r"imported: (.*)", printed)[1]
    assert heavy == ("['numpy']" if arguments == ["--version"] else "[]")
    assert "Example:" in printed or arguments == ["--version"]


def test_version():
    from glus import __version__

    assert glus("--version")[1].strip() == f"glus {__version__}"


def test_doctor():
    code, printed, err = glus("doctor", "--json")
    report = json.loads(printed)
    assert code == (1 if report["faults"] else 0), err
    assert report["versions"]["numpy"] == np.__version__
    assert report["cores"] >= 1
    assert report["cache"]
    assert report["torchvision"] in {"absent", "works", "broken"}


def test_doctor_without_torch():
    code, printed, err = glus("doctor", before=without("torch", "transformers"))
    assert code == 0, err
    assert "torch is not installed" in printed
    assert "pip install 'glus-label-studio[model]'" in printed


def test_doctor_without_something_required():
    code, printed, _ = glus("doctor", before=without("flask", "torch", "transformers"))
    assert code == 1
    assert "flask is not installed" in printed


def test_doctor_knows_what_pyproject_says():
    from glus.doctor import REQUIREMENTS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {"": project["dependencies"], **project["optional-dependencies"]}
    for requirement in REQUIREMENTS:
        wanted = f"{requirement.names[0]}>={requirement.least}"
        wanted += f",<{requirement.below}" if requirement.below else ""
        assert wanted in declared[requirement.extra]
    known = {(requirement.extra, requirement.names[0]) for requirement in REQUIREMENTS}
    for extra in ("", "model", "train"):
        for line in declared[extra]:
            name = re.match(r"[\w-]+", line)[0]
            assert name == "glus-label-studio" or (extra, name) in known


def test_serve_hands_its_arguments_over():
    before = """
        import sys, types
        stub = types.ModuleType("glus_backend.wsgi")
        stub.serve = lambda *a, **k: print(a, sorted(k.items()))
        sys.modules["glus_backend.wsgi"] = stub
    """
    code, printed, err = glus("serve", "--model", "m", "--port", "9091", "--device", "cuda:1", before=before)
    assert code == 0, err
    assert printed.strip() == str(("127.0.0.1", 9091)) + " " + str(
        [("device", "cuda:1"), ("model", "m"), ("sam2_config", None), ("vision_tower", None)]
    )


def test_serve_with_a_wrong_setting():
    assert_said(glus("serve", GLUS_THREADS="many"), 2, "GLUS_THREADS")


def test_convert_prints_the_account_of_tensors(tiny_checkpoint, tmp_path):
    code, printed, err = glus("convert", tiny_checkpoint, tmp_path / "own")
    assert code == 0, err
    assert re.search(r"converted \d+ tensors, 0 missing", printed)
