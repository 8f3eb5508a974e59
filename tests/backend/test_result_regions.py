"""Masks to Label Studio regions and back."""

from __future__ import annotations

import numpy as np
import pytest
from disc_segmenter import disc

from glus_backend.contracts import MaskTrack, ObjectMask, TextField, VideoTask
from glus_backend.errors import ResultError
from glus_backend.results import brush_regions, mean_score, region_mask, text_region, tracks_from_result

TASK = VideoTask(
    task_id=5,
    project="1.2",
    frames=tuple(f"/f/{n}.jpg" for n in range(20)),
    prompts=("the cat", "the dog"),
    labels=("cat", "dog"),
    from_name="mask",
    to_name="frames",
)


def tracks(absent: int = -1):
    return tuple(
        MaskTrack(
            number + 1,
            prompt,
            tuple(
                ObjectMask.from_mask(index, disc(index, number) & (index != absent), round(0.5 + index / 100, 2))
                for index in range(12)
            ),
        )
        for number, prompt in enumerate(TASK.prompts)
    )


def test_there_and_back():
    assert tracks_from_result(brush_regions(TASK, tracks()), TASK) == tracks()


def test_frames_without_the_object_get_no_region():
    regions = brush_regions(TASK, tracks(absent=4))
    assert len(regions) == 22
    assert 4 not in {region["item_index"] for region in regions}


def test_a_mask_that_the_model_calls_absent_is_not_shown():
    mask = ObjectMask.from_mask(0, disc(0, 0), 0.1, present=False)
    assert brush_regions(TASK, [MaskTrack(1, "the cat", (mask,))]) == []


def test_a_region_has_the_form_of_the_recorded_ones(capture):
    recorded = capture("predict_response_frames_brush")["results"][0]["result"]
    one = recorded[1]
    track = tracks_from_result(recorded, TASK)[0]
    labelled = VideoTask(**{**TASK.__dict__, "labels": ("target", "dog")})
    ours = brush_regions(labelled, [track])[1]
    assert ours.keys() == one.keys()
    rle, recorded_rle = ours["value"].pop("rle"), one["value"].pop("rle")
    assert ours == one
    assert recorded_rle in (rle, [*rle, 0])


def test_ids_and_labels_of_the_second_object():
    region = brush_regions(TASK, tracks())[-1]
    assert region["id"] == "obj2-frame00011"
    assert region["value"]["brushlabels"] == ["dog"]
    assert region["meta"] == {"glus": {"object_id": 2, "frame": 11}}
    assert (region["original_width"], region["original_height"], region["image_rotation"]) == (64, 48, 0)


def test_a_mask_beyond_the_list_of_frames_is_an_error():
    mask = ObjectMask.from_mask(20, disc(0, 0), 0.9)
    with pytest.raises(ResultError, match=r"frame 20 .* has 20 frames"):
        brush_regions(TASK, [MaskTrack(1, "the cat", (mask,))])


def test_what_is_not_a_mask_of_ours_is_passed_over(capture):
    regions = brush_regions(TASK, tracks())
    extra = [
        text_region(TextField("status", "frames"), "done"),
        {"from_name": "mask", "type": "brushlabels", "value": {"text": ["x"], "brushlabels": ["cat"]}},
        {"from_name": "prompt", "value": {"text": ["the cat"]}},
    ]
    assert tracks_from_result([*extra, *regions], TASK) == tracks()


def test_a_recorded_submission_comes_back(capture):
    result = capture("ui_submit_annotation_request_correction_loop")["result"]
    task = VideoTask(**{**TASK.__dict__, "frames": ("x",) * 30})
    track = tracks_from_result(result, task)[0]
    assert [mask.frame_index for mask in track.masks] == [12, 19, 21]
    assert all(mask.present for mask in track.masks)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item_index": 30}, "item_index 30"),
        ({"item_index": None}, "item_index None"),
        ({"meta": {"glus": {"object_id": 9}}}, "object 9"),
        ({"original_width": None}, "no original_width"),
        ({"original_width": 65}, "do not belong"),
        ({"value": {"rle": []}}, "has no mask"),
    ],
)
def test_regions_that_cannot_be_read_say_why(changes, words):
    region = {**brush_regions(TASK, tracks())[0], **changes}
    with pytest.raises(ResultError, match=words):
        tracks_from_result([region], TASK)


def test_strokes_that_are_not_merged_are_not_lost_silently(capture):
    region = capture("predict_request_correction_loop")["tasks"][0]["drafts"][0]["result"][0]
    with pytest.raises(ResultError, match="2 brush strokes"):
        region_mask(region)


def test_the_mean_score():
    assert mean_score(brush_regions(TASK, tracks())) == pytest.approx(np.mean([0.5 + n / 100 for n in range(12)]))
    assert mean_score([]) == 0
    assert mean_score([text_region(TextField("status", "frames"), "x")]) == 0
