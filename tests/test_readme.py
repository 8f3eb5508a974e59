"""The README is held to what is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from glus_backend.settings import SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_explained():
    named = set(re.findall(r"`((?:GLUS|LABEL_STUDIO)_[A-Z_0-9]+)`", README))
    assert {setting.name for setting in SETTINGS} <= named


@pytest.mark.parametrize("package", ["glus_backend", "model/glus", "model/glus/modeling"])
def test_every_file_has_its_line_in_the_tree(package):
    files = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
    tree = README.split("## The tree")[1].split("## Test")[0]
    assert {name for name in files if name not in tree} == set()


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)\b", README)) - {"it"} <= targets


def test_shipped_label_configs_are_understood():
    from glus_backend.tasks import read_config

    for config in (ROOT / "docker/label-configs").glob("*.xml"):
        assert read_config(config.read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", ["demo", "test", "check"])
@pytest.mark.parametrize("model", ["glus-tiny", "Swindl/GLUS-A"])
def test_make_writes_commands_that_a_shell_can_read(target, model):
    script = subprocess.run(
        ["make", "-n", target, f"MODEL={model}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
