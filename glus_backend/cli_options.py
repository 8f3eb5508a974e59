"""What the commands of `glus` share: option types, options, and a few sentences. Knows click; no models, no files."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection
from typing import Any

import click

TINY = "glus-tiny"  # built in


class Device(click.ParamType[str]):
    """auto, cpu, cuda or cuda:N."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value as it is, or a usage error."""
        kind, colon, index = str(value).partition(":")
        if value not in {"auto", "cpu", "cuda"} and not (kind == "cuda" and colon and index.isdecimal()):
            self.fail(f"{value!r} is not one of auto, cpu, cuda and cuda:N", param, ctx)
        return str(value)


vision_tower_option = click.option(
    "--vision-tower", metavar="REF", help="CLIP, where not the one that the checkpoint names."
)
sam2_config_option = click.option(
    "--sam2-config", metavar="FILE", help="SAM 2's configuration, where not the published one."
)
model_option = click.option(
    "--model",
    metavar="REF",
    default=TINY,
    show_default=True,
    help="Checkpoint: a folder, a name on the hub such as Swindl/GLUS-A, or glus-tiny, the built-in demonstration.",
)
device_option = click.option(
    "--device", type=Device(), metavar="auto|cpu|cuda|cuda:N", default="auto", show_default=True
)
# Read by main() itself, for errors may come before any option is parsed; here for --help, and to be accepted.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks. Also: GLUS_DEBUG=1.")


def example(*lines: str) -> str:
    """An epilog with commands to copy."""
    return "\b\n" + "\n".join(["Example:", *(f"  {line}" for line in lines)])  # \b: not to be filled


def this_command(without: Collection[str] = ()) -> str:
    """The command line that is running, to be typed again; `without` some of its flags."""
    return shlex.join(["glus", *(argument for argument in sys.argv[1:] if argument not in without)])


def first_process() -> bool:
    """Whether this is the process that speaks; torchrun's others keep quiet."""
    return os.environ.get("RANK", "0") == "0"


def say_what_tiny_is(model: str | None) -> None:
    """One line where the built-in model is used, for it is easily taken for the real one."""
    if model == TINY and first_process():
        click.echo(
            "glus: note: glus-tiny is a small demonstration model that knows 96 kinds of drawn objects; "
            "--model Swindl/GLUS-A is the real one",
            err=True,
        )
