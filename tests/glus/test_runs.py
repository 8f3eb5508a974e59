"""A run in a folder: what it writes, that it can be stopped anywhere, and what it refuses."""

from __future__ import annotations

import json
import shutil
import unicodedata
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("torch")

import cv2

from glus import runs
from glus.errors import CheckpointError, GlusError, PromptError, SettingError, VideoNotFound
from glus.masks import decode_rle
from glus.video import VideoWriter

# pycocotools decodes with a signature that numpy 2 wants changed.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FRAMES, WIDTH, HEIGHT = 9, 64, 48
PROMPTS = ("the red square", "A/B: the one that moves..")


def write_clip(path, frames=FRAMES):
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(10)) as writer:
        for t in range(frames):
            picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            picture[10:26, 4 + t % 40 : 20 + t % 40] = (200, 30, 30)
            writer.write(picture, t / 10 + (0.05 if t >= 5 else 0))  # a late frame: times are not index / rate
    return path


def outputs(out):
    """Name and bytes of all that two runs must have in common."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix == ".png" or path.name == "masks.json"
    }


class StopAfter:
    """Asks to stop once so many frames were finished."""

    def __init__(self, frames):
        self.left = frames

    def progress(self, step):
        if step.stage == "segmenting" and step.done > step.resumed:
            self.left -= 1

    def stop(self):
        return self.left <= 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def settings(clip, tiny_checkpoint):
    return runs.Settings(video=str(clip), prompts=PROMPTS, model=str(tiny_checkpoint), device="cpu")


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    """Loading is not what is tested here: the model stays between runs."""
    import glus.checkpoints

    real = glus.checkpoints.load

    def load(checkpoint, **options):
        key = (str(checkpoint), tuple(sorted(options.items())))
        if key not in _MODELS:
            _MODELS[key] = real(checkpoint, **options)
        return _MODELS[key]

    monkeypatch.setattr(glus.checkpoints, "load", load)


_MODELS: dict = {}


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, runs.run(settings, out)


def test_what_is_written(whole, settings):
    out, report = whole
    assert report.finished
    assert not report.already
    assert (report.done, report.total, report.computed) == (FRAMES, FRAMES, FRAMES)
    assert sorted(path.name for path in out.iterdir()) == [
        "A-B-the-one-that-moves",
        "masks.json",
        "overlay.mp4",
        "run.json",
        "the-red-square",
    ]
    found = json.loads((out / "masks.json").read_text())
    assert found["video"] | {"sha256": ""} == {
        "name": "clip.mp4",
        "width": WIDTH,
        "height": HEIGHT,
        "frames": FRAMES,
        "fps": found["video"]["fps"],
        "fps_exact": found["video"]["fps_exact"],
        "sha256": "",
    }
    assert found["model"]["device"] == "cpu"
    assert [p["expression"] for p in found["prompts"]] == list(PROMPTS)
    assert [(m["frame"], m["expression"]) for m in found["masks"]] == [
        (frame, prompt) for frame in range(FRAMES) for prompt in range(2)
    ]
    assert [m["time"] for m in found["masks"][::2]] == pytest.approx(
        [t / 10 + (0.05 if t >= 5 else 0) for t in range(FRAMES)], abs=1e-3
    )
    for entry in found["masks"]:
        folder = found["prompts"][entry["expression"]]["folder"]
        picture = cv2.imread(str(out / folder / f"{entry['frame']:05d}.png"), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (HEIGHT, WIDTH)
        assert picture.dtype == np.uint8
        mask = decode_rle(entry["segmentation"])
        assert np.array_equal(picture, mask * np.uint8(255))
        assert entry["area"] == mask.sum()
        assert entry["present"] == bool(mask.any())
        assert entry["bbox"] == runs.bounding_box(mask)
    for number, prompt in enumerate(report.prompts):
        present = [m for m in found["masks"] if m["expression"] == number and m["present"]]
        assert prompt.frames_with_object == len(present)
        if present:
            assert prompt.mean_score == pytest.approx(np.mean([m["score"] for m in present]))


@pytest.mark.parametrize("key_frame", [None, 4])
def test_stopped_after_any_frame_it_goes_on_to_the_same_masks(settings, tmp_path, key_frame):
    settings = replace(settings, formats=("png", "coco"), key_frame=key_frame)
    runs.run(settings, tmp_path / "whole")
    # 1 is the key frame itself, 5 the last one forwards, 6 the first one backwards
    for frames in (1, 2, 5, 6, FRAMES) if key_frame else (1, 4, FRAMES):
        out, stop = tmp_path / f"out{frames}", StopAfter(frames)
        report = runs.run(settings, out, progress=stop.progress, stop=stop.stop)
        assert not report.finished or frames == FRAMES
        assert report.done == frames
        report = runs.run(settings, out)
        assert report.finished
        assert outputs(out) == outputs(tmp_path / "whole")


def test_stopped_again_and_again(settings, whole, tmp_path):
    reports = []
    while not reports or not reports[-1].finished:
        stop = StopAfter(2)
        reports.append(runs.run(settings, tmp_path / "out", progress=stop.progress, stop=stop.stop))
        assert len(reports) <= FRAMES
    assert len(reports) > FRAMES // 2
    assert outputs(tmp_path / "out") == outputs(whole[0])


def test_frames_computed_together_are_not_skipped_on_resuming(settings, tmp_path, monkeypatch):
    """On a GPU eight frames are, and a run may be stopped between them."""
    import glus.streaming

    real = glus.streaming.Segmentation
    monkeypatch.setattr(glus.streaming, "Segmentation", lambda *a, **k: real(*a, **k, chunk=3))
    for key_frame in (None, 2):
        asked = replace(settings, formats=("coco",), key_frame=key_frame)
        runs.run(asked, tmp_path / f"whole{key_frame}")
        for frames in (2, 5):
            out, stop = tmp_path / f"out{key_frame}-{frames}", StopAfter(frames)
            runs.run(asked, out, progress=stop.progress, stop=stop.stop)
            assert runs.run(asked, out).finished
            assert outputs(out) == outputs(tmp_path / f"whole{key_frame}")


class Killed(BaseException):
    """Stands for a process that ends without a word."""


def kill_after(frames):
    stop = StopAfter(frames)

    def progress(step):
        stop.progress(step)
        if stop.stop():
            raise Killed

    return progress


def test_frames_after_the_saved_state_are_computed_again(settings, whole, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Killed):
        runs.run(settings, out, progress=kill_after(4), save_every=0)
    with pytest.raises(Killed):
        runs.run(settings, out, progress=kill_after(3), save_every=1e9)
    with (out / ".run/masks.jsonl").open("ab") as journal:
        journal.write(b'{"frame": 6, "torn')  # a line that was being written
    (out / "the-red-square/00005.png").write_bytes(b"not from this run")
    report = runs.run(settings, out)
    assert report.computed == FRAMES - 3  # the fourth frame's kill came before its save
    assert outputs(out) == outputs(whole[0])
    assert not (out / ".run").exists()


def test_killed_before_the_first_save_it_begins_again(settings, whole, tmp_path):
    with pytest.raises(Killed):
        runs.run(settings, tmp_path / "out", progress=kill_after(3), save_every=1e9)
    assert runs.run(settings, tmp_path / "out").computed == FRAMES
    assert outputs(tmp_path / "out") == outputs(whole[0])


def test_stopped_in_the_overlay_no_model_is_needed_to_go_on(settings, whole, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    report = runs.run(settings, out, progress=seen.append, stop=lambda: seen[-1].stage == "overlay")
    assert not report.finished
    assert report.done == FRAMES
    assert not (out / "overlay.mp4").exists()
    monkeypatch.setattr("glus.checkpoints.load", None)
    assert runs.run(settings, out).finished
    assert (out / "overlay.mp4").stat().st_size
    assert outputs(out) == outputs(whole[0])


def test_a_finished_run_is_left_alone_and_overwritten_on_request(settings, whole, tmp_path, monkeypatch):
    out, seen = whole[0], []
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = runs.run(settings, out, progress=seen.append)
    assert again.already
    assert again.prompts == whole[1].prompts
    assert not seen
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    short = replace(settings, prompts=PROMPTS[:1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    runs.run(settings, tmp_path / "out")
    assert runs.run(short, tmp_path / "out", overwrite=True).computed == FRAMES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "masks.json",
        "notes.txt",
        "overlay.mp4",
        "run.json",
        "the-red-square",
    ]


def test_another_run_is_refused_with_what_differs(settings, tmp_path):
    out, stop = tmp_path / "out", StopAfter(3)
    runs.run(settings, out, progress=stop.progress, stop=stop.stop)
    other = write_clip(tmp_path / "other.mp4", FRAMES + 1)
    before = outputs(out)
    for changed, what in (
        ({"prompts": ("a cat",)}, "a cat"),
        ({"video": str(other)}, "other.mp4"),
        ({"memory": False}, "memory"),
        ({"key_frame": 2}, "key_frame"),
        ({"memory_fuser_gamma": "checkpoint"}, "memory_fuser_gamma"),
        ({"dtype": "float16"}, "float16"),
        ({"model": "someone/else"}, "someone/else"),
        ({"formats": ("png",)}, "formats"),
    ):
        with pytest.raises(SettingError, match=r"(?s)unfinished run.*--overwrite") as caught:
            runs.run(replace(settings, **changed), out)
        assert what in str(caught.value)
    assert outputs(out) == before
    assert runs.run(settings, out).finished


def test_files_of_others_are_never_touched(settings, tmp_path):
    (tmp_path / "out/the-red-square").mkdir(parents=True)
    frame = tmp_path / "out/the-red-square/00000.png"
    frame.write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(SettingError, match=r"the-red-square but no run\.json"):
            runs.run(settings, tmp_path / "out", overwrite=overwrite)
    assert frame.read_bytes() == b"mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["the-red-square"]

    pictures = tmp_path / "dog"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "00000.png"), np.zeros((48, 64, 3), np.uint8))
    for out in (pictures, tmp_path):
        with pytest.raises(SettingError, match="among the pictures"):
            runs.run(replace(settings, video=str(pictures), prompts=("dog",)), out, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="is a file"):
        runs.run(settings, tmp_path / "file")


def test_a_run_that_fails_before_its_first_frame_leaves_nothing(settings, tmp_path):
    out = tmp_path / "out"
    for changed, error in (
        ({"prompts": ("a dog", "  ")}, PromptError),
        ({"video": str(tmp_path / "none.mp4")}, VideoNotFound),
        ({"key_frame": FRAMES}, SettingError),
        ({"key_frame": -1}, SettingError),
        ({"formats": ("gif",)}, SettingError),
        ({"prompts": ("a [SEG] b",)}, PromptError),
    ):
        with pytest.raises(error):
            runs.run(replace(settings, **changed), out)
        assert not out.exists()


def test_a_damaged_checkpoint(settings, tiny_checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = next(path for path in broken.iterdir() if path.suffix in {".bin", ".safetensors"})
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        runs.run(replace(settings, model=str(broken)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_run_at_a_time_in_a_folder(settings, tmp_path):
    pytest.importorskip("fcntl")
    refused = []

    def progress(step):
        if step.done == 1 and not refused:
            with pytest.raises(SettingError, match="another run is writing"):
                runs.run(settings, tmp_path / "out")
            refused.append(step)

    assert runs.run(replace(settings, formats=("coco",)), tmp_path / "out", progress=progress).finished
    assert refused


def test_a_key_frame_that_was_chosen_is_kept(settings, tmp_path, monkeypatch):
    asked, calls = replace(settings, key_frame="auto", formats=("coco", "png")), []
    runs.run(asked, tmp_path / "whole")
    chosen = json.loads((tmp_path / "whole/masks.json").read_text())["settings"]["chosen_key_frame"]
    runs.run(replace(settings, key_frame=chosen, formats=("png",)), tmp_path / "given")
    whole = outputs(tmp_path / "whole")
    assert whole.pop("masks.json")
    assert whole == outputs(tmp_path / "given")

    import glus.key_frames

    def choose(model, video, expressions, **_):
        calls.append(tuple(expressions))
        return chosen if len(calls) == 1 else 0

    monkeypatch.setattr(glus.key_frames, "choose", choose)
    stop = StopAfter(4)
    runs.run(asked, tmp_path / "out", progress=stop.progress, stop=stop.stop)
    runs.run(asked, tmp_path / "out")
    assert calls == [PROMPTS]
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_a_damaged_state_is_an_error_that_says_so(settings, tmp_path):
    out, stop = tmp_path / "out", StopAfter(3)
    runs.run(settings, out, progress=stop.progress, stop=stop.stop)
    journal = (out / ".run/masks.jsonl").read_bytes()
    (out / ".run/masks.jsonl").write_bytes(journal[:-10])
    with pytest.raises(GlusError, match="--overwrite"):
        runs.run(settings, out)
    (out / ".run/masks.jsonl").write_bytes(journal)
    (out / ".run/state.safetensors").write_bytes(b"?")
    with pytest.raises(GlusError, match="--overwrite"):
        runs.run(settings, out)
    (out / "run.json").write_text("{")
    with pytest.raises(SettingError, match="--overwrite"):
        runs.run(settings, out)
    assert runs.run(settings, out, overwrite=True).finished


@pytest.mark.parametrize(
    ("prompts", "folders"),
    [
        (["the dog that turns left"], ["the-dog-that-turns-left"]),
        (["a/b", "a\\b", "A B"], ["a-b", "a-b-2", "A-B-3"]),
        (["../../etc/passwd"], ["etc-passwd"]),
        ([".", "..", "/", "?*"], ["prompt", "prompt-2", "prompt-3", "prompt-4"]),
        (["x", "x", "x-2", "x"], ["x", "x-2", "x-2-2", "x-3"]),
        (["der größte Hund", "犬が走る", "कुत्ता"], ["der-größte-Hund", "犬が走る", "कुत्ता"]),
        (["Straße", "STRASSE"], ["Straße", "STRASSE-2"]),
        (["caf\u00e9", "cafe\u0301"], ["caf\u00e9", "caf\u00e9-2"]),
        (["con", "Aux.", "com1"], ["con-", "Aux-", "com1-"]),
        (["a\x00b\nc\td"], ["a-b-c-d"]),
        (["masks.json", ".run", "overlay.mp4"], ["masks-json", "run", "overlay-mp4"]),
    ],
)
def test_prompts_as_folders(prompts, folders):
    assert runs.prompt_folders(prompts) == folders


def test_long_prompts_as_folders(tmp_path):
    prompts = [
        "the dog " * 100,
        "the dog " * 100 + "x",
        "犬" * 400,
        "é" * 400,
        "\U0001f415" * 9,
        "\u0301" * 300,
    ]
    names = runs.prompt_folders(prompts)
    assert len({unicodedata.normalize("NFKD", name).casefold() for name in names}) == len(prompts)
    for name in names:
        assert len(unicodedata.normalize("NFD", name).encode()) < 255
        (tmp_path / name).mkdir()


def test_frame_names():
    assert runs.frame_name(7, 30) == "00007.png"
    assert runs.frame_name(7, 100_000) == "00007.png"
    assert runs.frame_name(7, 100_001) == "000007.png"


def test_bounding_box():
    mask = np.zeros((5, 8), dtype=bool)
    assert runs.bounding_box(mask) == [0, 0, 0, 0]
    mask[1, 2] = mask[4, 6] = True
    assert runs.bounding_box(mask) == [2, 1, 5, 4]


def test_errors_in_plain_words():
    import torch

    assert runs.explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).exit_code == 6
    assert runs.explain(MemoryError()).exit_code == 6
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")
    assert runs.explain(cpu).exit_code == 6
    assert "[model]" in str(runs.explain(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert runs.explain(ModuleNotFoundError("No module named 'nothing'", name="nothing")) is None
    assert runs.explain(RuntimeError("a slip of ours")) is None
