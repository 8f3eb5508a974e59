"""`glus evaluate`, `glus train` and `glus data`: arguments in, messages out. Knows no model and no files; others do."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glus_backend.cli_options import (
    debug_option,
    device_option,
    example,
    first_process,
    model_option,
    sam2_config_option,
    say_what_tiny_is,
    this_command,
    vision_tower_option,
)

if TYPE_CHECKING:
    from glus.evaluation import Progress
    from glus.modeling.glus import Glus
    from glus.recipes import Recipe, TinyRecipe

# As glus.datasets.base.LOADERS has them; written down here because importing that costs --help its speed.
DATASETS = {
    "mevis": "MeViS: valid_u is scored; of valid, the masks are hidden",
    "ref-youtube-vos": "Refer-YouTube-VOS: of valid, the masks are hidden",
    "ref-davis17": "Ref-DAVIS17, with four annotators and by expression",
    "revos": "ReVOS: referring and reasoning",
    "reasonvos": "ReasonVOS",
    "lvvis": "LV-VIS, by the names of its objects",
    "folder": "a folder of samples, such as those exported from Label Studio",
}
RECIPES = ("glus-s", "glus-a", "tiny")

Show = Callable[[str, int, int, str], None]


@contextmanager
def _showing() -> Iterator[Show]:
    """What to call with (stage, done, total, item): a bar on stderr for each stage; nothing without a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or not first_process():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[item]}", markup=False), console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, item: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(
                    stage, total=total or None, item=item
                )  # without a total it goes to and fro
            bars.update(tasks[stage], completed=done, total=total or None, item=item)

        yield show


def _steps(show: Show) -> Callable[[Progress], None]:
    return lambda step: show(f"{step.stage} {step.what}", step.done, step.total, step.item)


def _load(show: Show, options: dict[str, Any]) -> Glus:
    import glus
    from glus.evaluation import Shard

    say_what_tiny_is(options["model"])
    show("loading the model", 0, 0, "")
    model = glus.load(
        options["model"],
        vision_tower=options["vision_tower"],
        sam2_config=options["sam2_config"],
        device=Shard.from_environment().device(options["device"]),
    )
    show("loading the model", 1, 1, "")
    return model


# ---- glus evaluate --------------------------------------------------------------------------------------------------


class _DataSets(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no data set {args[0]!r}; there are {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_DataSets,
    subcommand_metavar="DATASET [OPTIONS]",
    epilog=example(
        "glus evaluate synthetic --clips 50 --seed 1 --out scores.json",
        "glus evaluate mevis --root DATA --split valid_u --model Swindl/GLUS-A --out scores.json",
        "torchrun --nproc-per-node 8 --no-python glus evaluate mevis --root DATA --model Swindl/GLUS-A --out s.json",
    ),
)
@debug_option
def evaluate() -> None:
    """Score a model, or masks that are there already, as the data set's published script does.

    Each data set below says with --help what it takes. Where the masks of a split are hidden, the zip for its
    evaluation server is written instead.
    """


_out_option = click.option(
    "--out", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="The scores, as JSON."
)
_report_option = click.option(
    "--report", type=click.Path(dir_okay=False), metavar="FILE", help="The same for people, as one HTML file."
)
_memory_option = click.option(
    "--no-memory", is_flag=True, help="Segment each frame without SAM 2's memory of earlier ones."
)


def _add_dataset(name: str, what: str) -> None:
    @evaluate.command(
        name,
        short_help=what,
        help=f"Score a model or a folder of masks on {what}.\n\n"
        "Masks that are whole are kept when it is stopped; the same command goes on from there. Under torchrun the "
        "videos are shared by all processes.",
        epilog=example(
            f"glus evaluate {name} --root DATA --model Swindl/GLUS-A --out scores.json --report scores.html",
            f"glus evaluate {name} --root DATA --predictions masks --out scores.json --strict",
            f"torchrun --nproc-per-node 8 --no-python glus evaluate {name} --root DATA --model Swindl/GLUS-A --out s.json",
        ),
    )
    @click.option(
        "--root",
        required=True,
        type=click.Path(),
        metavar="DIR",
        help="Folder of the data set, or the one that holds it under its usual name.",
    )
    @click.option("--split", metavar="NAME", help="Which part.  [default: validation]")
    @click.option("--model", metavar="REF", help="Checkpoint: a folder, a name on the hub, or glus-tiny.")
    @click.option(
        "--predictions",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="Masks, VIDEO/EXPRESSION/FRAME.png: scored as they are; with --model, where it writes them.",
    )
    @_out_option
    @_report_option
    @click.option("--strict", is_flag=True, help="Refuse missing masks, rather than count them as 0.")
    @click.option("--key-frames", metavar="FILE", help="Where to start: JSON such as {'video1_0': 12}.")
    @_memory_option
    @click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes that score.  [default: all cores]")
    @vision_tower_option
    @sam2_config_option
    @device_option
    @debug_option
    def command(**options: Any) -> int:
        return _evaluate(name, options)


for _name, _what in DATASETS.items():
    _add_dataset(_name, _what)


def _evaluate(name: str, options: dict[str, Any]) -> int:
    if options["model"] is None and options["predictions"] is None:
        raise click.UsageError("neither --model nor --predictions was given; wanted one of them")
    from glus.runs import plain_errors

    with plain_errors():
        from glus.datasets.base import open_dataset
        from glus.evaluation import evaluate as evaluate_dataset
        from glus.key_frames import read_scores

        dataset = open_dataset(name, options["root"], options["split"])
        key_frames = None if options["key_frames"] is None else read_scores(options["key_frames"])
        dataset.annotation_hash  # noqa: B018 - says now that the file is not there, and not after loading a model
        try:
            with _showing() as show:
                outcome = evaluate_dataset(
                    dataset,
                    options["out"],
                    model=None if options["model"] is None else _load(show, options),
                    predictions=options["predictions"],
                    memory=not options["no_memory"],
                    key_frames=key_frames,
                    strict=options["strict"],
                    workers=options["workers"],
                    report=options["report"],
                    command=this_command(),
                    progress=_steps(show),
                )
        except KeyboardInterrupt:
            if first_process():
                click.echo("stopped; masks that are whole are kept, and the same command goes on from there", err=True)
            return 130
    if outcome is None:  # another process of torchrun says it
        return 0
    if outcome.scores is None:
        click.echo(
            f"the masks of {name} {dataset.split} are hidden, so there is no score; to send in: {outcome.files[0]}"
        )
        return 0
    _close(outcome.scores, [str(file) for file in outcome.files])
    return 0


def _close(scores: dict[str, Any], files: list[str]) -> None:
    click.echo(
        f"J&F {scores['j_and_f']:.4f}, J {scores['j']:.4f}, F {scores['f']:.4f} ({scores['protocol']}); "
        f"{scores['expressions']} expressions, {scores['missing']['count']} missing; in {', '.join(files)}"
    )


@evaluate.command(
    short_help="clips drawn on the fly, whose masks are exact",
    epilog=example(
        "glus evaluate synthetic --clips 50 --seed 1 --out scores.json",
        "glus evaluate synthetic --clips 50 --seed 1 --shuffle-prompts --out swapped.json",
    ),
)
@click.option("--clips", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="How many.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    metavar="S",
    help="The clips of a seed are always the same.",
)
@click.option(
    "--shuffle-prompts",
    is_flag=True,
    help="Ask for another object of the clip: what is left of the score needed no reading.",
)
@click.option("--kind", metavar="KIND", help="Only phrases of this kind, such as motion or colour.")
@click.option(
    "--split",
    type=click.Choice(["train", "novel"]),
    default="train",
    show_default=True,
    help="Objects that glus-tiny was trained on, or those it never saw. The clips are new either way.",
)
@model_option
@_out_option
@_report_option
@_memory_option
@vision_tower_option
@sam2_config_option
@device_option
@debug_option
def synthetic(clips: int, seed: int, shuffle_prompts: bool, kind: str | None, out: str, **options: Any) -> int:
    """Score a model on clips that are drawn on the fly: nothing to download, and the masks are exact."""
    from glus.runs import plain_errors

    with plain_errors(), _showing() as show:
        from glus.errors import SettingError
        from glus.evaluation import Shard, evaluate_synthetic, write_json
        from glus.evaluation_report import write_report

        if Shard.from_environment().count > 1:
            raise SettingError("generated clips are scored by one process; leave torchrun out")
        scores = evaluate_synthetic(
            _load(show, options),
            clips,
            seed,
            shuffle_prompts,
            kind,
            split=options["split"],
            memory=not options["no_memory"],
            command=this_command(),
            progress=_steps(show),
        )
        files = [write_json(out, scores)]
        if options["report"] is not None:
            files.append(write_report(scores, options["report"]))
    _close(scores, [str(file) for file in files])
    return 0


# ---- glus train -----------------------------------------------------------------------------------------------------


class _Change(click.ParamType[tuple[str, Any]]):
    name = "field=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        field, sign, text = str(value).partition("=")
        if not sign or not field.strip():
            self.fail(f"{value!r} is not FIELD=VALUE", param, ctx)
        try:
            return field.strip(), json.loads(text)
        except ValueError:
            return field.strip(), text  # a bare word is itself


@click.command(
    epilog=example(
        "glus train --recipe glus-s --model glus-lisa --root DATA --out run --set accumulate=80",
        "torchrun --nproc-per-node 8 --no-python glus train --recipe glus-a --model glus-lisa --root DATA --out run",
        "torchrun --nproc-per-node 4 --no-python glus train --recipe tiny --out run --workers 6",
    )
)
@click.option(
    "--recipe",
    "recipe_name",
    required=True,
    type=click.Choice(RECIPES),
    help="The published ones, or how glus-tiny was made.",
)
@click.option("--model", metavar="REF", help="Where to start, such as a LISA made ready by `glus convert --sam2`.")
@click.option(
    "--root", type=click.Path(path_type=Path), metavar="DIR", help="Folder that holds the recipe's data sets."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of log.jsonl, the state and, at the end, the model.",
)
@click.option(
    "--set",
    "changes",
    type=_Change(),
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the recipe; the value is JSON, or a bare word. May be repeated.",
)
@click.option("--recipe-file", type=click.Path(path_type=Path), metavar="FILE", help="The same as one JSON object.")
@vision_tower_option
@sam2_config_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Which GPU: CUDA_VISIBLE_DEVICES says it, or torchrun.",
)
@click.option("--no-resume", is_flag=True, help="Begin at step 0, whatever is in DIR.")
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of tiny: folder of tokenizer.model.  [default: glus-tiny's]",
)
@click.option("--budget", type=click.FloatRange(0), metavar="SECONDS", help="Of tiny: stop this call after so long.")
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Of tiny: processes that draw clips, per GPU.  [default: 2]"
)
@debug_option
def train(recipe_name: str, changes: tuple[tuple[str, Any], ...], recipe_file: Path | None, **options: Any) -> int:
    """Train by a recipe; DIR/model appears when it is done.

    One process trains on one GPU. For several, torchrun starts one for each, as in the example; `batch_clips` and
    `accumulate` count per process. Ctrl-C saves and stops, and the same command goes on from there. (tiny goes by the
    clock, and saves when its --budget is spent.)
    """
    _refuse_what_does_not_apply(recipe_name, options)
    from glus.runs import plain_errors

    with plain_errors():
        recipe = _recipe(recipe_name, dict(changes), recipe_file)
        try:
            return _train(recipe, **options)
        except KeyboardInterrupt:
            return _say_stopped(recipe_name, options["out"])
        except FloatingPointError as error:
            click.echo(f"glus: {error}", err=True)
            return 1


def _refuse_what_does_not_apply(recipe: str, options: dict[str, Any]) -> None:
    of_tiny = ("vocabulary", "budget", "workers")
    of_others = ("model", "root", "vision_tower", "sam2_config", "no_resume")
    for name in of_others if recipe == "tiny" else of_tiny:
        if options[name] not in {None, False}:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --recipe {recipe}")
    for name in () if recipe == "tiny" else ("model", "root"):
        if options[name] is None:
            raise click.UsageError(f"--recipe {recipe} needs --{name}")


def _recipe(name: str, changes: dict[str, Any], file: Path | None) -> Recipe | TinyRecipe:
    from glus.errors import SettingError
    from glus.recipes import recipe

    try:
        return recipe(name, changes, file)
    except (TypeError, AttributeError) as error:  # a list where fields of a part were wanted, or the like
        raise SettingError(f"a field of recipe {name} has the wrong shape ({error})") from error


def _train(recipe: Recipe | TinyRecipe, out: Path, device: str, **options: Any) -> int:
    import torch

    import glus
    from glus.errors import GlusError, SettingError
    from glus.recipes import TinyRecipe

    if not isinstance(recipe, TinyRecipe) and recipe.lora_rank and importlib.util.find_spec("peft") is None:
        raise GlusError("peft is not installed, and training needs it: pip install 'glus-label-studio[train]'")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda, but torch finds no CUDA device here; `glus doctor` says more")
    model = out / "model"
    if model.is_dir() and any(model.iterdir()):
        if options["no_resume"]:
            raise SettingError(f"{model} is there from an earlier training; give a new folder, or remove it first")
        _say(f"{model} is there already, so nothing was done; another training needs another folder")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(recipe, TinyRecipe):
        from glus.tiny_training import train as train_tiny

        vocabulary = options["vocabulary"] or Path(glus.__file__).parent / "assets" / "glus-tiny"
        budget = math.inf if options["budget"] is None else options["budget"]
        _say(f"training {recipe.name} for {min(recipe.seconds, budget):.0f} s; its log is {out / 'log.jsonl'}")
        if not train_tiny(out, vocabulary, recipe, budget=budget, workers=options["workers"] or 2, device=device):
            _say("the budget is spent and the state saved; the same command goes on from there")
            return 0
    else:
        from glus.training import train as train_recipe

        _say(f"training {recipe.name} for {recipe.steps} steps; each is a line of {out / 'log.jsonl'}")
        if not train_recipe(
            options["model"],
            recipe,
            options["root"],
            out,
            vision_tower=options["vision_tower"],
            sam2_config=options["sam2_config"],
            device=device,
            resume=not options["no_resume"],
        ):
            return _say_stopped(recipe.name, out)
    _say(f"done: {model}")
    return 0


def _say(text: str) -> None:
    if first_process():
        click.echo(text)


def _say_stopped(recipe: str, out: Path) -> int:
    if not first_process():
        return 130
    if recipe == "tiny":
        text = "stopped; tiny saves only when its --budget is spent. To go on from the last time it did so"
    elif (out / "state.pt").is_file():
        text = f"stopped; the state is in {out / 'state.pt'}. To go on from there"
    else:
        text = "stopped before anything was saved. To begin again"
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    started = "" if count == "1" else f"torchrun --nproc-per-node {count} --no-python "
    click.echo(f"{text}, give the same command:\n  {started}{this_command(without={'--no-resume'})}", err=True)
    return 130


# ---- glus data ------------------------------------------------------------------------------------------------------


@click.group(epilog=example("glus data check DATA"))
@debug_option
def data() -> None:
    """Look after data sets."""


@data.command(epilog=example("glus data check DATA", "glus data check DATA/mevis --images"))
@click.argument("root", type=click.Path())
@click.option("--images", is_flag=True, help="Decode every picture and mask too, which takes long.")
@debug_option
def check(root: str, images: bool) -> int:
    """Say which data sets lie under ROOT, and what of them is broken. Leaves with 1 if something is."""
    from glus.runs import plain_errors

    with plain_errors(), _showing() as show:
        from glus.datasets.check import check as check_folder

        findings = check_folder(root, images=images, progress=lambda name, done, total: show(name, done, total, ""))
    for finding in findings:
        title = f"{finding.dataset}: " if finding.dataset else ""
        click.echo(f"{finding.level:<6}  {title}{finding.message}")
    return 1 if any(finding.level == "broken" for finding in findings) else 0
