"""Scores as one HTML file that needs nothing else: tables, bars by category, the worst clips. Knows scores; not models."""

from __future__ import annotations

import base64
import html
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glus.datasets.base import Dataset, Reference
from glus.masks import BoolMask
from glus.scoring import read_mask

STRIP_HEIGHT = 150  # pixels of a strip of frames
_PREDICTED = (255, 140, 0)
_TRUE = (0, 220, 90)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } th, td { padding: .25rem .9rem .25rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr + tr { border-top: 1px solid #dde3ea; }
code { overflow-wrap: anywhere; } img { display: block; max-width: 100%; margin-bottom: 1.2rem; }
.big { font-size: 2.2rem; margin: 0; } .quiet { color: #5b6776; } svg { max-width: 100%; height: auto; }
"""


def write_report(
    scores: Mapping[str, Any],
    path: Reference,
    *,
    dataset: Dataset | None = None,
    predictions: Reference | None = None,
    worst: int = 8,
    frames: int = 6,
) -> Path:
    """Write the report, whole or not at all.

    Args:
        scores: from `glus.evaluation.score` or `evaluate_synthetic`.
        path: of the HTML file.
        dataset: what was scored; with `predictions`, the worst clips are shown.
        predictions: the folder that was scored.
        worst: how many clips.
        frames: how many frames of each.
    """
    parts = list(_head(scores))
    if scores["categories"]:
        parts += ["<h2>By category</h2>", bars(scores["categories"]), _category_table(scores["categories"])]
    parts += _protocols(scores["protocols"])
    if dataset is not None and predictions is not None:
        parts += _worst(scores, dataset, Path(predictions), worst, frames)
    parts += _missing(scores["missing"])
    title = html.escape(f"{scores['dataset']} {scores['split']}")
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    work.write_text("\n".join([page, *parts, "</html>\n"]), encoding="utf-8")
    work.replace(target)
    return target


def _head(scores: Mapping[str, Any]) -> Iterator[str]:
    model = scores["model"] or {}
    yield f"<h1>{html.escape(scores['dataset'])} <span class=quiet>{html.escape(scores['split'])}</span></h1>"
    yield f"<p class=big>J&amp;F {scores['j_and_f']:.4f}</p>"
    yield f"<p>J {scores['j']:.4f}, F {scores['f']:.4f}, by the protocol <b>{html.escape(scores['protocol'])}</b></p>"
    facts = {
        "expressions": f"{scores['expressions']} ({scores['missing']['count']} without a prediction)",
        "model": f"{model.get('name', 'unknown')} ({model.get('version', 'unknown')})",
        "annotations": f"{scores['annotation_file'] or 'generated'}, SHA-256 {scores['annotation_hash']}",
        "command": scores["command"] or "not recorded",
    }
    told = scores["no_target"]
    if told["no_target"]:
        shares = (f"{name} {_number(told[key])}" for name, key in (("N-acc", "n_acc"), ("T-acc", "t_acc")))
        facts["no target"] = f"{', '.join(shares)} ({told['no_target']} without, {told['target']} with a target)"
    lines = (
        f"<tr><th>{name}<td style='text-align:left'><code>{html.escape(text)}</code>" for name, text in facts.items()
    )
    yield f"<table>{''.join(lines)}</table>"


def bars(categories: Mapping[str, Mapping[str, Any]]) -> str:
    """An SVG with two bars, J and F, for each category."""
    left, width, row = 190, 520, 40
    height = row * len(categories) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" width="{left + width + 60}" '
        'role="img" aria-label="J and F by category" font-family="system-ui, sans-serif" font-size="13">'
    ]
    for tick in range(0, 11, 2):
        x = left + width * tick / 10
        parts.append(f'<path d="M{x} 22V{height - 20}" stroke="#dde3ea"/>')
        parts.append(f'<text x="{x}" y="{height - 5}" text-anchor="middle" fill="#5b6776">{tick / 10:.1f}</text>')
    for place, (name, colour) in enumerate((("J", "#2f6fb0"), ("F", "#8ab6de"))):
        parts.append(f'<rect x="{left + 50 * place}" y="4" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 50 * place + 17}" y="15">{name}</text>')
    for index, (name, values) in enumerate(categories.items()):
        y = 26 + row * index
        short = name if len(name) <= 26 else name[:25] + "…"
        parts.append(f'<text x="{left - 8}" y="{y + 19}" text-anchor="end">{html.escape(short)}</text>')
        for place, (score, colour) in enumerate((("j", "#2f6fb0"), ("f", "#8ab6de"))):
            long = width * values[score]
            parts.append(f'<rect x="{left}" y="{y + 14 * place}" width="{long:.1f}" height="13" fill="{colour}"/>')
            parts.append(
                f'<text x="{left + long + 5:.1f}" y="{y + 14 * place + 11}" font-size="11">{values[score]:.3f}</text>'
            )
    return "".join([*parts, "</svg>"])


def _category_table(categories: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["<table><tr><th>category<th>J<th>F<th>J&amp;F<th>expressions<th>missing"]
    lines += [
        f"<tr><td>{html.escape(name)}<td>{values['j']:.4f}<td>{values['f']:.4f}<td>{values['j_and_f']:.4f}"
        f"<td>{values['expressions']}<td>{values['missing']}"
        for name, values in categories.items()
    ]
    return "".join([*lines, "</table>"])


def _protocols(protocols: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "<h2>Protocols</h2>"
    yield "<table><tr><th>protocol<th>group<th>unit<th>J<th>F<th>J&amp;F<th>A<th>R"
    for name, values in protocols.items():
        groups = {
            key: each for key, each in values.items() if isinstance(each, Mapping) and "J" in each and key != "printed"
        }
        for group, each in (groups or {"": values}).items():
            both = each.get("J&F", each.get("JF"))
            cells = (_number(each.get(score)) for score in ("J", "F"))
            rest = (_number(each.get(score)) for score in ("A", "R"))
            yield (
                f"<tr><td>{html.escape(name)}<td>{html.escape(group)}<td>{values['unit']}"
                + "".join(f"<td>{cell}" for cell in (*cells, _number(both), *rest))
                + (f"<td style='text-align:left'>{html.escape(values['why'])}" if "why" in values else "")
            )
    yield "</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _missing(missing: Mapping[str, Any]) -> Iterator[str]:
    if not missing["count"]:
        return
    yield f"<h2>Missing</h2><p>{missing['count']} expressions have no whole prediction and count 0.</p><ul>"
    for each in missing["list"][:200]:
        yield f"<li>{html.escape(each['video'])} / {html.escape(each['expression'])}: {html.escape(each['why'])}"
    if missing["count"] > 200:
        yield f"<li>and {missing['count'] - 200} more"
    yield "</ul>"


def _worst(scores: Mapping[str, Any], dataset: Dataset, folder: Path, count: int, frames: int) -> Iterator[str]:
    """The clips with the lowest J&F, at most one expression a video, as overlay strips."""
    places = {record.name: index for index, record in enumerate(dataset.videos)}
    there = [line for line in scores["per_expression"] if line["missing"] is None]
    by_video: dict[str, Mapping[str, Any]] = {}
    for line in sorted(there, key=lambda one: (one["j_and_f"], one["video"], one["expression"])):
        by_video.setdefault(line["video"], line)
    yield "<h2>Worst clips</h2><p class=quiet>Filled: predicted. Outlined: true.</p>"
    for line in list(by_video.values())[:count]:
        video = places[line["video"]]
        ids = [one.id for one in dataset.videos[video].expressions]
        picture = strip(dataset, folder, video, ids.index(line["expression"]), frames)
        told = f"{line['video']} / {line['expression']}: “{line['text']}”"
        yield f"<p>{html.escape(told)}<br><span class=quiet>J {line['j']:.3f}, F {line['f']:.3f}</span></p>"
        yield f'<img alt="{html.escape(told)}" src="data:image/jpeg;base64,{base64.b64encode(picture).decode("ascii")}">'


def strip(dataset: Dataset, predictions: Path, video: int, expression: int, count: int) -> bytes:
    """A JPEG of a few frames side by side: the prediction filled, the truth outlined."""
    record = dataset.videos[video]
    labelled = dataset.labelled(video, expression)
    chosen = sorted({labelled[round(place)] for place in np.linspace(0, len(labelled) - 1, count)})
    folder = predictions / record.name / record.expressions[expression].id
    pictures = []
    for t in chosen:
        truth = dataset.mask(video, expression, t)
        predicted = read_mask(folder / f"{record.frame_names[t]}.png", truth.shape)
        pictures.append(_overlay(dataset.frame(video, t), truth, predicted))
    done, encoded = cv2.imencode(".jpg", _side_by_side(pictures)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert done
    return bytes(encoded)


def _overlay(frame: NDArray[np.uint8], truth: BoolMask, predicted: BoolMask) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    size = (max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT)
    small = np.array(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    filled, outlined = (
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in (predicted, truth)
    )
    small[filled > 0] = (small[filled > 0] * 0.45 + np.array(_PREDICTED) * 0.55).astype(np.uint8)
    lines, _ = cv2.findContours(outlined, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(small, lines, -1, _TRUE, 2)
    return small


def _side_by_side(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((STRIP_HEIGHT, 4, 3), 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.concatenate(parts, axis=1)
