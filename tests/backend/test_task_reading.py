"""Task JSON and labelling configs to VideoTask."""

from __future__ import annotations

import pytest

from glus_backend.contracts import TextField
from glus_backend.errors import ConfigError, TaskError
from glus_backend.tasks import (
    MINIMAL_CONFIG,
    correction_asked,
    find_prompts,
    label_for,
    read_config,
    status_field,
    video_task,
)

IMAGE = '<Image name="frames" valueList="$frames"/>'
BRUSH = '<BrushLabels name="mask" toName="frames"><Label value="target"/></BrushLabels>'


def config_of(*tags: str):
    return read_config(f"<View>{''.join(tags)}</View>")


def test_recorded_configs(capture):
    plain = read_config(capture("frames_brush.xml"))
    assert (plain.image, plain.frames_key, plain.brush) == ("frames", "frames", "mask")
    assert plain.labels == ("target", "distractor")
    assert plain.prompt == TextField("prompt", "frames")
    assert plain.status == TextField("status", "frames")
    assert plain.video_key is None
    both = read_config(capture("video_and_frames_brush.xml"))
    assert (both.image, both.brush, both.prompt, both.status) == (
        "frames",
        "mask",
        TextField("prompt", "video"),
        None,
    )
    assert both.video_key == "video"
    assert read_config(capture("frames_brush_smart.xml")).labels == ("target", "distractor")
    assert read_config(MINIMAL_CONFIG).status == TextField("status", "frames")


def test_names_come_from_the_config_not_from_habit():
    config = config_of(
        '<image name="pics" valuelist="$clip"/>',
        '<TextArea name="what" toname="pics" value="$prompt"/>',
        '<BrushLabels name="other" toName="elsewhere"><Label value="x"/></BrushLabels>',
        '<BrushLabels name="paint" toName="pics"><View><Label value="cat"/><Label value="dog"/></View></BrushLabels>',
    )
    assert (config.image, config.frames_key, config.brush, config.labels) == (
        "pics",
        "clip",
        "paint",
        ("cat", "dog"),
    )
    assert config.prompt == TextField("what", "pics")


def test_the_prompt_box_names_the_key_of_the_prompt():
    config = config_of(IMAGE, BRUSH, '<TextArea name="prompt" toName="frames" value="$sentence"/>')
    task = {"id": 1, "data": {"frames": ["a"], "sentence": "the cat", "prompt": "another"}}
    assert find_prompts(task, config) == ("the cat",)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            ('<Video name="v" value="$video"/>', '<VideoRectangle name="box" toName="v"/>'),
            r"no <Image valueList",
        ),
        (
            ('<Image name="frames" value="$image"/>', BRUSH),
            r"no <Image valueList.*it has <Image>, <BrushLabels>",
        ),
        (('<Image name="frames" valueList="frames"/>', BRUSH), r"no <Image valueList"),
        (
            (IMAGE, '<PolygonLabels name="m" toName="frames"><Label value="t"/></PolygonLabels>'),
            r"no <BrushLabels>",
        ),
        (
            (IMAGE, BRUSH.replace('toName="frames"', 'toName="pics"')),
            r'<BrushLabels> whose toName is "frames"',
        ),
        ((IMAGE, '<BrushLabels name="mask" toName="frames"/>'), r'name="mask"> has no <Label'),
        ((), r"it has no tags"),
    ],
)
def test_a_config_that_cannot_work_says_which_tag_is_missing_and_shows_one_that_works(tags, words):
    with pytest.raises(ConfigError, match=words) as caught:
        config_of(*tags)
    assert MINIMAL_CONFIG in str(caught.value)


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<View>", "not XML"),
        ("", "not XML"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', "entities"),
    ],
)
def test_text_that_is_no_config(xml, words):
    with pytest.raises(ConfigError, match=words):
        read_config(xml)
    assert status_field(xml) is None


def test_a_place_for_messages_is_found_in_unusable_configs_too(capture):
    assert status_field(capture("video_upload_prompt.xml")) == TextField("status", "video")
    assert status_field(capture("video_boxes.xml")) is None


def typed(*texts: str, name: str = "prompt"):
    return {"type": "textarea", "from_name": name, "to_name": "frames", "value": {"text": list(texts)}}


def saved(text: str, at: str, name: str = "prompt"):
    return {"updated_at": at, "result": [typed(text, name=name)]}


PROMPTS = {
    "typed before all else": (
        {"data": {"prompt": "data"}, "drafts": [saved("draft", "2026-01-01")]},
        [typed("typed")],
        "typed",
    ),
    "the last entry": ({}, [typed("first", "second")], "second"),
    "by name, not by position": (
        {},
        [typed("typed"), typed("busy", name="status"), typed("update", name="run")],
        "typed",
    ),
    "an emptied box does not count": ({"data": {"prompt": "data"}}, [typed()], "data"),
    "a blank box does not count": ({"data": {"prompt": "data"}}, [typed("  ")], "data"),
    "draft before data": (
        {"data": {"prompt": "data"}, "drafts": [saved("draft", "2026-01-01")]},
        None,
        "draft",
    ),
    "the newest of drafts and annotations": (
        {
            "drafts": [saved("old", "2026-01-01T10:00:00Z"), saved("newer", "2026-01-03T10:00:00Z")],
            "annotations": [saved("newest", "2026-01-04T10:00:00Z"), saved("old", "2026-01-02T10:00:00Z")],
        },
        None,
        "newest",
    ),
    "a draft without a prompt is passed over": (
        {"drafts": [saved("x", "2026-02-01", name="run")], "annotations": [saved("asked", "2026-01-01")]},
        None,
        "asked",
    ),
    "data": ({"data": {"prompt": "data"}}, None, "data"),
    "the connection's default last": ({"data": {"prompt": ""}}, None, "default"),
}


@pytest.mark.parametrize(("task", "context", "wanted"), PROMPTS.values(), ids=PROMPTS)
def test_which_prompt_counts(task, context, wanted, capture):
    config = read_config(capture("frames_brush.xml"))
    asked = None if context is None else {"result": context}
    assert find_prompts(task, config, context=asked, extra_params={"prompt": "default"}) == (wanted,)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("the cat\n  the   dog \n\n", ("the cat", "the dog")),
        (["the cat", "", "the dog\nthe bird"], ("the cat", "the dog", "the bird")),
        (["the cat", "the cat"], ("the cat",)),
        (7, ()),
        (None, ()),
    ],
)
def test_several_prompts_are_several_objects(prompt, wanted):
    assert find_prompts({"data": {"prompt": prompt}}, config_of(IMAGE, BRUSH)) == wanted


@pytest.mark.parametrize(
    ("prompt", "labels", "wanted"),
    [
        ("the Dog that turns", ("cat", "dog"), "dog"),
        ("the dog", ("cat", "DOG"), "DOG"),
        ("the hot dog on the left", ("dog", "hot dog"), "hot dog"),
        ("the bird", ("cat", "dog"), "cat"),
    ],
)
def test_the_label_of_a_prompt(prompt, labels, wanted):
    assert label_for(prompt, labels) == wanted


def test_a_recorded_request_becomes_a_task(capture):
    body = capture("predict_request_interactive_textarea_frames")
    task = video_task(
        body["tasks"][0],
        read_config(body["label_config"]),
        body["project"],
        context=body["params"]["context"],
    )
    assert task.task_id == 328
    assert task.project == "39.1795348935"
    assert task.frames[1] == "http://127.0.0.1:9096/frames/00001.jpg"
    assert len(task.frames) == 3
    assert (task.prompts, task.labels) == (("the yellow disc",), ("target",))
    assert (task.from_name, task.to_name, task.status) == ("mask", "frames", None)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            {"id": 41, "data": {"clip": "x", "prompt": "p"}},
            r'task 41 has no value for "frames" \(its data has "clip", "prompt"\)',
        ),
        ({"id": 41, "data": {"frames": "a.jpg", "prompt": "p"}}, r'task 41 has a str under "frames"'),
        ({"id": 41, "data": {"frames": [], "prompt": "p"}}, r"a list of 0"),
        ({"id": 41, "data": {"frames": ["a", 3], "prompt": "p"}}, r"a list of 2"),
        ({"id": 41, "data": {"frames": ["a"]}}, r"task 41 has no prompt"),
        ({"id": 41}, r'task 41 has no "data"'),
        ({"data": {}}, r"the id None"),
    ],
)
def test_a_task_that_cannot_be_segmented_says_why(task, words, capture):
    with pytest.raises(TaskError, match=words):
        video_task(task, read_config(capture("frames_brush.xml")), "1.2")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("predict_request_interactive_textarea_frames", None),
        ("predict_request_interactive_keypoint_frames", "click"),
        ("predict_request_interactive_rectangle_frames", "box"),
        ("predict_request_correction_loop", "update"),
        ("predict_request_batch", None),
    ],
)
def test_requests_that_ask_for_more_than_a_prompt_are_told_apart(name, wanted, capture):
    assert correction_asked(capture(name)["params"]["context"]) == wanted
