"""Resident memory of `glus segment` over a clip: is it flat, whatever the length?

    python benchmarks/memory.py VIDEO --model REF [--sam2-config FILE] --prompt "the blue cup" --out memory.json

Runs the command itself in a process of its own and reads its resident memory while it works, against the number of
frames that its journal says are done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MIB = 2**20


def watch(command: list[str], journal: Path) -> list[tuple[int, float]]:
    """(frames done, resident MiB) pairs, several a second, until the command ends."""
    process = subprocess.Popen(command)
    seen = psutil.Process(process.pid)
    samples: list[tuple[int, float]] = []
    while process.poll() is None:
        try:
            resident = seen.memory_info().rss / MIB
        except psutil.NoSuchProcess:
            break
        done = journal.read_bytes().count(b"\n") if journal.exists() else 0
        samples.append((done, resident))
        time.sleep(0.2)
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--model", required=True)
    parser.add_argument("--sam2-config")
    parser.add_argument("--prompt", default="the blue cup")
    parser.add_argument("--after", type=int, default=50, help="frames after which memory must not grow")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        glus = str(Path(sys.executable).parent / "glus")
        command = [glus, "segment", args.video, "--prompt", args.prompt, "--model", args.model, "--out", str(out)]
        if args.sam2_config:
            command += ["--sam2-config", args.sam2_config]
        start = time.perf_counter()
        samples = watch(command, out / ".run" / "masks.jsonl")
        seconds = time.perf_counter() - start
        written = json.loads((out / "masks.json").read_text(encoding="utf-8"))
        frames = written["video"]["frames"]
    segmenting = [(done, mib) for done, mib in samples if done]
    early = [mib for done, mib in segmenting if args.after <= done < args.after + 10]
    late = [mib for done, mib in segmenting if frames - 10 <= done < frames]
    overlay = [mib for done, mib in segmenting if done == frames]
    report = {
        "what": "glus segment, resident memory in MiB",
        "clip": f"{Path(args.video).name}, {frames} frames, {written['video']['width']}x{written['video']['height']}",
        "prompt": args.prompt,
        "device": "CPU",
        "seconds": round(seconds, 1),
        f"at_frame_{args.after}": round(max(early), 1),
        "at_the_last_frames": round(max(late), 1),
        "growth_per_cent": round(100 * (max(late) / max(early) - 1), 2),
        "while_the_overlay_is_written": round(max(overlay), 1),
        "samples": [[done, round(mib, 1)] for done, mib in segmenting[:: max(1, len(segmenting) // 60)]],
    }
    text = json.dumps(report)
    print(text)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
