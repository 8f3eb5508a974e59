"""The service as Label Studio meets it: recorded requests against the app, over a real worker."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
from backend_helpers import until
from disc_segmenter import disc

from glus_backend.results import decode_brush


def body_for(capture, frames, *, prompt="the yellow disc", task_ids=(1,), context=None, config="frames_brush.xml"):
    """A batch request in the recorded form, for frames that exist here."""
    body = capture("predict_request_batch")
    recorded = body["tasks"][0]
    body["tasks"] = [{**recorded, "id": n, "data": {"frames": frames, "prompt": prompt}} for n in task_ids]
    body["label_config"] = capture(config)
    body["params"]["context"] = context
    return body


def typed(text):
    return {"result": [{"type": "textarea", "from_name": "prompt", "to_name": "frames", "value": {"text": [text]}}]}


def status_of(item):
    return [region["value"]["text"][0] for region in item.get("result", []) if region["from_name"] == "status"]


def answer_of(made, body):
    """The item of the first request that has masks."""
    items = []

    def asked():
        items[:] = made.predict(body)
        return "result" in items[0]

    until(asked)
    return items[0]


def test_health_setup_and_versions(service, capture):
    made = service()
    for path in ("/", "/health"):
        assert made.client.get(path).json == {"status": "UP", "model_class": "GLUS"}
    assert made.client.post("/setup", json=capture("setup_request")).json == {"model_version": "glus-test"}
    assert made.client.get("/versions").json == {"versions": ["glus-test"]}
    stored = json.loads((made.settings.data_dir / "projects.json").read_text())
    assert stored[0]["project"] == "38.1795348927"
    assert stored[0]["extra_params"] == {"any": "json"}


def test_a_recorded_interactive_request_is_answered_with_masks(service, capture, site, frames):
    made = service()
    body = capture("predict_request_interactive_textarea_frames")
    body["tasks"][0]["data"]["frames"] = [
        url.replace("http://127.0.0.1:9096", site.url) for url in body["tasks"][0]["data"]["frames"]
    ]
    (item,) = made.predict(body)
    assert item["model_version"] == made.client.post("/setup", json=capture("setup_request")).json["model_version"]
    assert item["score"] == pytest.approx(0.9)
    assert [region["id"] for region in item["result"]] == [f"obj1-frame0000{n}" for n in range(3)]
    for index, region in enumerate(item["result"]):
        assert (region["item_index"], region["from_name"], region["to_name"]) == (index, "mask", "frames")
        assert np.array_equal(decode_brush(region["value"]["rle"], 48, 64), disc(index, 0))


def test_a_batch_is_answered_in_order_one_item_per_task(service, capture, frames):
    made = service()
    body = body_for(capture, frames, task_ids=(7, 8, 9))
    body["tasks"][1]["data"] = {"clip": "x"}
    body["tasks"][2]["data"]["prompt"] = "absent"
    first, second, third = made.predict(body)
    assert len(first["result"]) == 6
    assert second == {"score": 0}
    assert third == {"result": [], "score": 0.0, "model_version": "glus-test"}


def test_several_prompts_are_several_objects_with_their_labels(service, capture, frames):
    (item,) = service().predict(body_for(capture, frames, prompt=["the target", "the distractor"]))
    assert {(r["meta"]["glus"]["object_id"], *r["value"]["brushlabels"]) for r in item["result"]} == {
        (1, "target"),
        (2, "distractor"),
    }
    assert len({region["id"] for region in item["result"]}) == 12


@pytest.mark.parametrize("name", ["predict_request_task_open", "predict_request_batch"])
def test_recorded_requests_of_a_project_that_cannot_hold_masks(service, capture, name, caplog):
    body = capture(name)
    made = service(start=False)
    assert made.predict(body) == [{"score": 0}] * len(body["tasks"])
    assert "no <Image valueList" in caplog.text
    assert capture("predict_response_nothing_yet") == {"results": [{"score": 0}]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("predict_request_interactive_keypoint_frames", "clicks are not used yet"),
        ("predict_request_interactive_rectangle_frames", "boxes are not used yet"),
        ("predict_request_correction_loop", "corrections are not carried"),
    ],
)
def test_what_we_cannot_do_yet_is_said_and_no_mask_is_touched(service, capture, name, words):
    (item,) = service(start=False).predict(capture(name))
    assert [region["type"] for region in item["result"]] == ["textarea"]
    assert words in status_of(item)[0]


def test_not_finished_in_time_then_the_answer_from_the_store(service, capture, frames, tmp_path):
    gate = tmp_path / "gate"
    made = service(options={"gate": str(gate)}, predict_wait=0.05)
    body = body_for(capture, frames, prompt="gated")
    assert made.predict(body) == [{"score": 0}]
    interactive = body_for(capture, frames, context=typed("gated"))
    until(lambda: "2 of 6 frames" in status_of(made.predict(interactive)[0])[0])
    (item,) = made.predict(interactive)
    assert [region["from_name"] for region in item["result"]] == ["status"]
    assert item["score"] == 0
    gate.touch()
    item = answer_of(made, body)
    assert len(item["result"]) == 6
    assert answer_of(made, body) == item  # told once, now out of the store
    assert made.clips_segmented() == 1


def test_a_finished_answer_replaces_what_the_status_said(service, capture, frames):
    (item,) = service().predict(body_for(capture, frames, context=typed("the disc")))
    assert status_of(item) == ["6 masks on 6 of 6 frames"]
    (item,) = service(start=False).predict(body_for(capture, frames, context=typed("the disc")))
    assert status_of(item) == ["6 masks on 6 of 6 frames"]


def test_a_failure_that_nobody_heard_is_told_at_the_next_request(service, capture, frames):
    made = service(predict_wait=0)
    body = body_for(capture, frames, context=typed("broken"))
    until(lambda: "segmentation failed" in status_of(made.predict(body)[0])[0])
    assert made.clips_segmented() == 1


def test_the_store_outlives_the_service(service, capture, frames):
    first = service()
    answer = first.predict(body_for(capture, frames))
    first.engine.stop()
    second = service(start=False)
    assert second.predict(body_for(capture, frames, task_ids=(99,))) == answer
    assert second.engine.worker_pid is None


def test_new_pictures_under_an_old_address_are_segmented_again(service, capture, site, frames):
    made = service()
    made.predict(body_for(capture, frames))
    site.pages["/frames/00003.jpg"] = b"\xff\xd8\xff another picture"
    made.predict(body_for(capture, frames))
    assert made.clips_segmented() == 2


def test_a_damaged_file_in_the_store_is_made_again(service, capture, frames):
    made = service()
    answer = made.predict(body_for(capture, frames))
    (stored,) = (made.settings.data_dir / "predictions").iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    assert made.predict(body_for(capture, frames)) == answer
    assert made.clips_segmented() == 2


@pytest.mark.parametrize(
    ("prompt", "config", "words"),
    [
        ("broken", "frames_brush.xml", "segmentation failed: ValueError"),
        ("fatal", "frames_brush.xml", "exit status 3"),
        ("the disc", "video_upload_prompt.xml", "no <Image valueList"),
        ("", "frames_brush.xml", "has no prompt"),
    ],
)
def test_a_failure_is_said_to_the_person_and_leaves_a_batch_without_result(
    service, capture, frames, prompt, config, words, caplog
):
    made = service()
    (item,) = made.predict(body_for(capture, frames, prompt="", context=typed(prompt), config=config))
    assert words in status_of(item)[0]
    assert [region["type"] for region in item["result"]] == ["textarea"]
    assert made.predict(body_for(capture, frames, prompt=prompt, config=config)) == [{"score": 0}]
    assert words in caplog.text


def test_frames_that_cannot_be_had(service, capture, site):
    body = body_for(capture, [f"{site.url}/gone.jpg"], context=typed("the disc"))
    (item,) = service().predict(body)
    assert "gone.jpg was answered with status 404" in status_of(item)[0]


def test_without_a_place_for_messages_an_interactive_failure_changes_nothing(service, capture, frames):
    body = body_for(capture, frames, context=typed("broken"), config="video_and_frames_brush.xml")
    assert service().predict(body) == [{"score": 0}]


def test_the_connections_default_prompt_and_host_come_from_setup(service, capture, site, frames):
    made = service()
    setup = capture("setup_request")
    setup |= {"hostname": site.url, "access_token": "from-setup", "extra_params": '{"prompt": "the default"}'}
    made.client.post("/setup", json=setup)
    body = body_for(capture, [f"/frames/{n:05d}.jpg" for n in range(6)], prompt="")
    body["project"] = setup["project"]
    (item,) = made.predict(body)
    assert len(item["result"]) == 6
    assert site.authorizations("/frames/00000.jpg") == ["Token from-setup"]


def test_a_worker_killed_mid_job_is_said_and_replaced(service, capture, frames):
    made = service(options={"gate": "/nonexistent/gate"})
    answers = []
    ask = threading.Thread(
        target=lambda: answers.extend(made.predict(body_for(capture, frames, context=typed("gated"))))
    )
    ask.start()
    until(made.clips_segmented)
    os.kill(made.engine.worker_pid, signal.SIGKILL)
    ask.join(30)
    assert "killed by SIGKILL" in status_of(answers[0])[0]
    assert len(made.predict(body_for(capture, frames))[0]["result"]) == 6


def test_health_is_answered_while_the_model_loads_and_while_it_works(service, capture, frames, tmp_path):
    load_gate, gate = tmp_path / "load", tmp_path / "work"
    made = service(options={"load_gate": str(load_gate), "gate": str(gate)}, predict_wait=0.05)
    interactive = body_for(capture, frames, context=typed("gated"))
    assert made.client.post("/setup", json=capture("setup_request")).status_code == 200
    assert made.client.get("/health").status_code == 200
    until(lambda: "model is still being loaded" in status_of(made.predict(interactive)[0])[0])
    assert made.client.post("/setup", json=capture("setup_request")).status_code == 200
    load_gate.touch()
    until(lambda: "2 of 6 frames" in status_of(made.predict(interactive)[0])[0])
    assert made.client.get("/health").json["status"] == "UP"
    gate.touch()


def test_requests_beyond_the_free_threads_do_not_wait(service, capture, frames, tmp_path):
    gate = tmp_path / "gate"
    made = service(options={"gate": str(gate)}, threads=3, predict_wait=30)
    answers = []
    first = threading.Thread(target=lambda: answers.extend(made.predict(body_for(capture, frames, prompt="gated"))))
    first.start()
    until(made.clips_segmented)
    assert made.predict(body_for(capture, frames, prompt="gated")) == [{"score": 0}]
    assert not answers
    gate.touch()
    first.join(30)
    assert len(answers[0]["result"]) == 6


def test_a_person_does_not_wait_behind_a_batch(service, capture, frames, tmp_path):
    gate = tmp_path / "gate"
    made = service(options={"gate": str(gate)}, predict_wait=0.05)
    batch = body_for(capture, frames, task_ids=range(1, 6))
    for number, task in enumerate(batch["tasks"]):
        task["data"] = {"frames": frames, "prompt": f"gated {number}"}
    assert made.predict(batch) == [{"score": 0}] * 5
    until(made.clips_segmented)
    person = body_for(capture, frames, context=typed("gated 4"))
    made.predict(person)  # the same clip and words as the batch's last
    gate.touch()
    until(lambda: len(made.predict(person)[0]["result"]) > 1)
    order = made.calls.read_text().splitlines()
    assert sum("gated 4" in line for line in order) == 1
    answered: set[int] = set()

    def everything_answered():
        answered.update(n for n, item in enumerate(made.predict(batch)) if "result" in item)
        return len(answered) == 5

    until(everything_answered)
    assert made.clips_segmented() == 5


def test_events_are_answered_at_once(service, capture):
    made = service(start=False)
    for name in ("webhook_ANNOTATION_CREATED_ui_frames", "webhook_START_TRAINING"):
        answer = made.client.post("/webhook", json=capture(name))
        assert (answer.status_code, answer.json) == (200, {})


@pytest.mark.parametrize(
    ("path", "sent", "words"),
    [
        ("/predict", b"prompt=the+disc", "not a JSON object"),
        ("/predict", b"[1]", "not a JSON object"),
        ("/predict", b"{}", 'no list of "tasks"'),
        ("/predict", b'{"tasks": [1]}', 'no list of "tasks"'),
        ("/predict", b'{"tasks": []}', 'no "label_config"'),
        ("/setup", b"\xff", "not a JSON object"),
        ("/setup", b"{}", 'no "project"'),
        ("/setup", b'{"project": "1.2", "extra_params": "{"}', "not JSON"),
        ("/webhook", b"", "not a JSON object"),
    ],
)
def test_bodies_that_label_studio_does_not_send(service, path, sent, words):
    answer = service(start=False).client.post(path, data=sent)
    assert answer.status_code == 400
    assert words in answer.json["error"]


def test_other_errors_are_json_too(service):
    client = service(start=False).client
    assert (client.get("/nowhere").status_code, client.get("/predict").status_code) == (404, 405)
    assert "/nowhere" in client.get("/nowhere").json["error"]


def test_bodies_of_many_megabytes(service, capture, frames):
    body = body_for(capture, frames)
    body["tasks"][0]["predictions"] = [{"result": [{"value": {"rle": [255] * 3_000_000}}]}]
    assert len(service().predict(body)[0]["result"]) == 6
