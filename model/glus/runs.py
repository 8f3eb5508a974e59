"""One segmentation run, written into a folder and resumable. Knows frames and files; not click or terminals.

What is in the folder is said in `glus.run_folder`. Its `masks.json`, the same whenever and however often the
run was interrupted:

    {"format":   1,
     "video":    {"name", "width", "height", "frames", "fps", "fps_exact": "30000/1001", "sha256"},
     "model":    {"checkpoint", "vision_tower", "sam2_config", "memory_fuser_gamma", "asked_dtype",
                  "device": "cuda", "dtype": "bfloat16"},
     "settings": {"key_frame": number, "auto" or null, "memory": bool, "chosen_key_frame": for "auto"},
     "prompts":  [{"expression": "the dog that turns left", "folder": "the-dog-that-turns-left"}],
     "masks":    [{"frame": 0, "time": seconds, "expression": index into prompts,
                   "segmentation": {"size": [height, width], "counts": string}, "area": pixels,
                   "bbox": [x, y, width, height], "score": 0..1, "present": bool}]}

`masks` has one entry per frame and prompt, ordered by frame, then by prompt; an absent object has an empty
mask and `present` false. `time` is when the video shows the frame, from its own timestamps, so it is right at
any frame rate. A folder or file of the model is named with the digest of what is in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glus.errors import GlusError, SettingError
from glus.failures import INSTALL, explain, plain_errors
from glus.masks import BoolMask, FrameMask, encode_rle
from glus.run_folder import FORMAT, Folder, Journal, SavedState, frame_name, prompt_folders
from glus.run_settings import FORMATS, Settings, check_prompts, identity, refuse_another_run

if TYPE_CHECKING:
    from glus.modeling.glus import Glus
    from glus.streaming import Segmentation
    from glus.video import FrameSource

__all__ = [
    "FORMAT",
    "FORMATS",
    "INSTALL",
    "Progress",
    "PromptSummary",
    "RunReport",
    "Settings",
    "Stage",
    "bounding_box",
    "check_prompts",
    "explain",
    "frame_name",
    "plain_errors",
    "png",
    "prompt_folders",
    "run",
]

Stage = Literal["loading", "key frame", "segmenting", "overlay"]


@dataclass(frozen=True)
class Progress:
    """`done` of `total` frames; an earlier run did the first `resumed` of them."""

    stage: Stage
    done: int
    total: int
    resumed: int = 0


@dataclass(frozen=True)
class PromptSummary:
    """What was found of a prompt; `mean_score` is over the frames with the object, None if there are none."""

    expression: str
    folder: str
    frames_with_object: int
    mean_score: float | None


@dataclass(frozen=True)
class RunReport:
    """How a run ended: `finished` (`already`: before this one), or stopped after `done` of `total`."""

    out: Path
    finished: bool
    already: bool
    done: int
    total: int
    computed: int
    seconds: float
    formats: tuple[str, ...]
    prompts: tuple[PromptSummary, ...]


class _Stop(Exception):  # noqa: N818 - never leaves this file
    """The caller asked to stop."""


def run(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    save_every: float = 5.0,
) -> RunReport:
    """Segment a video into the folder `out`, going on from where an earlier, identical run stopped.

    Args:
        settings: what to segment and how.
        out: folder to write; made if missing.
        overwrite: throw away what an earlier run left in `out`.
        progress: called at the start of each stage and after each frame.
        stop: asked after each frame; True ends the run in order, to be resumed.
        save_every: seconds between two saves of the model state; more where a save takes long.

    Raises:
        GlusError: in its own words, whatever people can do something about.
    """
    check_prompts(settings.prompts)
    unknown = [name for name in settings.formats if name not in FORMATS]
    if unknown or not settings.formats:
        raise SettingError(f"unknown output format {', '.join(unknown) or '(none)'}; choose from {', '.join(FORMATS)}")
    with plain_errors():
        caller = _Caller(progress or (lambda _: None), stop or (lambda: False), save_every)
        return _run(settings, Path(out), overwrite, caller)


@dataclass(frozen=True)
class _Caller:
    """What the caller wants to hear and say during the run."""

    progress: Callable[[Progress], None]
    stop: Callable[[], bool]
    save_every: float


def _run(settings: Settings, out: Path, overwrite: bool, caller: _Caller) -> RunReport:
    from glus.video import open_video

    folder, folders = Folder(out), prompt_folders(settings.prompts)
    if Path(settings.video).resolve() in {out.resolve(), *((out / name).resolve() for name in folders)}:
        raise SettingError(f"--out {out} would write among the pictures of {settings.video}: give another")
    with open_video(settings.video) as source, folder.locked():
        frames = len(source)
        if isinstance(settings.key_frame, int) and not 0 <= settings.key_frame < frames:
            raise SettingError(
                f"key frame {settings.key_frame} is not in {source.name}, which has {frames} frames: "
                f"give a number from 0 to {frames - 1}, or auto"
            )
        asked = identity(settings)
        manifest = folder.manifest(unreadable={"folders": folders} if overwrite else None)
        if manifest is not None and (overwrite or manifest["state"] == "discarded"):
            folder.discard(manifest)
            manifest = None
        if manifest is None:
            folder.refuse_foreign(folders)
            folder.forget_state()
            manifest = {"format": FORMAT, "state": "unfinished", "asked": asked}
            manifest |= {"frames": frames, "folders": folders}
        refuse_another_run(out, manifest, asked)
        if manifest["state"] == "finished":
            folder.drop_state()
            return _report_of(settings, out, manifest)
        return _Run(settings, folder, manifest, source, caller).go()


class _Run:
    """The steps of one run, over a folder that is locked and was found to be ours."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        manifest: dict[str, Any],
        source: FrameSource,
        caller: _Caller,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.manifest = manifest
        self.source = source
        self.progress = caller.progress
        self.stop = caller.stop
        self.save_every = caller.save_every
        self.computed = 0
        self.seconds = 0.0

    def go(self) -> RunReport:
        state = self.folder.read_state()
        path = self.folder.state_dir / "masks.jsonl"
        with Journal(path, len(self.source), len(self.settings.prompts), state.journal_bytes) as journal:
            try:
                self._segment(journal, state)
                if "coco" in self.settings.formats:
                    self.folder.write_whole("masks.json", self._masks_json(journal))
                if "overlay" in self.settings.formats:
                    self._overlay(journal)
            except _Stop:
                return self._report(journal, finished=False)
            report = self._report(journal, finished=True)
        self.manifest["state"] = "finished"
        self.manifest["prompts"] = [asdict(prompt) for prompt in report.prompts]
        self.folder.write_json("run.json", self.manifest)
        self.folder.drop_state()
        return report

    def _segment(self, journal: Journal, state: SavedState) -> None:
        if journal.frames and journal.frames == len(self.source):
            return  # only the files made from the journal are missing: no model is needed for them
        self.progress(Progress("loading", 0, 1))
        model = self._load()
        from glus.streaming import Segmentation

        segmentation = Segmentation(
            model,
            self.source,
            self.settings.prompts,
            memory=self.settings.memory,
            key_frame=self._key_frame(model),
            state=state.tensors,
        )
        # Only now: a run that fails on its prompts or its model leaves nothing that the next has to match.
        self.folder.write_json("run.json", self.manifest)
        resumed = journal.frames
        self.progress(Progress("segmenting", resumed, len(self.source), resumed))
        started = time.monotonic()
        masks = iter(segmentation)
        try:
            if self.stop():
                raise _Stop
            self._frames(segmentation, masks, journal, resumed)
        finally:
            self.seconds = time.monotonic() - started
            close = getattr(masks, "close", None)
            if close is not None:  # so that frames are no longer read ahead
                close()
        # Asked again, for a file that turns out to be damaged midway has fewer frames than it promised.
        missing = len(self.source) - journal.frames
        if missing:
            raise GlusError(f"{self.source.name}: {missing} of {len(self.source)} frames were not segmented")
        self.folder.write_state(SavedState(journal.sync()))

    def _frames(self, segmentation: Segmentation, masks: Iterator[FrameMask], journal: Journal, resumed: int) -> None:
        saved, save_every = time.monotonic(), self.save_every
        frame: list[dict[str, Any]] = []
        for found in masks:
            frame.append(self._keep(found))
            if len(frame) < len(self.settings.prompts):
                continue
            journal.add(frame)
            frame = []
            self.computed += 1
            self.progress(Progress("segmenting", journal.frames, len(self.source), resumed))
            now, stopping = time.monotonic(), self.stop()
            if stopping or now - saved >= save_every:
                # Within frames that are computed together the state is behind the journal: on resuming, some
                # come again, and the journal's last line on a mask counts.
                self.folder.write_state(SavedState(journal.sync(), segmentation.state_dict()))
                saved = time.monotonic()
                save_every = max(self.save_every, 20 * (saved - now)) if self.save_every else 0.0
            if stopping:
                raise _Stop

    def _load(self) -> Glus:
        from glus.checkpoints import load

        model = load(
            self.settings.model,
            vision_tower=self.settings.vision_tower,
            sam2_config=self.settings.sam2_config,
            device=self.settings.device,
            dtype=self.settings.dtype,
            memory_fuser_gamma=self.settings.memory_fuser_gamma,
        )
        weight = next(model.parameters())
        runs_on = {"device": weight.device.type, "dtype": str(weight.dtype).removeprefix("torch.")}
        before = self.manifest.setdefault("runs_on", runs_on)
        if before != runs_on:
            raise SettingError(
                f"{self.folder.out} holds an unfinished run on {before['device']} in {before['dtype']}; on "
                f"{runs_on['device']} in {runs_on['dtype']} its masks would not match: go on where it "
                "began, or start over with --overwrite"
            )
        return model

    def _key_frame(self, model: Glus) -> int | None:
        """The key frame; for `auto`, the one chosen first: a resumed run must not choose again."""
        if self.settings.key_frame != "auto":
            return self.settings.key_frame
        if "key_frame" not in self.manifest:
            from glus.key_frames import choose

            self.progress(Progress("key frame", 0, 1))
            self.manifest["key_frame"] = choose(model, self.source, self.settings.prompts)
        return int(self.manifest["key_frame"])

    def _keep(self, found: FrameMask) -> dict[str, Any]:
        """Write the PNG of one mask; returns its entry in the journal and in masks.json."""
        if "png" in self.settings.formats:
            folder = self.manifest["folders"][found.expression_index]
            self.folder.write_whole(
                f"{folder}/{frame_name(found.frame_index, self.manifest['frames'])}", [png(found.mask)]
            )
        return {
            "frame": found.frame_index,
            "time": float(self.source.times[found.frame_index]),
            "expression": found.expression_index,
            "segmentation": encode_rle(found.mask),
            "area": int(found.mask.sum()),
            "bbox": bounding_box(found.mask),
            "score": float(found.score),
            "present": bool(found.present),
        }

    def _masks_json(self, journal: Journal) -> Iterator[bytes]:
        """masks.json piece by piece, a mask to a line: a long video's masks are never all in memory."""
        asked, source = self.manifest["asked"], self.source
        head = {
            "format": FORMAT,
            "video": {
                "name": source.name,
                "width": source.width,
                "height": source.height,
                "frames": journal.frames,
                "fps": float(source.fps),
                "fps_exact": f"{source.fps.numerator}/{source.fps.denominator}",
                "sha256": asked["video"]["sha256"],
            },
            "model": asked["model"] | self.manifest.get("runs_on", {}),
            "settings": asked["settings"] | {"chosen_key_frame": self.manifest.get("key_frame")},
            "prompts": [
                {"expression": expression, "folder": folder}
                for expression, folder in zip(self.settings.prompts, self.manifest["folders"], strict=True)
            ],
        }
        yield (json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}").encode() + b',\n "masks": [\n')
        separator = b""
        for line in journal.lines():
            yield separator + line
            separator = b",\n"
        yield b"\n]}\n"

    def _overlay(self, journal: Journal) -> None:
        from glus.video import write_overlay

        def written(frames: int) -> None:
            self.progress(Progress("overlay", frames, len(self.source)))
            if self.stop():
                raise _Stop

        self.progress(Progress("overlay", 0, len(self.source)))
        temporary = self.folder.state_dir / "overlay.mp4"
        write_overlay(temporary, self.source, journal.masks, self.settings.prompts, progress=written)
        temporary.replace(self.folder.out / "overlay.mp4")

    def _report(self, journal: Journal, *, finished: bool) -> RunReport:
        return RunReport(
            out=self.folder.out,
            finished=finished,
            already=False,
            done=journal.frames,
            total=len(self.source),
            computed=self.computed,
            seconds=self.seconds,
            formats=self.settings.formats,
            prompts=tuple(
                PromptSummary(expression, folder, *journal.summary(n))
                for n, (expression, folder) in enumerate(
                    zip(self.settings.prompts, self.manifest["folders"], strict=True)
                )
            ),
        )


def png(mask: BoolMask) -> bytes:
    """(H, W) bool mask to the bytes of a PNG: 8-bit grey, 0 and 255."""
    import cv2

    done, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not done:
        raise GlusError(f"a mask of shape {mask.shape} could not be written as PNG")
    return bytes(encoded)


def bounding_box(mask: BoolMask) -> list[int]:
    """[x, y, width, height] in pixels of what is set in a (H, W) mask; all 0 when nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _report_of(settings: Settings, out: Path, manifest: Mapping[str, Any]) -> RunReport:
    """The report of a run that was finished before."""
    frames = int(manifest["frames"])
    return RunReport(
        out=out,
        finished=True,
        already=True,
        done=frames,
        total=frames,
        computed=0,
        seconds=0.0,
        formats=settings.formats,
        prompts=tuple(PromptSummary(**prompt) for prompt in manifest["prompts"]),
    )
