"""The service with a real network behind it: what /predict answers is what `glus.segment` gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
from backend_helpers import until
from PIL import Image

import glus
from glus_backend.app import create_app
from glus_backend.engine import Engine
from glus_backend.results import region_mask
from glus_backend.settings import Settings

PROMPTS = ["the chair", "the reflection in the glass"]


@pytest.fixture
def clip(chair):
    """Eight real frames, as they come out of the JPEG files that the site serves."""
    pictures = []
    for frame in glus.video.open_video(chair).frames(0, 8):
        file = io.BytesIO()
        Image.fromarray(frame).resize((360, 240)).save(file, "JPEG", quality=95)
        pictures.append(file.getvalue())
    return pictures


def test_predictions_are_the_masks_of_the_model(site, clip, capture, tiny_checkpoint, tiny_model, tmp_path):
    for index, picture in enumerate(clip):
        site.pages[f"/{index:05d}.jpg"] = picture
    body = capture("predict_request_interactive_textarea_frames")
    task = body["tasks"][0]
    task["data"] = {"frames": [f"{site.url}/{i:05d}.jpg" for i in range(len(clip))], "prompt": "\n".join(PROMPTS)}
    body["params"]["context"] = None

    settings = Settings.for_tests(tmp_path, model=str(tiny_checkpoint), predict_wait=90, device="cpu")
    engine = Engine.from_settings(settings)
    app = create_app(settings, engine)
    try:
        engine.start()
        client = app.test_client()
        version = client.post("/setup", json={**capture("setup_request"), "project": body["project"]}).json
        until(lambda: engine.ready, 90)
        [item] = client.post("/predict", json=body).json["results"]
    finally:
        app.extensions["glus_jobs"].stop()
        engine.stop()

    assert item["model_version"] == version["model_version"]
    assert 0 < item["score"] <= 1
    frames = [np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in clip]
    expected = {
        (m.expression_index, m.frame_index): m.mask for m in glus.segment(tiny_model, frames, PROMPTS) if m.present
    }
    regions = [r for r in item["result"] if r["type"] == "brushlabels"]
    got = {(r["meta"]["glus"]["object_id"] - 1, r["item_index"]): region_mask(r) for r in regions}
    assert got.keys() == expected.keys()
    assert len(got) == len(PROMPTS) * len(clip)
    for key, mask in expected.items():
        assert np.array_equal(got[key], mask), key
