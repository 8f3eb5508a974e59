"""Label Studio task JSON and labelling config to VideoTask. Pure: knows no HTTP, files or masks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from glus_backend.contracts import TextField, VideoTask
from glus_backend.errors import ConfigError, TaskError

PROMPT = "prompt"
STATUS = "status"
RUN = "run"

MINIMAL_CONFIG = """\
<View>
  <TextArea name="prompt" toName="frames" value="$prompt" editable="true" maxSubmissions="1"/>
  <BrushLabels name="mask" toName="frames"><Label value="target"/></BrushLabels>
  <Image name="frames" valueList="$frames"/>
  <TextArea name="status" toName="frames" maxSubmissions="1"/>
</View>"""


@dataclass(frozen=True)
class LabelConfig:
    """The names in a labelling config that masks, prompts and messages hang on.

    Attributes:
        image: name of the <Image> that shows the frames.
        frames_key: key of the task data that holds the list of frames.
        brush: name of the <BrushLabels>.
        labels: its label values, in order.
        prompt: the TextArea that holds the prompt.
        prompt_key: key of the task data that holds the prompt.
        status: the TextArea for messages.
        video_key: key of the task data that holds the video, if the config shows one.
    """

    image: str
    frames_key: str
    brush: str
    labels: tuple[str, ...]
    prompt: TextField | None = None
    prompt_key: str = PROMPT
    status: TextField | None = None
    video_key: str | None = None


def read_config(xml: str) -> LabelConfig:
    """Which tags of a labelling config to fill; ConfigError names the tag that is missing."""
    root = _parse(xml)
    images = {
        name: key for tag in _tags(root, "image") if (name := tag.get("name")) and (key := _key(tag, "valueList"))
    }
    if not images:
        raise _unusable(
            'it has no <Image valueList="$frames">, the only tag on which masks of a clip can be edited', root
        )
    brushes = [tag for tag in _tags(root, "brushlabels") if tag.get("name")]
    pairs = [(tag, name) for tag in brushes for name in _targets(tag) if name in images]
    if not pairs:
        wanted = " or ".join(f'"{name}"' for name in images)
        raise _unusable(f"it has no <BrushLabels> whose toName is {wanted}", root)
    brush, image = pairs[0]
    labels = tuple(value for tag in _tags(brush, "label") if (value := tag.get("value")))
    if not labels:
        raise _unusable(f'<BrushLabels name="{brush.get("name")}"> has no <Label value="..."> in it', root)
    prompt = _prompt_tag(root)
    videos = [key for tag in _tags(root, "video") if (key := _key(tag, "value"))]
    return LabelConfig(
        image=image,
        frames_key=images[image],
        brush=brush.get("name", ""),
        labels=labels,
        prompt=None if prompt is None else _field(prompt),
        prompt_key=(None if prompt is None else _key(prompt, "value")) or PROMPT,
        status=_text_field(root, STATUS),
        video_key=videos[0] if videos else None,
    )


def status_field(xml: str) -> TextField | None:
    """Where a message can be shown, also in a config that is otherwise unusable."""
    try:
        return _text_field(_parse(xml), STATUS)
    except ConfigError:
        return None


def video_task(
    task: Mapping[str, Any],
    config: LabelConfig,
    project: str,
    *,
    context: Mapping[str, Any] | None = None,
    extra_params: Mapping[str, Any] | None = None,
) -> VideoTask:
    """One task of a /predict request, with what the person typed (`context`) and the connection's extras."""
    task_id = task.get("id")
    if not isinstance(task_id, int):
        raise TaskError(f"a task came with the id {task_id!r}; wanted a number, as Label Studio sends it")
    data = task.get("data")
    if not isinstance(data, Mapping):
        raise TaskError(f'task {task_id} has no "data"; wanted {{"data": {{"{config.frames_key}": [...]}}}}')
    prompts = find_prompts(task, config, context=context, extra_params=extra_params)
    if not prompts:
        raise TaskError(
            f'task {task_id} has no prompt: neither in the text box, nor under "{config.prompt_key}" in its '
            f"data (which has {_keys(data)}); write there what to segment, or give a default for the project "
            "as "
            '{"prompt": "..."} in the extra params of the model connection'
        )
    video = data.get(config.video_key) if config.video_key else None
    return VideoTask(
        task_id=task_id,
        project=project,
        frames=_frames(task_id, data, config.frames_key),
        prompts=prompts,
        labels=tuple(label_for(prompt, config.labels) for prompt in prompts),
        from_name=config.brush,
        to_name=config.image,
        video=video if isinstance(video, str) and video else None,
        status=config.status,
    )


def find_prompts(
    task: Mapping[str, Any],
    config: LabelConfig,
    *,
    context: Mapping[str, Any] | None = None,
    extra_params: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """What to segment: typed just now, else saved last, else in the task's data, else the connection's
    default.

    Each line, or each entry of a list in the data, is an object of its own; the same words twice are one
    object.
    """
    places: list[object] = []
    if config.prompt is not None:
        places.append(_typed((context or {}).get("result"), config.prompt.name))
        saved = [*_mappings(task.get("drafts")), *_mappings(task.get("annotations"))]
        saved.sort(key=lambda item: str(item.get("updated_at") or item.get("created_at") or ""), reverse=True)
        places += [_typed(item.get("result"), config.prompt.name) for item in saved]
    data = task.get("data")
    places.append(data.get(config.prompt_key) if isinstance(data, Mapping) else None)
    places.append((extra_params or {}).get(PROMPT))
    for place in places:
        if prompts := _lines(place):
            return prompts
    return ()


def label_for(prompt: str, labels: tuple[str, ...]) -> str:
    """The longest label that stands in the prompt, in any case; else the first label.

    Longest, so that of "dog" and "hot dog" the second is taken for "the hot dog on the left".
    """
    fitting = [label for label in labels if label.casefold() in prompt.casefold()]
    return max(fitting, key=len) if fitting else labels[0]


def correction_asked(context: Mapping[str, Any] | None) -> str | None:
    """What an interactive request holds besides text to segment by: clicks, boxes, or the "run" button; else
    None.
    """
    for item in _mappings((context or {}).get("result")):
        kind = str(item.get("type", ""))
        if kind.startswith(("keypoint", "rectangle")):
            return "click" if kind.startswith("keypoint") else "box"
        if item.get("from_name") == RUN and _lines(_typed([item], RUN)):
            return "update"
    return None


def _parse(xml: str) -> ET.Element:
    try:
        root: ET.Element = fromstring(xml)
    except ET.ParseError as error:
        raise ConfigError(f"the labelling config is not XML ({error}); one that works:\n{MINIMAL_CONFIG}") from error
    except DefusedXmlException as error:
        raise ConfigError(
            f"the labelling config declares XML entities or a document type, which we do not read ({error}); "
            f"one that works:\n{MINIMAL_CONFIG}"
        ) from error
    return root


def _unusable(reason: str, root: ET.Element) -> ConfigError:
    found = ", ".join(dict.fromkeys(f"<{tag.tag}>" for tag in root.iter() if tag.tag not in {"View", "Label"}))
    return ConfigError(
        f"this labelling config cannot hold masks: {reason} (it has {found or 'no tags'}); "
        f"one that works:\n{MINIMAL_CONFIG}"
    )


def _tags(root: ET.Element, kind: str) -> list[ET.Element]:
    """All tags of a kind; Label Studio reads their names in any case. Comments have no name."""
    return [tag for tag in root.iter() if isinstance(tag.tag, str) and tag.tag.lower() == kind]


def _attribute(tag: ET.Element, name: str) -> str | None:
    """An attribute, in any case, as Label Studio reads it."""
    return next((value for key, value in tag.attrib.items() if key.lower() == name.lower()), None)


def _targets(tag: ET.Element) -> list[str]:
    return [part.strip() for part in (_attribute(tag, "toName") or "").split(",") if part.strip()]


def _key(tag: ET.Element, attribute: str) -> str | None:
    """The key of the task's data that an attribute such as value="$video" stands for."""
    value = _attribute(tag, attribute) or ""
    return value[1:] if len(value) > 1 and value.startswith("$") else None


def _field(tag: ET.Element) -> TextField | None:
    name, targets = tag.get("name"), _targets(tag)
    return TextField(name, targets[0]) if name and targets else None


def _text_field(root: ET.Element, name: str) -> TextField | None:
    found = [tag for tag in _tags(root, "textarea") if tag.get("name") == name]
    return _field(found[0]) if found else None


def _prompt_tag(root: ET.Element) -> ET.Element | None:
    """The TextArea named "prompt", else one filled from the data's "prompt"."""
    boxes = _tags(root, "textarea")
    named = [tag for tag in boxes if tag.get("name") == PROMPT]
    filled = [tag for tag in boxes if _key(tag, "value") == PROMPT]
    return next(iter(named + filled), None)


def _mappings(items: object) -> list[Mapping[str, Any]]:
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _typed(result: object, name: str) -> object:
    """The last non-empty text of one TextArea in a result; its list grows where it may hold several."""
    texts: list[str] = []
    for item in _mappings(result):
        value = item.get("value")
        if item.get("from_name") != name or not isinstance(value, Mapping):
            continue
        text = value.get("text")
        entries = text if isinstance(text, list) else [text]
        texts += [entry for entry in entries if isinstance(entry, str) and entry.strip()]
    return texts[-1] if texts else None


def _lines(place: object) -> tuple[str, ...]:
    texts: Iterable[object] = place if isinstance(place, list) else [place]
    lines = [" ".join(line.split()) for text in texts if isinstance(text, str) for line in text.splitlines()]
    return tuple(dict.fromkeys(line for line in lines if line))


def _keys(data: Mapping[str, Any]) -> str:
    return ", ".join(f'"{key}"' for key in data) or "nothing"


def _frames(task_id: int, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    frames = data.get(key)
    if frames is None:
        raise TaskError(
            f'task {task_id} has no value for "{key}" (its data has {_keys(data)}); give the list of frame '
            f'addresses there, or name another key in <Image valueList="$...">'
        )
    if not isinstance(frames, list) or not frames or not all(isinstance(url, str) and url for url in frames):
        shown = f"a list of {len(frames)}" if isinstance(frames, list) else f"a {type(frames).__name__}"
        raise TaskError(
            f'task {task_id} has {shown} under "{key}"; wanted a list of frame addresses, such as '
            '["http://host/00000.jpg", "http://host/00001.jpg"]'
        )
    return tuple(frames)
