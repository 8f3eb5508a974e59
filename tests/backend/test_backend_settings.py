"""Settings out of an environment."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from glus_backend.errors import SettingError
from glus_backend.settings import SETTINGS, Settings


def test_nothing_set_is_the_default():
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"GLUS_MODEL": " "}) == Settings()


def test_every_field_has_one_name_in_the_table():
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert sorted(setting.field for setting in SETTINGS) == sorted(fields)
    assert all(setting.name.startswith(("GLUS_", "LABEL_STUDIO_")) for setting in SETTINGS)


def test_values_are_read():
    settings = Settings.from_env(
        {
            "GLUS_MODEL": "/models/GLUS-A",
            "GLUS_PREDICT_WAIT": "3.5",
            "GLUS_THREADS": "5",
            "GLUS_LOCAL_ROOTS": os.pathsep.join(["/a", "/b"]),
            "LABEL_STUDIO_URL": "http://studio:8080",
            "LABEL_STUDIO_API_KEY": "secret",
        }
    )
    assert settings.model_version == "GLUS-A"
    assert (settings.predict_wait, settings.threads) == (3.5, 5)
    assert settings.local_roots == (Path("/a"), Path("/b"))
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"GLUS_PREDICT_WAIT": "100"}, "hangs up after 100"),
        ({"GLUS_PREDICT_WAIT": "nan"}, "GLUS_PREDICT_WAIT"),
        ({"GLUS_PREDICT_WAIT": "soon"}, "GLUS_PREDICT_WAIT is 'soon'"),
        ({"GLUS_THREADS": "2"}, "at least 3"),
        ({"GLUS_MAX_DOWNLOAD_MB": "0"}, "positive"),
        ({"LABEL_STUDIO_API_KEY": "k"}, "without LABEL_STUDIO_URL"),
        ({"LABEL_STUDIO_URL": "studio:8080"}, "must start with http"),
    ],
)
def test_values_that_cannot_be_right(environ, words):
    with pytest.raises(SettingError, match=words):
        Settings.from_env(environ)


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("Swindl/GLUS-A", "GLUS-A"),
        ("glus-tiny", "glus-tiny"),
        ("/m/run 7/", "glus-run-7"),
        ("/", "glus-model"),
    ],
)
def test_the_version_that_label_studio_sees(model, version):
    assert Settings(model=model).model_version == version
    assert Settings(model=model, model_name="mine").model_version == "mine"
