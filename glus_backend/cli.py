"""The `glus` command: arguments in, messages out. Knows no model and no files; others do the work.

Exit codes: 0 done, 1 anything else, 2 arguments, prompt or key frame, 3 no such video, 4 no readable video,
5 checkpoint, 6 out of memory, 7 data set, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from glus_backend.cli_options import (
    Device,
    debug_option,
    device_option,
    example,
    model_option,
    sam2_config_option,
    say_what_tiny_is,
    this_command,
    vision_tower_option,
)
from glus_backend.cli_research import data, evaluate, train

if TYPE_CHECKING:
    import rich.progress

    from glus.runs import Progress, RunReport

_PLAIN_LINE_EVERY = 5.0  # seconds between two lines of progress where there is no terminal
_STAGES = {
    "loading": "loading the model",
    "key frame": "choosing the key frame",
    "segmenting": "segmenting",
    "overlay": "writing overlay.mp4",
}


def main() -> None:
    """Run the command and leave with its exit code."""
    # Libraries' own chatter would tear the progress bar; --debug lets it through.
    debug = "--debug" in sys.argv or os.environ.get("GLUS_DEBUG", "0") not in {"", "0"}
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.showwarning = _show_warning
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        code = 130
    except Exception as error:  # noqa: BLE001 - the last place before the user
        code = _say(error, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"glus: note: {message}", err=True)


def _say(error: Exception, *, debug: bool) -> int:
    from glus.errors import GlusError
    from glus.runs import explain
    from glus_backend.errors import BackendError, SettingError

    if debug:
        traceback.print_exception(error)
    if isinstance(error, BackendError):
        click.echo(f"glus: {error}", err=True)
        return 2 if isinstance(error, SettingError) else 1
    plain = error if isinstance(error, GlusError) else explain(error)
    if plain is not None:
        click.echo(f"glus: {plain}", err=True)
        return plain.exit_code
    hint = "" if debug else " (--debug shows where)"
    click.echo(f"glus: unexpected {type(error).__name__}: {error}{hint}", err=True)
    return 1


class _KeyFrame(click.ParamType[int | str | None]):
    name = "frame"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str | None:
        if value == "none":
            return None
        if value == "auto":
            return "auto"
        if not str(value).lstrip("-").isdecimal():
            self.fail(f"{value!r} is neither the number of a frame nor auto nor none", param, ctx)
        return int(value)


class _Formats(click.ParamType[tuple[str, ...]]):
    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(name.strip() for name in str(value).split(",") if name.strip())
        known = ("png", "overlay", "coco")
        if not names or not set(names) <= set(known):
            self.fail(f"{value!r} is not a list of {', '.join(known)}", param, ctx)
        return names


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from glus import __version__

        click.echo(f"glus {__version__}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=example(
        "glus doctor",
        'glus segment clip.mp4 --prompt "the dog that turns left" --model Swindl/GLUS-A --out masks',
        "glus evaluate mevis --root DATA --split valid_u --model Swindl/GLUS-A --out scores.json",
    ),
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@debug_option
def cli() -> None:
    """Segment videos from a sentence."""


@cli.command(
    epilog=example('glus segment clip.mp4 --prompt "a dog" --prompt "the red car" --model Swindl/GLUS-A --out masks')
)
@click.argument("video")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    required=True,
    metavar="TEXT",
    help="What to segment; may be repeated.",
)
@model_option
@vision_tower_option
@sam2_config_option
@click.option("--out", required=True, type=click.Path(), metavar="DIR", help="Folder to write, made if missing.")
@click.option(
    "--format",
    "formats",
    type=_Formats(),
    metavar="LIST",
    default="png,overlay,coco",
    show_default=True,
    help="What to write.",
)
@click.option(
    "--key-frame",
    type=_KeyFrame(),
    metavar="N|auto|none",
    default="none",
    show_default=True,
    help="Frame to start from, both ways.",
)
@click.option("--no-memory", is_flag=True, help="Segment each frame without SAM 2's memory of earlier ones.")
@click.option(
    "--memory-fuser-gamma",
    type=click.Choice(["checkpoint", "reset"]),
    help="Keep the checkpoint's scale in the memory encoder, or reset it as the released scripts do.",
)
@device_option
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="What the model computes in.",
)
@click.option("--overwrite", is_flag=True, help="Throw away an earlier run in DIR.")
@click.option("--save-every", type=float, default=5.0, hidden=True, help="Seconds between two saves.")
@debug_option
def segment(video: str, prompts: tuple[str, ...], out: str, **options: Any) -> int:
    """Write the masks of what the prompts say, for each frame of VIDEO (a file, or a folder of pictures).

    Several prompts share one pass. DIR gets <prompt>/<frame>.png, overlay.mp4 and masks.json. Ctrl-C keeps
    what is done; the same command goes on from there.
    """
    from glus.runs import Settings, run

    settings = Settings(
        video=video,
        prompts=prompts,
        model=options["model"],
        vision_tower=options["vision_tower"],
        sam2_config=options["sam2_config"],
        formats=options["formats"],
        key_frame=options["key_frame"],
        memory=not options["no_memory"],
        memory_fuser_gamma=options["memory_fuser_gamma"],
        device=options["device"],
        dtype=options["dtype"],
    )
    say_what_tiny_is(settings.model)
    with _Signals() as signals, _showing(signals) as show:
        try:
            report = run(
                settings,
                out,
                overwrite=options["overwrite"],
                progress=show,
                stop=signals.asked,
                save_every=options["save_every"],
            )
        except KeyboardInterrupt:
            click.echo("stopped; the same command begins again, from what was saved", err=True)
            return signals.exit_code
    if not report.finished:
        click.echo(
            f"stopped after {report.done} of {report.total} frames; what is done is kept. To go on:\n"
            f"  {this_command(without={'--overwrite'})}",
            err=True,
        )
        return signals.exit_code
    if report.already:
        click.echo(f"{report.out} is finished already, nothing was done; --overwrite does it again")
    _print_report(report)
    return 0


class _Signals:
    """Ctrl-C and SIGTERM: the frame in hand is finished first, unless there is none or it is asked twice."""

    def __init__(self) -> None:
        self.exit_code = 130
        self.between_frames = False
        self._count = 0
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        return self._count > 0

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        self.exit_code = 128 + number
        if self._count > 1 or not self.between_frames:
            raise KeyboardInterrupt
        # Not click.echo: a handler may interrupt another write, and files refuse to be entered twice.
        os.write(2, b"\nstopping after this frame (once more to stop at once)\n")


@contextmanager
def _showing(signals: _Signals) -> Iterator[Callable[[Progress], None]]:
    """What to call with each step of a run: a bar on a terminal, else a line now and then; on stderr."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(signals)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        yield _Bars(signals, bars)


class _Lines:
    """Progress where it is read later: in a log."""

    def __init__(self, signals: _Signals) -> None:
        self.signals = signals
        self.rate = _Rate()
        self.stage = ""
        self.said = 0.0

    def __call__(self, step: Progress) -> None:
        self.signals.between_frames = step.stage in {"segmenting", "overlay"}
        now = time.monotonic()
        if step.stage == self.stage and now - self.said < _PLAIN_LINE_EVERY and step.done < step.total:
            return
        text = _STAGES[step.stage]
        if step.stage != self.stage and step.resumed:
            text += f": going on after {step.resumed} of {step.total} frames"
        elif step.stage == self.stage:
            text += f" {step.done}/{step.total}"
            speed = self.rate(step)
            if speed:
                left = int((step.total - step.done) / speed)
                text += f", {speed:.2f} frames/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        self.rate(step)
        self.stage, self.said = step.stage, now
        click.echo(text, err=True)


class _Bars:
    """Progress on a terminal."""

    def __init__(self, signals: _Signals, bars: rich.progress.Progress) -> None:
        self.signals = signals
        self.bars = bars
        self.rate = _Rate()
        self.stage = ""
        self.task: rich.progress.TaskID | None = None

    def __call__(self, step: Progress) -> None:
        self.signals.between_frames = step.stage in {"segmenting", "overlay"}
        if step.stage != self.stage or self.task is None:
            if self.task is not None and self.stage not in {"segmenting", "overlay"}:
                self.bars.remove_task(self.task)
            self.stage = step.stage
            # One step only, such as loading: the bar then moves to and fro.
            total = None if step.total == 1 else step.total
            self.task = self.bars.add_task(_STAGES[step.stage], total=total, completed=step.done, rate="")
        speed = self.rate(step)
        self.bars.update(self.task, completed=step.done, rate=f"{speed:.2f} frames/s" if speed else "")


class _Rate:
    """Frames per second since a stage began; frames of an earlier run do not count."""

    def __init__(self) -> None:
        self.stage = ""
        self.begun = 0.0
        self.first = 0

    def __call__(self, step: Progress) -> float | None:
        now = time.monotonic()
        if step.stage != self.stage:
            self.stage, self.begun, self.first = step.stage, now, step.done
        if step.stage not in {"segmenting", "overlay"} or step.done <= self.first or now <= self.begun:
            return None
        return (step.done - self.first) / (now - self.begun)


def _print_report(report: RunReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("prompt")
    table.add_column("frames with it", justify="right")
    table.add_column("mean score", justify="right")
    table.add_column("folder")
    for prompt in report.prompts:
        table.add_row(
            Text(prompt.expression),  # as it is: brackets in it are not markup
            f"{prompt.frames_with_object}/{report.total}",
            "-" if prompt.mean_score is None else f"{prompt.mean_score:.3f}",
            Text(prompt.folder if "png" in report.formats else "-"),
        )
    # In a log the width is not known: the table is then as wide as it has to be.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    files = [name for name, kind in (("overlay.mp4", "overlay"), ("masks.json", "coco")) if kind in report.formats]
    click.echo(f"in {report.out}{os.sep}" + (f": {', '.join(files)}" if files else ""))
    if report.computed and report.seconds:
        rate = report.computed / report.seconds
        click.echo(f"{report.computed} frames in {report.seconds:.1f} s, {rate:.2f} frames/s")


@cli.command(epilog=example("glus convert Swindl/GLUS-A glus-a --vision-tower openai/clip-vit-large-patch14"))
@click.argument("src")
@click.argument("dst", type=click.Path())
@vision_tower_option
@click.option("--sam2", metavar="FILE", help="SAM 2's original weights; only with LISA.")
@sam2_config_option
@debug_option
def convert(src: str, dst: str, vision_tower: str | None, sam2: str | None, sam2_config: str | None) -> None:
    """Write the published checkpoint SRC (a folder or hub name) as one folder DST that needs nothing else.

    The other way round if SRC is such a folder. LISA with --sam2 gives a starting point for training.
    """
    from glus.runs import plain_errors

    with plain_errors():
        from glus.conversion import convert as convert_checkpoint

        # The last lines that it reports are the account of the tensors.
        convert_checkpoint(src, dst, vision_tower=vision_tower, sam2=sam2, sam2_config=sam2_config, report=click.echo)


@cli.command(epilog=example("glus doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debug_option
def doctor(as_json: bool) -> int:
    """Say what is installed, what is missing and how to get it. Leaves with 1 if something must be mended."""
    from glus.doctor import inspect, render

    report = inspect()
    click.echo(report.to_json() if as_json else render(report))
    return 1 if report.faults else 0


@cli.command(epilog=example("glus serve --model Swindl/GLUS-A --port 9090"))
@click.option(
    "--model", metavar="REF", help="Checkpoint: a folder or a hub name.  [default: GLUS_MODEL, else glus-tiny]"
)
@vision_tower_option
@sam2_config_option
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from elsewhere.")
@click.option("--port", default=9090, show_default=True, type=click.IntRange(0, 65535))
@click.option("--device", type=Device(), metavar="cpu|cuda|cuda:N", help="[default: GLUS_DEVICE]")
@debug_option
def serve(host: str, port: int, device: str | None, **model: Any) -> None:
    """Serve a model to Label Studio. What is not given here is taken from the environment."""
    from glus_backend.settings import Settings
    from glus_backend.wsgi import serve as serve_backend

    say_what_tiny_is(model["model"] or Settings.from_env().model)

    # An option that is not given is None, and so leaves the environment's.
    serve_backend(host, port, device=None if device == "auto" else device, **model)


for _command in (evaluate, train, data):
    cli.add_command(_command)


if __name__ == "__main__":
    main()
