"""Scores equal the recorded outputs of the released scripts; predictions are whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import types
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glus import evaluation, predicting, synthetic_evaluation
from glus.datasets.base import DataError, open_dataset
from glus.errors import SettingError
from glus.evaluation import Pass, Shard
from glus.evaluation_report import write_report

DATA = Path(__file__).parents[1] / "data" / "metrics"
RECORDED = json.loads((DATA / "expected.json").read_text())
CASE, SCRIPTS = RECORDED["dataset"], RECORDED["scripts"]
FRAMES, HEIGHT, WIDTH = CASE["shape"]
VIDEOS = CASE["meta_expressions"]["videos"]
PAIRS = [(video, name) for video in VIDEOS for name in VIDEOS[video]["expressions"]]


def recorded_masks(name: str) -> np.ndarray:
    with np.load(DATA / "masks.npz") as file:
        masks = file[name]
    if masks.ndim == 2:
        masks = np.unpackbits(masks, axis=1)[:, : HEIGHT * WIDTH].reshape(CASE["shape"])
    return masks > 0


def save_png(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def save_pictures(folder: Path, names=VIDEOS) -> None:
    rng = np.random.default_rng(0)
    for video in names:
        for frame in VIDEOS[video]["frames"]:
            (folder / video).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(
                folder / video / f"{frame}.jpg"
            )


def save_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The recorded data set in the layouts of all four scripts."""
    root = tmp_path_factory.mktemp("recorded")
    for folder in ("mevis/valid_u/JPEGImages", "DAVIS17/valid/JPEGImages", "ReVOS/JPEGImages", "ReasonVOS/JPEGImages"):
        save_pictures(root / folder)
    save_json(root / "mevis/valid_u/meta_expressions.json", CASE["meta_expressions"])
    save_json(root / "mevis/valid_u/mask_dict.json", CASE["mask_dict"])
    save_json(root / "DAVIS17/meta_expressions/valid/meta_expressions.json", CASE["meta_expressions"])
    save_json(root / "DAVIS17/valid/mask_dict.json", CASE["mask_dict_davis"])
    save_json(root / "ReVOS/meta_expressions_valid_.json", CASE["meta_expressions"])
    save_json(root / "ReVOS/mask_dict.json", CASE["mask_dict"])
    save_json(root / "ReVOS/mask_dict_foreground.json", CASE["mask_dict_foreground"])
    save_json(root / "ReasonVOS/meta_expressions.json", CASE["meta_reasonvos"])
    for video, name in PAIRS:
        for t, mask in enumerate(recorded_masks(f"ds_gt_{video}_{name}")):
            save_png(root / f"ReasonVOS/Annotations/srcX_{video}_{name}/{t:05d}.png", mask)
    return root


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    for video, name in PAIRS:
        for t, mask in enumerate(recorded_masks(f"ds_pred_{video}_{name}")):
            save_png(folder / video / name / f"{t:05d}.png", mask)
    return folder


@pytest.fixture
def without_b(predicted, tmp_path) -> Path:
    shutil.copytree(predicted / "vidA", tmp_path / "predicted" / "vidA")
    return tmp_path / "predicted"


# ---- the four scripts -------------------------------------------------------------------------------------------


def test_truth_is_the_union_of_the_objects(root):
    for name in ("mevis", "ref-davis17", "revos", "reasonvos"):
        dataset = open_dataset(name, root)
        for video, record in enumerate(dataset.videos):
            for number, expression in enumerate(record.expressions):
                assert (dataset.masks(video, number) == recorded_masks(f"ds_gt_{record.name}_{expression.id}")).all()


def listed(scores: dict) -> dict[str, list[float]]:
    return {f"{line['video']}_{line['expression']}": [line["j"], line["f"]] for line in scores["per_expression"]}


def test_mevis_equals_the_recording(root, predicted):
    scores = evaluation.score(open_dataset("mevis", root, "valid_u"), predicted, command="glus evaluate mevis")
    recorded = SCRIPTS["mevis"]
    assert listed(scores) == recorded["per_expression"]
    counted = scores["protocols"]["mevis"]
    assert [counted[name] for name in ("J", "F", "J&F")] == [recorded[name] for name in ("J", "F", "J&F")]
    assert (scores["j"], scores["f"], scores["j_and_f"]) == (counted["J"], counted["F"], counted["J&F"])
    assert (scores["protocol"], scores["expressions"], scores["missing"]) == ("mevis", 8, {"count": 0, "list": []})
    assert scores["command"] == "glus evaluate mevis"
    assert len(scores["annotation_hash"]) == 64
    assert scores["categories"]["several targets"]["expressions"] == 4
    json.dumps(scores, allow_nan=False)


def test_a_missing_video_counts_nothing_and_is_listed(root, without_b):
    scores = evaluation.score(open_dataset("mevis", root, "valid_u"), without_b)
    recorded = SCRIPTS["mevis_vidB_missing"]
    assert listed(scores) == recorded["per_expression"]
    assert [scores["j"], scores["f"]] == [recorded["J"], recorded["F"]]
    assert scores["missing"]["count"] == 4
    assert scores["missing"]["list"][0] == {"video": "vidB", "expression": "0", "why": "no folder"}


def test_ref_davis_shortcut_equals_the_recording(root, predicted):
    scores = evaluation.score(open_dataset("ref-davis17", root), predicted)
    assert scores["protocols"]["ref-davis17 per expression"]["printed"] == SCRIPTS["davis"]
    assert scores["protocol"] == "ref-davis17 per expression"
    official = scores["protocols"]["ref-davis17 four annotators"]
    assert official["J"] is None
    assert "2 of 2 videos" in official["why"]


def test_revos_equals_the_recording(root, predicted):
    scores = evaluation.score(open_dataset("revos", root), predicted)
    released = scores["protocols"]["revos 0/255"]
    assert {name: released[name] for name in ("referring", "reason", "overall")} == SCRIPTS["revos"]
    rows = {row["name"]: row for row in released["rows"]}
    for recorded in SCRIPTS["revos_csv"]:
        assert {key: rows[recorded["videxp"]][key] for key in ("J", "F", "JF", "A", "R")} == {
            key: recorded[key] for key in ("J", "F", "JF", "A", "R")
        }
    corrected = scores["protocols"]["revos 0/1"]
    assert corrected["overall"]["J"] == released["overall"]["J"]
    assert corrected["overall"]["R"] > 80 > released["overall"]["R"]  # per cent
    assert scores["j_and_f"] == pytest.approx(SCRIPTS["revos"]["overall"]["JF"] / 100)
    assert set(scores["categories"]) == {"referring", "reason"}


def test_reasonvos_equals_the_recording(root, predicted, without_b):
    dataset = open_dataset("reasonvos", root)
    scores = evaluation.score(dataset, predicted)
    recorded = SCRIPTS["reasonvos"]
    for name in ("reasonvos", "reasonvos, missing left out"):
        counted = scores["protocols"][name]
        assert [counted["J"], counted["F"]] == [recorded["J"], recorded["F"]]
    names = [
        dataset.score_name(video, number)
        for video, record in enumerate(dataset.videos)
        for number in range(len(record.expressions))
    ]
    assert dict(zip(names, listed(scores).values(), strict=True)) == recorded["per_expression"]
    half = evaluation.score(dataset, without_b)["protocols"]
    assert half["reasonvos"]["J"] == SCRIPTS["mevis_vidB_missing"]["J"]
    assert half["reasonvos, missing left out"]["J"] == pytest.approx(2 * half["reasonvos"]["J"])
    assert half["reasonvos, missing left out"]["expressions"] == 4


def test_workers_count_the_same(root, predicted):
    dataset = open_dataset("revos", root)
    said = []
    alone, shared = (evaluation.score(dataset, predicted, workers=n, progress=said.append) for n in (1, 2))
    assert alone == shared
    assert [(each.done, each.total) for each in said] == [(1, 2), (2, 2)] * 2


# ---- what is missing or damaged ---------------------------------------------------------------------------------


def test_strict_refuses_missing_predictions(root, without_b):
    with pytest.raises(DataError, match=r"4 expressions .* '0' of video 'vidB' \(no folder\)"):
        evaluation.score(open_dataset("mevis", root, "valid_u"), without_b, strict=True)


def test_a_half_written_expression_is_missing(root, predicted, tmp_path):
    folder = tmp_path / "predicted"
    shutil.copytree(predicted, folder)
    (folder / "vidA" / "1" / "00003.png").unlink()
    (folder / "vidB" / "2").rename(folder / "vidB" / ".2.0123abcd.part")
    scores = evaluation.score(open_dataset("mevis", root, "valid_u"), folder)
    assert scores["missing"]["list"] == [
        {"video": "vidA", "expression": "1", "why": "4 of 5 frames"},
        {"video": "vidB", "expression": "2", "why": "no folder"},
    ]
    assert listed(scores)["vidA_1"] == [0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"\x89PNG\r\n\x1a\nhalf", "cannot be read"), (None, "84x59, the video is 84x60")],
)
def test_a_damaged_prediction_is_named(root, predicted, tmp_path, content, message):
    folder = tmp_path / "predicted"
    shutil.copytree(predicted, folder)
    file = folder / "vidA" / "1" / "00003.png"
    if content is None:
        save_png(file, np.zeros((HEIGHT - 1, WIDTH)))
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        evaluation.score(open_dataset("mevis", root, "valid_u"), folder)
    assert str(file) in str(caught.value)


def test_without_masks_there_is_no_score_but_a_submission(root, predicted, without_b, tmp_path):
    save_json(tmp_path / "mevis/valid/meta_expressions.json", CASE["meta_expressions"])
    save_json(tmp_path / "Refer-YouTube-VOS/meta_expressions/valid/meta_expressions.json", CASE["meta_expressions"])
    mevis, youtube = open_dataset("mevis", tmp_path, "valid"), open_dataset("ref-youtube-vos", tmp_path)
    for dataset, first in ((mevis, "vidA/0/00000.png"), (youtube, "Annotations/vidA/0/00000.png")):
        with pytest.raises(DataError, match="submission"):
            evaluation.score(dataset, predicted)
        with pytest.raises(DataError, match="4 expressions"):
            evaluation.write_submission(dataset, without_b, tmp_path / "refused.zip")
        path = evaluation.write_submission(dataset, predicted, tmp_path / f"{dataset.name}.zip")
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist()[0] == first
            assert len(archive.namelist()) == len(PAIRS) * FRAMES
            assert archive.read(first) == (predicted / "vidA/0/00000.png").read_bytes()
    assert not list(tmp_path.glob("refused*")) + list(tmp_path.glob(".*.part"))


# ---- Ref-DAVIS17 as DAVIS counts it --------------------------------------------------------------------------------


@pytest.fixture
def davis(tmp_path) -> Path:
    """Two squares, four annotators each; the third one mixes the two up."""
    frames = ["00000", "00001", "00002"]
    expressions = {str(n): {"exp": f"phrase {n}", "obj_id": str(n // 4 + 1)} for n in range(8)}
    save_json(
        tmp_path / "DAVIS17/meta_expressions/valid/meta_expressions.json",
        {"videos": {"two": {"frames": frames, "expressions": expressions}}},
    )
    picture = np.zeros((40, 60), np.uint8)
    picture[5:20, 5:20], picture[10:30, 30:50], picture[0, 0] = 1, 2, 255
    for frame in frames:
        for folder, content in (("JPEGImages", np.zeros((40, 60, 3), np.uint8)), ("Annotations", picture)):
            path = tmp_path / f"DAVIS17/valid/{folder}/two/{frame}.{'jpg' if content.ndim == 3 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
        for n in range(8):
            annotator, thing = n % 4, n // 4 + 1
            shown = {2: 3 - thing}.get(annotator, thing)
            mask = picture == shown
            if annotator == 1:
                mask = mask | (picture == 1)  # the second object's phrase takes in the first too
            if annotator != 3 or thing == 1:  # the fourth has nothing for the second object
                save_png(tmp_path / f"predicted/two/{n}/{frame}.png", mask)
    return tmp_path


def test_four_annotators(davis):
    scores = evaluation.score(open_dataset("ref-davis17", davis), davis / "predicted")
    official = scores["protocols"]["ref-davis17 four annotators"]
    assert [each["J"] for each in official["annotators"]] == [1, 1, 1, 0.5]  # overlaps cut, mix-up assigned
    assert (official["J"], official["J&F"]) == (0.875, 0.875)
    shortcut = scores["protocols"]["ref-davis17 per expression"]
    assert shortcut["J"] == pytest.approx((2 + 1 + 400 / 625 + 0 + 1) / 8)


# ---- predicting ---------------------------------------------------------------------------------------------------


def test_every_pass_goes_to_exactly_one_process(root):
    dataset = open_dataset("mevis", root, "valid_u")
    passes = evaluation.plan(dataset, {"vidA_1": 2, "vidB_0": 4}, together=2)
    assert Pass(0, (1,), 2) in passes
    assert Counter((each.video, number) for each in passes for number in each.expressions) == Counter(
        (video, number) for video in range(2) for number in range(4)
    )
    for count in (1, 2, 3, 7):
        shares = [evaluation.share(dataset, passes, Shard(rank, count)) for rank in range(count)]
        assert Counter(each for part in shares for each in part) == Counter(passes)
    loads = [sum(len(each.expressions) for each in evaluation.share(dataset, passes, Shard(r, 2))) for r in range(2)]
    assert abs(loads[0] - loads[1]) <= 2


def test_a_key_frame_beyond_the_clip_is_refused(root):
    with pytest.raises(SettingError, match="gives 5 for vidA_1"):
        evaluation.plan(open_dataset("mevis", root, "valid_u"), {"vidA_1": 5})


def test_the_share_is_what_torchrun_says(monkeypatch):
    assert Shard.from_environment() == Shard(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Shard.from_environment() == Shard(2, 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="WORLD_SIZE='2'"):
        Shard.from_environment()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def whole(root, tiny_model, tmp_path_factory) -> Path:
    """Predictions of the tiny model, made in one go."""
    folder = tmp_path_factory.mktemp("whole") / "predicted"
    done = evaluation.predict(open_dataset("mevis", root, "valid_u"), tiny_model, folder)
    assert (done.segmented, done.there) == (8, 0)
    return folder


def test_a_real_run_is_scored(root, whole, tiny_model, tmp_path):
    dataset = open_dataset("mevis", root, "valid_u")
    scores = evaluation.score(dataset, whole, strict=True)
    assert len(files(whole)) == len(PAIRS) * FRAMES
    assert scores["model"] == evaluation.model_record(tiny_model)
    assert 0 <= scores["j_and_f"] <= 1
    assert evaluation.write_json(tmp_path / "out" / "scores.json", scores).read_text().endswith("}\n")


def test_stopped_half_way_it_goes_on(root, whole, tiny_model, tmp_path):
    dataset, folder = open_dataset("mevis", root, "valid_u"), tmp_path / "predicted"

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.predict(dataset, tiny_model, folder, progress=stop)
    assert {path.name for path in folder.iterdir()} == {"predictions.json", "vidA"}
    # as a killed process, or another program, leaves it
    (folder / "vidA" / ".2.0123abcd.part").mkdir()
    (folder / "vidA" / "2" / "00004.png").unlink()
    said = []
    done = evaluation.predict(dataset, tiny_model, folder, progress=said.append)
    assert (done.segmented, done.there) == (5, 3)
    assert said[-1].done == said[-1].total == 8
    assert files(folder).keys() == files(whole).keys()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    assert evaluation.predict(dataset, tiny_model, folder).segmented == 0


def test_an_error_leaves_nothing_half_written(root, tiny_model, tmp_path, monkeypatch):
    dataset = open_dataset("mevis", root, "valid_u")
    monkeypatch.setattr(predicting, "_png", lambda mask: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        evaluation.predict(dataset, tiny_model, tmp_path / "predicted")
    assert [path.name for path in (tmp_path / "predicted").rglob("*") if path.is_file()] == ["predictions.json"]
    assert list((tmp_path / "predicted" / "vidA").iterdir()) == []


def test_shares_together_are_the_whole(root, whole, tiny_model, tmp_path):
    dataset, folder = open_dataset("mevis", root, "valid_u"), tmp_path / "predicted"
    for rank in range(2):
        evaluation.predict(dataset, tiny_model, folder, shard=Shard(rank, 2))
    assert files(folder) == files(whole)  # the same passes, so the same bytes


def test_key_frames_write_every_frame(root, whole, tiny_model, tmp_path):
    dataset, folder = open_dataset("mevis", root, "valid_u"), tmp_path / "predicted"
    evaluation.predict(dataset, tiny_model, folder, key_frames={"vidA_0": 3})
    assert files(folder).keys() == files(whole).keys()
    with pytest.raises(SettingError, match="another key frames"):
        evaluation.predict(dataset, tiny_model, folder)


def test_other_predictions_are_not_mixed_in(root, whole, tiny_model, predicted):
    dataset = open_dataset("mevis", root, "valid_u")
    with pytest.raises(SettingError, match="another memory"):
        evaluation.predict(dataset, tiny_model, whole, memory=False)
    with pytest.raises(SettingError, match=r"no predictions\.json"):
        evaluation.predict(dataset, tiny_model, predicted)


def _wait(rank, count, port, done):
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(count))
    Shard.from_environment().wait()
    done.put(rank)


def test_processes_wait_for_each_other(unused_port):
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    processes = [context.Process(target=_wait, args=(rank, 2, unused_port, done)) for rank in range(2)]
    for process in processes:
        process.start()
    assert {done.get(timeout=60) for _ in processes} == {0, 1}
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_all_of_it(root, whole, without_b, tiny_model, tmp_path, monkeypatch):
    dataset = open_dataset("mevis", root, "valid_u")
    shutil.copytree(whole, tmp_path / "scores-masks")
    done = evaluation.evaluate(dataset, tmp_path / "scores.json", model=tiny_model, report=tmp_path / "report.html")
    assert [path.name for path in done.files] == ["scores.json", "report.html"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores, scores["missing"]["count"]) == (done.scores, 0)
    given = evaluation.evaluate(dataset, tmp_path / "given.json", predictions=without_b)
    assert (given.scores["missing"]["count"], given.scores["model"]) == (4, None)
    with pytest.raises(SettingError, match="neither a model nor predictions"):
        evaluation.evaluate(dataset, tmp_path / "none.json")
    save_json(tmp_path / "mevis/valid/meta_expressions.json", CASE["meta_expressions"])
    hidden = evaluation.evaluate(open_dataset("mevis", tmp_path, "valid"), tmp_path / "a/x.json", predictions=whole)
    assert (hidden.scores, [path.name for path in hidden.files]) == (None, ["x.zip"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert evaluation.evaluate(dataset, tmp_path / "second.json", predictions=whole) is None
    assert not (tmp_path / "second.json").exists()


# ---- report ---------------------------------------------------------------------------------------------------------


def test_report_needs_no_other_file(root, predicted, without_b, tmp_path):
    for name, folder in (("revos", predicted), ("mevis", without_b), ("ref-davis17", predicted)):
        dataset = open_dataset(name, root)
        scores = evaluation.score(dataset, folder, command="glus <evaluate>")
        path = write_report(scores, tmp_path / "out" / f"{name}.html", dataset=dataset, predictions=folder)
        page = path.read_text(encoding="utf-8")
        assert "<evaluate>" not in page
        assert "&lt;evaluate&gt;" in page
        assert page.count("data:image/jpeg;base64,") == (
            1 if name == "mevis" else 2
        )  # of vidB there is nothing to show
        assert 'src="http' not in page
        assert ("<svg" in page) == bool(scores["categories"])
        assert ("vidB / 3: no folder" in page) == (name == "mevis")


# ---- generated clips ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakePhrase:
    text: str
    kind: str
    objects: tuple[int, ...]
    template: str = "t"
    held_out: bool = False
    partner: int | None = None


def fake_clip(seed, frames=24, size=(256, 256), kind=None, split="train", templates="all"):
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, frames, *size), bool)
    masks[0, :, :10, :10], masks[1, :, 20:40, 20:40] = True, True
    phrases = [
        FakePhrase("the left one", "position", (0,), partner=1),
        FakePhrase("the right one", "position", (1,), held_out=True, partner=0),
        FakePhrase("the zebra", "no target", ()),
    ]
    pictures = rng.integers(0, 255, (frames, *size, 3), dtype=np.uint8)
    return types.SimpleNamespace(frames=pictures, masks=masks, phrases=phrases)


@pytest.fixture
def reader(monkeypatch):
    """A generator of two squares, and a model that reads: it draws what the phrase says."""
    module = types.ModuleType("glus.datasets.synthetic")
    module.make_clip = fake_clip
    monkeypatch.setitem(sys.modules, "glus.datasets.synthetic", module)
    truth = fake_clip(0, frames=3, size=(64, 48))

    def draw(model, frames, texts, memory, key_frame):
        places = {"the left one": truth.masks[0], "the right one": truth.masks[1]}
        return {number: places.get(text, np.zeros_like(truth.masks[0])) for number, text in texts.items()}

    monkeypatch.setattr(synthetic_evaluation, "_draw", draw)


def test_generated_clips(reader, tiny_model):
    scores = evaluation.evaluate_synthetic(tiny_model, 2, 7, frames=3, size=(64, 48))
    assert (scores["j_and_f"], scores["expressions"]) == (1, 6)
    assert scores["no_target"] == {"n_acc": 1, "t_acc": 1, "no_target": 2, "target": 4}
    assert scores["templates"]["held out"]["expressions"] == 2
    assert set(scores["categories"]) == {"position", "no target"}
    swapped = evaluation.evaluate_synthetic(tiny_model, 2, 7, shuffle_prompts=True, frames=3, size=(64, 48))
    assert (swapped["j_and_f"], swapped["expressions"]) == (0, 4)
    assert swapped["protocol"] == "synthetic, phrases swapped"
    only = evaluation.evaluate_synthetic(tiny_model, 1, 7, kind="no target", frames=3, size=(64, 48))
    assert (only["expressions"], only["annotation_hash"] == scores["annotation_hash"]) == (1, False)
    with pytest.raises(SettingError, match="kind 'colour'"):
        evaluation.evaluate_synthetic(tiny_model, 1, 7, kind="colour", frames=3, size=(64, 48))
    json.dumps([scores, swapped], allow_nan=False)


def test_the_real_generator(tiny_model):
    scores = evaluation.evaluate_synthetic(tiny_model, 1, 7, kind="motion", frames=4, size=(64, 64))
    assert scores["expressions"] >= 2
    assert scores == evaluation.evaluate_synthetic(tiny_model, 1, 7, kind="motion", frames=4, size=(64, 64))
    swapped = evaluation.evaluate_synthetic(tiny_model, 1, 7, True, "motion", frames=4, size=(64, 64), split="novel")
    assert swapped["split"] == "novel"
    assert set(swapped["categories"]) == {"motion"}
