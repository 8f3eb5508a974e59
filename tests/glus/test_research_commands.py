"""`glus evaluate`, `glus train` and `glus data` as people meet them: real processes, their files and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

# pycocotools decodes with a signature that numpy 2 wants changed.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[2]
COMMANDS = ("", "segment", "convert", "doctor", "serve", "evaluate", "evaluate synthetic", "evaluate mevis", "train")
COMMANDS += ("data", "data check")
SMALL = ("accumulate=1", "batch_clips=1", "expressions=1", "dtype=float32", "gradient_checkpointing=false", "warm_up=1")


def start(*arguments, before="", **changes):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLUS_", "HF_"))}
    path = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    code = f"{textwrap.dedent(before)}\nfrom glus_backend.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1", **changes},
    )


def glus(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def here(monkeypatch, capsys):
    """The command in this process, where starting another would only take time: (exit code, stdout, stderr)."""
    from glus_backend import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glus", *map(str, arguments)])
        monkeypatch.setattr("warnings.showwarning", lambda *_, **__: None)  # which main() replaces
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return left.value.code, said.out, said.err

    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One drawn clip in MeViS layout, as its training and its validation split."""
    from glus.datasets.synthetic import write_mevis

    root = tmp_path_factory.mktemp("data")
    (root / "mevis").mkdir()
    write_mevis(root / "mevis" / "train", 1, 3, frames=5, size=(64, 64))
    (root / "mevis" / "valid_u").symlink_to("train")
    return root


# ---- evaluate ---------------------------------------------------------------------------------------------------


def test_synthetic(tiny_checkpoint, tmp_path):
    out, report = tmp_path / "new" / "scores.json", tmp_path / "scores.html"
    arguments = ("evaluate", "synthetic", "--clips", 2, "--seed", 5, "--model", tiny_checkpoint, "--device", "cpu")
    code, printed, err = glus(*arguments, "--out", out, "--report", report)
    assert code == 0, err
    assert err == ""  # no terminal, no bar
    scores = json.loads(out.read_text())
    assert scores["j_and_f"] == pytest.approx((scores["j"] + scores["f"]) / 2)
    assert scores["expressions"] >= 4
    assert scores["missing"]["count"] == 0
    assert scores["command"].startswith("glus evaluate synthetic --clips 2 --seed 5 --model ")
    assert scores["settings"]["clips"] == 2
    wanted = f"J&F {scores['j_and_f']:.4f}, J {scores['j']:.4f}, F {scores['f']:.4f} (synthetic); "
    assert printed == wanted + f"{scores['expressions']} expressions, 0 missing; in {out}, {report}\n"
    assert "</html>" in report.read_text()


def test_a_data_set(data, tiny_checkpoint, tmp_path):
    out, report = tmp_path / "scores.json", tmp_path / "scores.html"
    asked = ("evaluate", "mevis", "--root", data, "--split", "valid_u", "--report", report, "--device", "cpu")
    code, printed, err = glus(*asked, "--model", tiny_checkpoint, "--out", out, FORCE_COLOR="1")
    assert code == 0, err
    assert "segmenting expressions" in err  # as on a terminal
    scores = json.loads(out.read_text())
    assert (scores["dataset"], scores["split"], scores["missing"]["count"]) == ("mevis", "valid_u", 0)
    assert re.search(
        rf"J&F {scores['j_and_f']:.4f}.*\(mevis\); {scores['expressions']} expressions, 0 missing", printed
    )
    assert report.is_file()
    assert len(list((tmp_path / "scores-masks").glob("*/*/*.png"))) == 5 * scores["expressions"]


def test_masks_that_are_there(here, data, tmp_path):
    (tmp_path / "masks").mkdir()
    asked = ("evaluate", "mevis", "--root", data, "--predictions", tmp_path / "masks", "--out", tmp_path / "s.json")
    code, printed, err = here(*asked, "--split", "valid_u")
    assert code == 0, err
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["missing"]["count"] == scores["expressions"]
    assert f"{scores['expressions']} missing" in printed
    code, _, err = here(*asked, "--split", "valid_u", "--strict")
    assert code == 7
    assert "no whole prediction" in err


def test_hidden_masks_give_a_submission(here, data, tmp_path):
    from PIL import Image

    (tmp_path / "mevis" / "valid").mkdir(parents=True)
    (tmp_path / "mevis" / "valid" / "JPEGImages").symlink_to(data / "mevis" / "train" / "JPEGImages")
    meta = json.loads((data / "mevis" / "train" / "meta_expressions.json").read_text())
    (tmp_path / "mevis" / "valid" / "meta_expressions.json").write_text(json.dumps(meta))
    for video, entry in meta["videos"].items():
        for name in entry["expressions"]:
            (tmp_path / "masks" / video / name).mkdir(parents=True)
            for frame in entry["frames"]:
                Image.new("L", (64, 64)).save(tmp_path / "masks" / video / name / f"{frame}.png")
    asked = ("--predictions", tmp_path / "masks", "--out", tmp_path / "s.json")
    code, printed, err = here("evaluate", "mevis", "--root", tmp_path, "--split", "valid", *asked)
    assert code == 0, err
    assert str(tmp_path / "s.zip") in printed
    assert (tmp_path / "s.zip").is_file()
    assert not (tmp_path / "s.json").exists()


def test_other_processes_of_torchrun_keep_quiet(here, data, tmp_path, monkeypatch):
    (tmp_path / "masks").mkdir()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = ("--predictions", tmp_path / "masks", "--out", tmp_path / "s.json")
    assert here("evaluate", "mevis", "--root", data, "--split", "valid_u", *asked) == (0, "", "")
    code, _, err = here("evaluate", "synthetic", "--out", tmp_path / "s.json")
    assert (code, "leave torchrun out" in err) == (2, True)


def test_a_demonstration_says_that_it_is_one(here, data, tmp_path, monkeypatch):
    import glus as package

    monkeypatch.setattr(package, "load", lambda *_, **__: 1 / 0, raising=False)
    _, _, err = here("evaluate", "synthetic", "--clips", 1, "--out", tmp_path / "s.json")
    assert "small demonstration model that knows 96 kinds of drawn objects" in err.splitlines()[0]
    assert "--model Swindl/GLUS-A" in err.splitlines()[0]
    _, _, err = here("evaluate", "synthetic", "--clips", 1, "--out", tmp_path / "s.json", "--model", "other")
    assert "demonstration" not in err


def test_serve_says_it_too(tmp_path):
    before = """
        import sys, types
        stub = types.ModuleType("glus_backend.wsgi")
        stub.serve = lambda *a, **k: print(k["model"])
        sys.modules["glus_backend.wsgi"] = stub
    """
    code, printed, err = glus("serve", before=before)
    assert (code, printed.strip(), err.count("demonstration")) == (0, "None", 1)
    assert "demonstration" not in glus("serve", before=before, GLUS_MODEL="Swindl/GLUS-A")[2]


# ---- data -------------------------------------------------------------------------------------------------------


def test_check(here, data, tmp_path):
    code, printed, err = here("data", "check", data, "--images")
    assert code == 0, err
    assert re.search(r"^found   mevis train: 1 videos, \d+ expressions, 5 frames, with masks", printed, re.MULTILINE)
    assert re.search(r"^note    mevis valid: not here", printed, re.MULTILINE)

    videos = {"gone": {"frames": ["00000"], "expressions": {"0": {"exp": "a dog", "obj_id": [0], "anno_id": [0]}}}}
    (tmp_path / "mevis" / "train").mkdir(parents=True)
    (tmp_path / "mevis" / "train" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    code, printed, _ = here("data", "check", tmp_path)
    assert code == 1
    assert re.search(r"^broken  mevis train: no picture .*00000\.jpg", printed, re.MULTILINE)


# ---- train ------------------------------------------------------------------------------------------------------


def recipe(data, checkpoint, out, *changes):
    changed = ('parts=[{"dataset": "mevis", "weight": 1}]', *SMALL, *changes)
    options = ("--model", checkpoint, "--root", data, "--out", out, "--device", "cpu")
    return ("train", "--recipe", "glus-s", *options, *(word for each in changed for word in ("--set", each)))


def test_one_step(data, tiny_checkpoint, tmp_path):
    out = tmp_path / "run"
    arguments = recipe(data, tiny_checkpoint, out, "steps=1")
    code, printed, err = glus(*arguments)
    assert code == 0, err
    assert f"done: {out / 'model'}" in printed
    assert len((out / "log.jsonl").read_text().splitlines()) == 1

    import glus as package

    assert package.load(out / "model", device="cpu").config.memory_fuser_gamma == "checkpoint"


def test_what_is_done_is_not_done_again(here, data, tiny_checkpoint, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    code, printed, _ = here(*recipe(data, tiny_checkpoint, tmp_path, "steps=1"))
    assert code == 0
    assert "nothing was done" in printed
    code, _, err = here(*recipe(data, tiny_checkpoint, tmp_path, "steps=1"), "--no-resume")
    assert code == 2
    assert "give a new folder" in err


def test_ctrl_c(data, tiny_checkpoint, tmp_path):
    process = start(*recipe(data, tiny_checkpoint, tmp_path, "steps=100000"), "--no-resume")
    while process.poll() is None and not (tmp_path / "log.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"the state is in {tmp_path / 'state.pt'}" in err
    assert "glus train --recipe glus-s" in err.splitlines()[-1]
    assert "--no-resume" not in err
    assert "Traceback" not in err


def test_a_loss_that_is_not_finite(here, monkeypatch, tmp_path):
    import glus.training

    def broken(*_, **__):
        raise FloatingPointError("step 3: the loss term bce is not finite (videos clip0)")

    monkeypatch.setattr(glus.training, "train", broken)
    code, _, err = here("train", "--recipe", "glus-a", "--model", "m", "--root", tmp_path, "--out", tmp_path)
    assert (code, err) == (1, "glus: step 3: the loss term bce is not finite (videos clip0)\n")


def test_without_peft(here, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = here("train", "--recipe", "glus-a", "--model", "m", "--root", tmp_path, "--out", tmp_path / "run")
    assert (code, "pip install 'glus-label-studio[train]'" in err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_tiny_hands_its_arguments_over(here, monkeypatch, tmp_path):
    import glus.tiny_training

    said = []
    monkeypatch.setattr(glus.tiny_training, "train", lambda *a, **k: said.append((a, k)))
    asked = ("train", "--recipe", "tiny", "--out", tmp_path, "--budget", 3, "--workers", 1, "--set", "seed=7")
    code, printed, err = here(*asked)
    assert code == 0, err
    assert "the budget is spent" in printed
    (out, vocabulary, chosen), options = said[0]
    assert (out, chosen.seed, options) == (tmp_path, 7, {"budget": 3, "workers": 1, "device": "auto"})
    assert (vocabulary / "tokenizer.model").is_file()


# ---- all of them ------------------------------------------------------------------------------------------------


def test_help_needs_nothing_heavy():
    """In one process; torch, and everything else that takes long to import, is not there at all."""
    before = f"""
        import sys
        for name in ("torch", "transformers", "numpy", "av", "cv2", "flask", "rich"):
            sys.modules[name] = None
        from glus_backend.cli import cli
        for name in {COMMANDS!r}:
            assert cli.main([*name.split(), "--help"], standalone_mode=False) == 0
        sys.argv = ["glus", "--help"]
    """
    code, printed, err = glus(before=before)
    assert code == 0, err
    assert printed.count("Usage: ") == len(COMMANDS) + 1
    assert printed.count("Example:") == len(COMMANDS) + 1
    assert "torchrun --nproc-per-node 8 --no-python glus train" in printed


def test_names_are_those_of_the_library():
    from glus.datasets.base import LOADERS
    from glus.recipes import RECIPES
    from glus_backend import cli_research

    assert list(cli_research.DATASETS) == list(LOADERS)
    assert list(cli_research.RECIPES) == list(RECIPES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("evaluate mevi --root . --out s", "no data set 'mevi'; there are mevis, ref-youtube-vos"),
        ("evaluate mevis --root . --out s", "neither --model nor --predictions"),
        ("evaluate mevis --model m --out s", "--root"),
        ("evaluate mevis --root . --split test --model m --out s", "no split 'test'"),
        ("evaluate synthetic --clips 0 --out s", "--clips"),
        ("evaluate synthetic --device gpu --out s", "cuda:N"),
        ("train --recipe glus-x --out o", "glus-x"),
        ("train --recipe glus-s --out o", "needs --model"),
        ("train --recipe glus-s --model m --root . --out o --budget 3", "--budget does not go with --recipe glus-s"),
        ("train --recipe tiny --root . --out o", "--root does not go with --recipe tiny"),
        ("train --recipe tiny --out o --set steps", "'steps' is not FIELD=VALUE"),
        ("train --recipe tiny --out o --set lr=1", "no field 'lr'"),
        ("train --recipe glus-a --model m --root . --out o --set steps=many", "recipe field steps is 'many'"),
        ("train --recipe glus-a --model m --root . --out o --set parts=[3]", "recipe glus-a"),
        ("data check", "ROOT"),
    ],
)
def test_wrong_arguments(here, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = here(*arguments.split())
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_no_data_set_is_7(here, tmp_path):
    code, _, err = here("evaluate", "mevis", "--root", tmp_path / "none", "--model", "m", "--out", tmp_path / "s")
    assert (code, "no folder" in err) == (7, True)
    code, _, err = here("evaluate", "mevis", "--root", tmp_path, "--model", "m", "--out", tmp_path / "s")
    assert (code, "meta_expressions.json" in err) == (7, True)
    assert here("data", "check", tmp_path / "none")[0] == 7
