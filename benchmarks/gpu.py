"""All that is measured on a GPU, one process after the other, into one file.

    make gpu OUT=results DATA_ROOT=data          # about 25 minutes on a large GPU
    make gpu OUT=results ONLY="vae_epoch steps"
    python -m benchmarks.gpu --out results --data-root data --minutes 25

The steps come in the order of their weight. One that fails, or takes longer than it may, is named
and the others go on; those for which the time is out, or MNIST is not there, are left out, and it
says so. The numbers of all steps go into `gpu.json` and what they print into `gpu.log`, both
written after each step. The two long runs (`iwae_mnist`) begin here, for a few minutes, and go on
with what is in the folder `iwae` when they are called again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import measure


class Step(NamedTuple):
    """A benchmark, with its arguments, and how long it may take."""

    arguments: str
    seconds: int


STEPS = {  # {root}: the data; {out}: the folder; {json}: the file of the step
    "vae_epoch": Step("speed.vae_epoch --data-root {root} --json {json}", 300),
    "steps": Step("speed.steps --json {json}", 300),
    "iwae_1": Step("quality.iwae_mnist --data-root {root} --minutes 2 --folder {out}/iwae", 240),
    "iwae_50": Step(
        "quality.iwae_mnist --data-root {root} --particles 50 --minutes 2 --folder {out}/iwae", 240
    ),
    "tutorials": Step("speed.tutorials --json {json}", 240),
    "growth": Step("speed.growth --only rows steps draws --json {json}", 300),
    "mixtures": Step(
        "speed.mixtures --parts same speed memory ways streaming --threads 4 --json {json}", 240
    ),
    "factor_models": Step(
        "speed.factor_models --part ppca likelihood pca em --threads 4 --rounds 3 --json {json}",
        180,
    ),
    "models": Step("speed.steps --models --json {json}", 300),
    "evaluation": Step("speed.evaluation --json {json}", 180),
    "diffusion_digits": Step("quality.diffusion_digits --json {json}", 180),
    "vae_digits": Step("quality.vae_digits --json {json}", 180),
    "autoregressive_digits": Step("quality.autoregressive_digits --json {json}", 300),
    "gan_modes": Step(
        "quality.gan_modes --stacked-mnist --data-root {root} "
        "--checkpoint {out}/gan_modes.safetensors --resume --json {json}",
        400,
    ),
}
LEAST = 30  # seconds, below which no step is begun


def command(arguments: Sequence[str]) -> list[str]:
    module, *options = arguments
    return [sys.executable, "-m", f"benchmarks.{module}", "--device", "cuda", *options]


def run(arguments: Sequence[str], seconds: float) -> tuple[str, str]:
    """Runs a step; returns "done" or what became of it, and all that it printed."""
    with tempfile.TemporaryFile("w+") as printed:
        # A session of its own, so that what it has started ends with it.
        process = subprocess.Popen(
            command(arguments), stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            ended = "done" if code == 0 else f"FAILED with exit status {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"STOPPED after {seconds:.0f} s, longer than it may take"
        printed.seek(0)
        return ended, printed.read()


def has_mnist(root: Path) -> bool:
    return any((root / "MNIST" / "raw").glob("train-images-idx3-ubyte*"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--only", nargs="*", choices=list(STEPS))
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: expected a GPU of CUDA, found none. Nothing was run.")
    ends = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    print(measure.heading("cuda"), flush=True)
    report: dict[str, Any] = {**measure.about("cuda"), "steps": {}}
    log = (args.out / "gpu.log").open("a")
    with log, tempfile.TemporaryDirectory() as folder:
        for name, step in STEPS.items():
            if name not in (args.only or STEPS):
                continue
            began, left = time.monotonic(), ends - time.monotonic()
            path, printed = Path(folder, f"{name}.json"), ""
            if "{root}" in step.arguments and not has_mnist(args.data_root):
                ended = f"LEFT OUT: there is no MNIST in {args.data_root}"
            elif left < LEAST:
                ended = f"LEFT OUT: the {args.minutes:g} minutes are over"
            else:
                places = {"root": args.data_root, "out": args.out, "json": path}
                words = [word.format(**places) for word in step.arguments.split()]
                ended, printed = run(words, min(step.seconds, left))
            took = time.monotonic() - began
            text = f"\n== {name}: {ended} ({took:.0f} s)\n{printed}"
            print(text, flush=True)
            log.write(text)
            log.flush()
            found = json.loads(path.read_text()) if path.exists() else None
            report["steps"][name] = {"ended": ended, "seconds": took, "found": found}
            (args.out / "gpu.json").write_text(json.dumps(report, indent=1))
    for name, step in report["steps"].items():
        print(f"{name:24}{step['seconds']:6.0f} s  {step['ended']}")


if __name__ == "__main__":
    main()
