"""Each public layout on a tiny folder, what happens where it is broken, our own sample folders, and the check."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glus.datasets.base import DataError, MaskDict, decode, open_dataset
from glus.datasets.check import check
from glus.datasets.folder import SampleDataset, make_sample, read_sample, write_sample
from glus.errors import SettingError, VideoError
from glus.masks import decode_rle, encode_rle

SIZE = (24, 32)
FRAMES = ["00000", "00005", "00010"]


def blob(number: int, t: int) -> np.ndarray:
    """Two objects that overlap, and move; the second is gone in the last frame."""
    mask = np.zeros(SIZE, bool)
    if number == 0:
        mask[4:14, 2 + t : 14 + t] = True
    elif t < 2:
        mask[8:20, 8:24] = True
    return mask


def save_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def save_pictures(folder: Path, frames=FRAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(frames):
        picture = np.full((*SIZE, 3), 40 * t, np.uint8)
        picture[..., 0] = 200
        Image.fromarray(picture).save(folder / f"{frame}.jpg", quality=95)


def save_palette(folder: Path, void: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(FRAMES):
        numbers = np.where(blob(1, t), 2, np.where(blob(0, t), 1, 0)).astype(np.uint8)
        if void:
            numbers[-1] = 255
        image = Image.fromarray(numbers)
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
        assert image.mode == "P"
        image.save(folder / f"{frame}.png")


def rle(mask: np.ndarray) -> dict | None:
    return encode_rle(mask) if mask.any() else None


def mask_dict() -> dict:
    return {str(10 + n): [rle(blob(n, t)) for t in range(3)] for n in range(2)}


def in_mevis(root: Path, split: str = "valid_u", **expression) -> Path:
    place = root / "mevis" / split
    save_pictures(place / "JPEGImages" / "cats")
    asked = {
        "0": {"exp": "The cat that walks", "obj_id": [0], "anno_id": [10]},
        "1": {"exp": "both cats", "obj_id": [0, 1], "anno_id": ["10", "11"]},
        "2": {"exp": "the dog", "obj_id": [], "anno_id": []},
        "3": {"exp": "the cat behind", "obj_id": 1, "anno_id": 11, **expression},
    }
    save_json(place / "meta_expressions.json", {"videos": {"cats": {"frames": FRAMES, "expressions": asked}}})
    save_json(place / "mask_dict.json", mask_dict())
    return place


def in_youtube(root: Path, folder: str, split: str) -> None:
    save_pictures(root / folder / split / "JPEGImages" / "cats")
    save_palette(root / folder / split / "Annotations" / "cats", void=True)
    asked = {str(n): {"exp": f"cat {n}", "obj_id": "12"[n // 4]} for n in range(8)}
    meta = {"videos": {"cats": {"frames": FRAMES, "expressions": asked}}}
    save_json(root / folder / "meta_expressions" / split / "meta_expressions.json", meta)
    objects = {"1": {"category": "cat", "frames": FRAMES}, "2": {"category": "fox", "frames": FRAMES}}
    save_json(root / folder / split / "meta.json", {"videos": {"cats": {"objects": objects}}})


def in_revos(root: Path) -> None:
    name = "UVO/all/cats"
    save_pictures(root / "ReVOS" / "JPEGImages" / name)
    asked = {
        "0": {"exp": "the cat", "obj_id": [0], "anno_id": [10], "type_id": 0},
        "1": {"exp": "what purrs?", "obj_id": [0, 1], "anno_id": [10, 11], "type_id": 1},
        "2": {"exp": "the pilot", "obj_id": [], "anno_id": [], "type_id": 2},
    }
    for split in ("train", "valid"):
        meta = {"videos": {name: {"frames": FRAMES, "expressions": asked}}}
        save_json(root / "ReVOS" / f"meta_expressions_{split}_.json", meta)
    save_json(root / "ReVOS" / "mask_dict.json", mask_dict())
    union = {"masks_rle": [rle(blob(0, t) | blob(1, t)) for t in range(3)]}
    save_json(root / "ReVOS" / "mask_dict_foreground.json", {name: union})


def in_reason_vos(root: Path, named: bool) -> None:
    place = root / "ReasonVOS"
    save_pictures(place / "JPEGImages" / "cats")
    listed = [{"obj_id": n, "exp_id": n, "exp_text": f"which cat is {n}?", "is_sent": 1} for n in range(2)]
    asked = {str(each["exp_id"]): each for each in listed} if named else listed
    meta = {"videos": {"cats": {"source": "MOSE", "frames": FRAMES, "expressions": asked}}}
    save_json(place / "meta_expressions.json", meta)
    for n in range(2):
        folder = place / "Annotations" / (f"MOSE_cats_{n}" if n else f"mose_cats_{n}")
        folder.mkdir(parents=True)
        for t, frame in enumerate(FRAMES):
            Image.fromarray(blob(n, t).astype(np.uint8) * (255 if n else 7)).save(folder / f"{frame}.png")


def in_lvvis(root: Path) -> None:
    save_pictures(root / "LVVIS" / "train" / "JPEGImages" / "00001")
    asked = {"0": {"exp": "cat", "obj_id": [0], "anno_id": [10, 11], "category": "cat"}}
    meta = {"videos": {"00001": {"frames": FRAMES, "expressions": asked}}}
    save_json(root / "LVVIS" / "meta_expressions.json", meta)
    save_json(root / "LVVIS" / "mask_dict.json", mask_dict())


def in_samples(root: Path) -> None:
    for n in range(2):
        pictures = {}
        for t, frame in enumerate(FRAMES):
            save_pictures(root / "pictures")
            pictures[f"frames/{frame}.jpg"] = root / "pictures" / f"{FRAMES[t]}.jpg"
        sample = make_sample(
            f"cat {n}", {0: blob(n, 0), 2: blob(n, 2)}, frames=list(pictures), human=[2], source={"task": 41}
        )
        write_sample(root / "samples" / "day 1" / f"cat-{n}", sample, pictures)


def truth(*numbers: int) -> np.ndarray:
    return np.stack([np.any([blob(n, t) for n in numbers], axis=0) for t in range(3)])


# ---- the layouts ----------------------------------------------------------------------------------------------------


def test_mevis(tmp_path):
    place = in_mevis(tmp_path)
    for root in (tmp_path, tmp_path / "mevis"):
        dataset = open_dataset("mevis", root)
        assert (dataset.name, dataset.split, dataset.root) == ("mevis", "valid_u", tmp_path / "mevis")
    record = dataset.videos[0]
    assert (record.name, record.frame_names) == ("cats", tuple(FRAMES))
    assert [(one.id, one.text, one.objects, one.category) for one in record.expressions] == [
        ("0", "The cat that walks", ("10",), "one target"),
        ("1", "both cats", ("10", "11"), "several targets"),
        ("2", "the dog", (), "no target"),
        ("3", "the cat behind", ("11",), "one target"),
    ]
    assert (dataset.masks(0, 0) == truth(0)).all()
    both = dataset.masks(0, 1)
    assert both.dtype == bool
    assert (both == truth(0, 1)).all()  # overlapping pixels are set once
    assert not dataset.masks(0, 2).any()
    assert dataset.mask(0, 2, 0).shape == SIZE
    assert (dataset.masks(0, 3) == truth(1)).all()  # null where the object is gone
    assert dataset.frame(0, 1).shape == (*SIZE, 3)
    assert dataset.frame(0, 1)[0, 0, 0] > 150  # red: RGB, not BGR
    assert dataset.annotation_hash == hashlib.sha256((place / "meta_expressions.json").read_bytes()).hexdigest()


def test_a_generated_folder_is_read_as_mevis(tmp_path):
    from glus.datasets.synthetic import make_clip, write_mevis

    write_mevis(tmp_path / "made", 1, 5, frames=3, size=(48, 64))
    dataset, clip = open_dataset("mevis", tmp_path / "made"), make_clip(5, frames=3, size=(48, 64))
    for number, phrase in enumerate(clip.phrases):
        asked = dataset.videos[0].expressions[number]
        assert (asked.text, asked.category, len(asked.objects)) == (phrase.text, phrase.kind, len(phrase.objects))
        assert (dataset.masks(0, number) == clip.mask_of(phrase)).all()
    assert [finding.dataset for finding in check(tmp_path / "made", images=True)] == ["mevis valid_u"]


def test_mevis_valid_has_no_masks(tmp_path):
    place = in_mevis(tmp_path, "valid")
    (place / "mask_dict.json").unlink()
    meta = json.loads((place / "meta_expressions.json").read_text())
    for expression in meta["videos"]["cats"]["expressions"].values():
        del expression["anno_id"], expression["obj_id"]
    save_json(place / "meta_expressions.json", meta)
    dataset = open_dataset("mevis", tmp_path, "valid")
    assert not dataset.has_masks
    assert {one.objects for one in dataset.videos[0].expressions} == {()}


@pytest.mark.parametrize(("name", "folder"), [("ref-youtube-vos", "Refer-YouTube-VOS"), ("ref-davis17", "DAVIS17")])
def test_palette_pictures(tmp_path, name, folder):
    in_youtube(tmp_path, folder, "train")
    dataset = open_dataset(name, tmp_path, "train")
    first, second = dataset.videos[0].expressions[0], dataset.videos[0].expressions[4]
    assert [(one.objects, one.category) for one in (first, second)] == [(("1",), "cat"), (("2",), "fox")]
    visible = truth(0) & ~truth(1)
    visible[:, -1] = False  # void
    assert (dataset.masks(0, 0) == visible).all()
    assert (dataset.masks(0, 4) == truth(1)).all()


def test_youtube_valid_is_without_masks_and_without_test(tmp_path):
    in_youtube(tmp_path, "Refer-YouTube-VOS", "valid")
    place = tmp_path / "Refer-YouTube-VOS"
    (place / "valid" / "Annotations").rename(place / "hidden")
    path = place / "meta_expressions" / "valid" / "meta_expressions.json"
    meta = json.loads(path.read_text())
    meta["videos"]["hidden"] = {"frames": FRAMES, "expressions": {"0": {"exp": "a test video's phrase"}}}
    save_json(path, meta)
    dataset = open_dataset("ref-youtube-vos", place)
    assert not dataset.has_masks
    assert len(dataset.videos) == 2
    save_json(place / "meta_expressions/test/meta_expressions.json", {"videos": {"hidden": {}}})
    assert [record.name for record in open_dataset("ref-youtube-vos", place).videos] == ["cats"]


def test_davis_annotators(tmp_path):
    in_youtube(tmp_path, "DAVIS17", "valid")
    assert open_dataset("ref-davis17", tmp_path).annotators(0) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    path = tmp_path / "DAVIS17/meta_expressions/valid/meta_expressions.json"
    meta = json.loads(path.read_text())
    meta["videos"]["cats"]["expressions"]["3"]["obj_id"] = 2
    save_json(path, meta)
    assert open_dataset("ref-davis17", tmp_path).annotators(0) is None


def test_davis_as_rle_by_running_count(tmp_path):
    in_youtube(tmp_path, "DAVIS17", "valid")
    place = tmp_path / "DAVIS17"
    (place / "valid/Annotations").rename(tmp_path / "away")
    save_json(place / "valid/mask_dict.json", {str(n): [rle(blob(n // 4, t)) for t in range(3)] for n in range(8)})
    dataset = open_dataset("ref-davis17", tmp_path)
    assert dataset.has_masks
    assert (dataset.masks(0, 5) == truth(1)).all()


@pytest.mark.parametrize("between", ["", "480p"])
def test_davis_in_one_folder(tmp_path, between):
    save_pictures(tmp_path / "JPEGImages" / between / "cats")
    save_palette(tmp_path / "Annotations" / between / "cats")
    asked = {"0": {"exp": "a cat", "obj_id": "1", "source": "project"}}
    save_json(tmp_path / "meta_expressions.json", {"videos": {"cats": {"frames": FRAMES, "expressions": asked}}})
    dataset = open_dataset("ref-davis17", tmp_path)
    assert dataset.frame(0, 2).shape == (*SIZE, 3)
    assert (dataset.masks(0, 0) == (truth(0) & ~truth(1))).all()
    assert [finding.level for finding in check(tmp_path, images=True)] == ["found", "note"]


def test_revos(tmp_path):
    in_revos(tmp_path)
    dataset = open_dataset("revos", tmp_path)
    assert [one.category for one in dataset.videos[0].expressions] == ["referring", "reason", "type 2"]
    assert (dataset.masks(0, 1) == truth(0, 1)).all()
    assert all((dataset.foreground(0, t) == truth(0, 1)[t]).all() for t in range(3))
    assert dataset.frame(0, 0).shape == (*SIZE, 3)


@pytest.mark.parametrize("named", [False, True])
def test_reason_vos(tmp_path, named):
    in_reason_vos(tmp_path, named)
    dataset = open_dataset("reasonvos", tmp_path)
    assert [(one.id, one.text, one.category) for one in dataset.videos[0].expressions] == [
        ("0", "which cat is 0?", "MOSE"),
        ("1", "which cat is 1?", "MOSE"),
    ]
    for n in range(2):
        assert (dataset.masks(0, n) == truth(n)).all()
    assert dataset.score_name(0, 1) == "MOSE_cats_1_1"


def test_lvvis(tmp_path):
    in_lvvis(tmp_path)
    dataset = open_dataset("lvvis", tmp_path)
    assert dataset.videos[0].expressions[0].category == "cat"
    assert (dataset.masks(0, 0) == truth(0, 1)).all()


def test_a_data_set_travels_to_another_process(tmp_path):
    in_mevis(tmp_path)
    in_youtube(tmp_path, "DAVIS17", "valid")
    in_revos(tmp_path)
    in_reason_vos(tmp_path, named=False)
    in_samples(tmp_path)
    for name in ("mevis", "ref-davis17", "revos", "reasonvos"):
        dataset = open_dataset(name, tmp_path)
        before = dataset.masks(0, 0)
        copy = pickle.loads(pickle.dumps(dataset))
        assert "videos" not in copy.__dict__
        assert (copy.masks(0, 0) == before).all()
    samples = open_dataset("folder", tmp_path / "samples")
    assert samples.videos == pickle.loads(pickle.dumps(samples)).videos


# ---- what is broken -------------------------------------------------------------------------------------------------


def test_unknown_names(tmp_path):
    with pytest.raises(SettingError, match="wanted one of mevis"):
        open_dataset("mevi", tmp_path)
    with pytest.raises(SettingError, match="train, valid, valid_u"):
        open_dataset("mevis", tmp_path, "test")
    with pytest.raises(DataError, match="no folder"):
        open_dataset("mevis", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no file .*meta_expressions\.json"):
        _ = open_dataset("mevis", tmp_path).videos


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ({"exp": None}, "has None for 'exp'; wanted a phrase"),
        ({"exp": "  "}, "wanted a phrase"),
        ({"anno_id": [None]}, r"has \[None\] for 'anno_id'"),
        ({"anno_id": None}, "has None for 'anno_id'"),
    ],
)
def test_a_broken_expression_is_named(tmp_path, expression, message):
    place = in_mevis(tmp_path, **expression)
    with pytest.raises(DataError, match=message) as caught:
        _ = open_dataset("mevis", tmp_path).videos
    assert f"{place / 'meta_expressions.json'}: video 'cats', expression '3'" in str(caught.value)


@pytest.mark.parametrize("name", ["../cats", "/etc", "a/../../b", ""])
def test_names_stay_in_their_folder(tmp_path, name):
    place = in_mevis(tmp_path)
    asked = {"0": {"exp": "x", "anno_id": [10]}}
    save_json(place / "meta_expressions.json", {"videos": {name: {"frames": FRAMES, "expressions": asked}}})
    with pytest.raises(DataError, match="is named"):
        _ = open_dataset("mevis", tmp_path).videos
    save_json(place / "meta_expressions.json", {"videos": {"cats": {"frames": [f"{name}/x"], "expressions": asked}}})
    with pytest.raises(DataError, match="is named"):
        _ = open_dataset("mevis", tmp_path).videos


@pytest.mark.parametrize(
    "entry",
    [None, [], {}, {"frames": []}, {"frames": FRAMES}, {"frames": ["a", "a"], "expressions": {}}, {"frames": [3]}],
)
def test_a_broken_video_is_named(tmp_path, entry):
    place = in_mevis(tmp_path)
    save_json(place / "meta_expressions.json", {"videos": {"dogs": entry}})
    with pytest.raises(DataError, match="dogs"):
        _ = open_dataset("mevis", tmp_path).videos


def test_a_broken_annotation_file(tmp_path):
    place = in_mevis(tmp_path)
    for content in ("", "{", "[]", '{"videos": 3}'):
        (place / "meta_expressions.json").write_text(content)
        with pytest.raises(DataError, match=r"meta_expressions\.json"):
            _ = open_dataset("mevis", tmp_path).videos


def test_broken_masks_are_named(tmp_path):
    place = in_mevis(tmp_path)
    good = mask_dict()
    damaged = {**good["10"][1], "counts": good["10"][1]["counts"][:-1]}
    too_large = {**good["10"][1], "size": [240, 320]}
    for value, message in (
        ({"11": good["11"]}, "no annotation '10'"),
        ({"10": good["10"][:2]}, "masks for 2 frames, video 'cats' has 3"),
        ({"10": [good["10"][0], damaged, None]}, "annotation '10', frame 1 cannot be decoded"),
        ({"10": [good["10"][0], too_large, None]}, "annotation '10', frame 1 cannot be decoded"),
        ({"10": [None, {"size": "?"}, None]}, "annotation '10', frame 1 is"),
    ):
        save_json(place / "mask_dict.json", value)
        with pytest.raises(DataError, match=message):
            open_dataset("mevis", tmp_path).mask(0, 0, 1)
    text = json.dumps(good)
    for content, message in ((text[:-30], "cut off"), ("", "empty"), (text.replace("[{", "[{,", 1), "'10' is damaged")):
        (place / "mask_dict.json").write_text(content)
        with pytest.raises(DataError, match=message):
            open_dataset("mevis", tmp_path).mask(0, 0, 1)


def test_broken_pictures_are_named(tmp_path):
    in_youtube(tmp_path, "DAVIS17", "train")
    place = tmp_path / "DAVIS17/train"
    Image.new("RGB", SIZE[::-1]).save(place / "Annotations/cats/00000.png")
    (place / "Annotations/cats/00005.png").write_bytes(b"half")
    (place / "Annotations/cats/00010.png").unlink()
    (place / "JPEGImages/cats/00005.jpg").write_bytes(b"half")
    (place / "JPEGImages/cats/00010.jpg").unlink()
    dataset = open_dataset("ref-davis17", tmp_path, "train")
    for t, message in enumerate(("mode RGB", "cannot be read", "no mask")):
        with pytest.raises(DataError, match=f"{message}|{FRAMES[t]}"):
            dataset.mask(0, 0, t)
    for t, message in ((1, "cannot be read"), (2, "no picture")):
        with pytest.raises(DataError, match=message):
            dataset.frame(0, t)


# ---- RLE files --------------------------------------------------------------------------------------------------


def test_mask_dict_equals_json(tmp_path):
    rng = np.random.default_rng(0)
    value = {str(n): [rle(rng.random((17, 23)) > density) for density in (0.02, 0.5, 0.98, 1.1)] for n in range(40)} | {
        "plain": [{"size": [2, 3], "counts": [1, 2, 3]}]
    }
    for separators, indent in (((", ", ": "), None), ((",", ":"), None), ((", ", ": "), 2)):
        path = tmp_path / "mask_dict.json"
        path.write_text(json.dumps(value, separators=separators, indent=indent))
        read = MaskDict(path)
        assert list(read) == list(value)
        assert {name: read[name] for name in read} == value
    assert decode(read["plain"][0], "").astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]
    path.write_text("{}")
    assert len(MaskDict(path)) == 0


def test_decoding_checks_what_it_is_given():
    rng = np.random.default_rng(1)
    for density in (0, 0.01, 0.3, 0.5, 0.99, 1):
        mask = rng.random((61, 97)) < density
        encoded = encode_rle(mask)
        assert (decode(encoded, "here") == mask).all()
        assert (decode(encoded, "here") == decode_rle(encoded)).all()
    for counts in ("", "P", "\x00", "oooooooooooooooo0", "é", [1, 2], [-1, 7, 0], ["a"], encoded["counts"] + "1"):
        with pytest.raises(DataError, match="here cannot be decoded"):
            decode({"size": [2, 3], "counts": counts}, "here")
    for value in (None, 3, {}, {"size": [2], "counts": ""}, {"size": [2, 1e9], "counts": ""}, {"size": [2, 3]}):
        with pytest.raises(DataError, match="wanted COCO RLE"):
            decode(value, "here")


# ---- sample folders ---------------------------------------------------------------------------------------------


def test_samples_come_back_as_written(tmp_path):
    in_samples(tmp_path)
    dataset = open_dataset("folder", tmp_path / "samples")
    assert [record.name for record in dataset.videos] == ["day 1/cat-0", "day 1/cat-1"]
    assert [record.expressions[0].text for record in dataset.videos] == ["cat 0", "cat 1"]
    assert list(dataset.labelled(1, 0)) == [0, 2]
    assert dataset.human(1) == {2}
    assert (dataset.masks(1, 0) == truth(1)[[0, 2]]).all()
    assert dataset.frame(1, 2).shape == (*SIZE, 3)
    assert dataset.size(0) == SIZE
    with pytest.raises(DataError, match="no mask for frame 1"):
        dataset.mask(1, 0, 1)
    folder = tmp_path / "samples/day 1/cat-0"
    sample = read_sample(folder)
    assert sample.source == {"task": 41}
    alone = SampleDataset(folder)
    assert alone.videos[0].name == "cat-0"
    before = dataset.annotation_hash
    write_sample(folder, sample, {name: folder / name for name in sample.frames})
    assert read_sample(folder) == sample
    assert SampleDataset(tmp_path / "samples").annotation_hash == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_sample_may_refer_to_a_video(tmp_path, chair):
    mask = np.zeros((480, 720), bool)
    mask[100:200, 100:300] = True
    sample = make_sample("the chair", {59: mask}, frames=60, video=chair)
    write_sample(tmp_path / "one", sample)
    dataset = SampleDataset(tmp_path / "one")
    assert dataset.frame(0, 59).shape == (480, 720, 3)
    assert dataset.videos[0].frame_names[59] == "00059"
    assert (dataset.mask(0, 0, 59) == mask).all()
    assert [finding.level for finding in check(tmp_path, images=True)] == ["found"]
    write_sample(tmp_path / "one", make_sample("the chair", {5: mask}, frames=61, video=chair))
    with pytest.raises(DataError, match="has 60 frames"):
        SampleDataset(tmp_path / "one").frame(0, 0)
    write_sample(tmp_path / "one", make_sample("the chair", {5: mask}, frames=60, video="gone.mp4"))
    with pytest.raises(VideoError):
        SampleDataset(tmp_path / "one").frame(0, 0)


def test_a_sample_that_cannot_be_is_not_written(tmp_path):
    for change, message in (
        ({"expression": " "}, "no expression"),
        ({"frames": 3}, "list of pictures"),
        ({"frames": ["../x.jpg"] * 3}, "outside its folder"),
        ({"masks": {3: blob(0, 0)}}, "frames 0 to 2"),
        ({"masks": {}}, "masks of 0 sizes"),
        ({"masks": {0: blob(0, 0), 1: blob(0, 0)[:3]}}, "masks of 2 sizes"),
        ({"human": [1]}, "frame 1 human-made"),
    ):
        parts = {"expression": "a cat", "masks": {0: blob(0, 0)}, "frames": list(FRAMES), **change}
        with pytest.raises(SettingError, match=message):
            make_sample(**parts)
    sample = make_sample("a cat", {0: blob(0, 0)}, frames=["a.jpg", "b.jpg"])
    with pytest.raises(SettingError, match=r"no picture given for 'b.jpg' \(1 of 2"):
        write_sample(tmp_path / "s", sample, {"a.jpg": b""})
    with pytest.raises(FileNotFoundError):  # half-way
        write_sample(tmp_path / "s", sample, {"a.jpg": b"", "b.jpg": tmp_path / "none"})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_sample_is_named(tmp_path):
    in_samples(tmp_path)
    path = tmp_path / "samples/day 1/cat-0/meta.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"format": 2}, "format 2"),
        ({"size": None}, "not a sample"),
        ({"masks": {"x": None}}, "not a sample"),
        ({"masks": {"9": good["masks"]["0"]}}, "frame 9"),
        ({"human": [1]}, "human-made"),
    ):
        save_json(path, {**good, **change})
        with pytest.raises(DataError, match=message) as caught:
            read_sample(path.parent)
        assert str(path) in str(caught.value)


# ---- the check ------------------------------------------------------------------------------------------------------


@pytest.fixture
def everything(tmp_path) -> Path:
    in_mevis(tmp_path)
    in_youtube(tmp_path, "Refer-YouTube-VOS", "train")
    in_youtube(tmp_path, "DAVIS17", "valid")
    in_revos(tmp_path)
    in_reason_vos(tmp_path, named=False)
    in_lvvis(tmp_path)
    return tmp_path


def test_check_counts_what_is_there(everything):
    said = []
    findings = check(everything, images=True, progress=lambda *step: said.append(step))
    assert [finding for finding in findings if finding.level == "broken"] == []
    found = {finding.dataset: finding.counts for finding in findings if finding.level == "found"}
    assert found["mevis valid_u"] == {"videos": 1, "expressions": 4, "frames": 3, "without_target": 1}
    assert set(found) == {
        "mevis valid_u", "ref-youtube-vos train", "ref-davis17 valid", "revos train", "revos valid", "reasonvos valid",
        "lvvis train",
    }  # fmt: skip
    assert [finding.dataset for finding in findings if finding.level == "note"] == [
        "mevis train", "mevis valid", "ref-youtube-vos valid", "ref-davis17 train",
    ]  # fmt: skip
    assert len(said) == 7


@pytest.mark.parametrize("folder", ["mevis", "Refer-YouTube-VOS", "DAVIS17", "ReVOS", "ReasonVOS", "LVVIS"])
def test_check_takes_the_folder_of_one(everything, folder):
    findings = check(everything / folder)
    assert len({finding.dataset.split()[0] for finding in findings}) == 1
    assert "found" in {finding.level for finding in findings}


def test_check_says_all_that_is_broken(everything):
    meta = everything / "mevis/valid_u/meta_expressions.json"
    value = json.loads(meta.read_text())
    value["videos"]["dogs"] = {"frames": FRAMES, "expressions": {"0": {"exp": 3}}}
    value["videos"]["gone"] = {"frames": FRAMES, "expressions": {"0": {"exp": "x", "anno_id": [99]}}}
    save_json(meta, value)
    (everything / "DAVIS17/valid/Annotations/cats/00005.png").unlink()
    (everything / "ReVOS/meta_expressions_train_.json").write_text("{")
    (everything / "ReVOS/mask_dict_foreground.json").unlink()
    (everything / "ReasonVOS/Annotations/mose_cats_0/00000.png").write_bytes(b"half")
    broken = [finding.message for finding in check(everything) if finding.level == "broken"]
    assert len(broken) == 5
    for message, part in zip(
        broken,
        (
            "expression '0' has 3",
            "gone/00000.jpg (3 of the 3",
            "no annotation '99'",
            "00005.png (1 of the 3",
            "_train_.json",
        ),
        strict=True,
    ):
        assert part in message
    notes = [finding.message for finding in check(everything) if finding.level == "note"]
    assert any("robustness" in note for note in notes)
    deep = [finding.message for finding in check(everything, images=True) if finding.level == "broken"]
    assert any("mose_cats_0/00000.png cannot be read" in message for message in deep)


def test_check_of_nothing(tmp_path):
    assert [finding.level for finding in check(tmp_path)] == ["note"]
    with pytest.raises(DataError, match="no folder"):
        check(tmp_path / "nowhere")
    in_samples(tmp_path)
    assert check(tmp_path)[0].counts["videos"] == 2
