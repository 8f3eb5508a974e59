"""Frames per second and memory of a whole segmentation, on a checkpoint with random weights made on the spot.

    python benchmarks/speed.py --size full --out speed.json     # Llama-7B, ViT-L/14, hiera-large: a large CUDA GPU
    python benchmarks/speed.py --size tiny                      # the same path on any machine

A published-layout folder is written and loaded as a downloaded one would be; the clip is a folder of JPEG files. All ways
of running are measured in one process, in turn, several rounds; medians are reported. Reading the files and resizing the
pictures are part of the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from glus.checkpoints import load
from glus.config import GlusConfig
from glus.miniature import write_miniature
from glus.streaming import Segmentation

EXPRESSIONS = (
    "the small red disc that moves to the right",
    "the blue square",
    "the disc that stops in the middle",
    "everything that moves down",
)


def make_clip(folder: Path, frames: int, width: int, height: int) -> Path:
    """A folder of JPEG pictures: a textured background, a disc and a square that move."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    background = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:height, :width]
    for t in range(frames):
        picture = background.copy()
        picture[(x - width * (0.2 + 0.6 * t / frames)) ** 2 + (y - height / 2) ** 2 < (height / 8) ** 2] = (220, 40, 40)
        picture[(abs(x - width / 3) < height / 12) & (abs(y - height * (0.1 + 0.8 * t / frames)) < height / 12)] = (
            40,
            60,
            220,
        )
        Image.fromarray(picture).save(folder / f"{t:05d}.jpg", quality=90)
    return folder


def one_run(model, clip: Path, expressions, steady_from: int, **options) -> dict[str, float | None]:
    """Segment the clip once; seconds a frame over all of it and over the steady part, where the memory is full."""
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    arrivals = [
        time.perf_counter()
        for mask in Segmentation(model, clip, list(expressions), **options)
        if mask.expression_index == len(expressions) - 1
    ]
    frames = len(arrivals)
    steady = (arrivals[-1] - arrivals[steady_from - 1]) / (frames - steady_from)
    return {
        "frames_per_second": frames / (arrivals[-1] - start),
        "steady_frames_per_second": 1 / steady,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def stages(model, clip: Path, chunk: int) -> dict[str, float]:
    """Milliseconds a frame of each stage, each run by itself in chunks, by CUDA events or the wall clock."""
    from glus.modeling.language import pad_windows
    from glus.processing import clip_pixels, sam_pixels
    from glus.streaming import VideoSession
    from glus.video import open_video

    source = open_video(clip)
    frames = [source[i] for i in range(chunk)]
    session = VideoSession(model, EXPRESSIONS[0], frames[:4])
    cuda = model.device.type == "cuda"

    def timed(call, rounds=7):
        times = []
        for _ in range(rounds):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1000)
        return statistics.median(times[2:])

    with torch.inference_mode():
        clip_in = torch.stack([clip_pixels(f, model.config.vision) for f in frames]).to(model.device, model.dtype)
        raw = torch.from_numpy(np.stack(frames)).to(model.device)
        sam_in = sam_pixels(raw, model.config.segmenter).to(model.dtype)
        tokens = model.image_tokens(clip_in)
        ids = session._opening.windows[0][-1]
        windows = [(ids, tokens[:4])] * chunk
        embeddings, last = pad_windows([model.embed_prompt(*w) for w in windows])
        features = model.segmenter.image_features(sam_in)
        one = features[slice(0, 1)]
        grid, channels = model.config.segmenter.grid, model.config.segmenter.memory_size
        memories = torch.randn(1, 7, channels, grid, grid, device=model.device, dtype=model.dtype)
        prompt = torch.randn(1, model.config.segmenter.hidden_size, device=model.device, dtype=model.dtype)
        result = {
            "prepare_clip_pixels_one_thread": timed(lambda: clip_pixels(frames[0], model.config.vision)),
            "sam_resize": timed(lambda: sam_pixels(raw, model.config.segmenter)) / chunk,
            "clip_and_projector": timed(lambda: model.image_tokens(clip_in)) / chunk,
            "language": timed(lambda: model.language.read_windows(session._opening.prefix, embeddings, last)) / chunk,
            "sam2_encoder": timed(lambda: model.segmenter.image_features(sam_in)) / chunk,
        }
        for graphs in (False, True) if cuda else (False,):
            model.use_cuda_graphs = graphs
            name = "recurrent_step_graph" if graphs else "recurrent_step_eager"
            result[name] = timed(lambda: model.recurrent_step(one, prompt, memories, remember=True))
    return result


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["full", "tiny"], default="tiny")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the clip; default: a temporary one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="glus-speed-"))
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")

    started = time.perf_counter()
    config = GlusConfig() if args.size == "full" else GlusConfig.tiny()
    checkpoint = work / "checkpoint"
    if not checkpoint.exists():
        write_miniature(checkpoint, config, device=device)
    written = time.perf_counter()
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = load(checkpoint, device=device)
    loaded = time.perf_counter()
    report = {
        "command": " ".join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "model": args.size,
        "parameters_million": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "dtype": str(model.dtype),
        "weights": "random",
        "clip": f"{args.frames} JPEG frames of {args.width}x{args.height}",
        "rounds": args.rounds,
        "checkpoint": {
            "layout": "published",
            "gib": round(size / 2**30, 2),
            "write_seconds": round(written - started, 1),
            "load_seconds": round(loaded - written, 1),
            "loaded_gib": round(torch.cuda.memory_allocated() / 2**30, 2) if device == "cuda" else None,
        },
    }
    print(json.dumps(report, indent=1), flush=True)
    clip = (
        make_clip(work / "clip", args.frames, args.width, args.height)
        if not (work / "clip").exists()
        else work / "clip"
    )

    steady_from = args.frames // 16 * 8  # at the end of a chunk, with the memory full
    ways = {"one frame at a time, eager": (1, False, 1), "chunks of 8, eager": (8, False, 1)}
    if device == "cuda":
        ways |= {
            "chunks of 8, CUDA graphs": (8, True, 1),
            "chunks of 8, CUDA graphs, 4 expressions": (8, True, 4),
        }
    else:
        ways["one frame at a time, 4 expressions"] = (1, False, 4)
    results: dict[str, list[dict[str, float | None]]] = {way: [] for way in ways}
    for round_number in range(args.rounds + 1):
        for way, (chunk, graphs, expressions) in ways.items():
            model.use_cuda_graphs = graphs
            result = one_run(model, clip, EXPRESSIONS[:expressions], steady_from, chunk=chunk)
            if round_number:  # the first round warms up: kernels are chosen, graphs captured
                results[way].append(result)
    report["ways"] = {
        way: {name: _median([run[name] for run in runs]) for name in runs[0]} for way, runs in results.items()
    }
    report["stages_ms_per_frame_in_chunks_of_8"] = {k: round(v, 2) for k, v in stages(model, clip, 8).items()}
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    if args.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
