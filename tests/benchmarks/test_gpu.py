"""What `make gpu` runs: each step by itself, and what became of it."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark, as if there were a GPU, with steps that are lines of Python."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.gpu")
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.measure, "machine", lambda device: "none")
    lines = {
        "good": "import sys; open(sys.argv[1], 'w').write('[1, 2]'); print('printed')",
        "bad": "import sys; open(sys.argv[1], 'w').write('[3]'); sys.exit('broken')",
        "slow": (
            "import subprocess, sys, time; print('begun', flush=True); wait = 'sleep 20'; "
            "subprocess.Popen(wait.split()); time.sleep(20)"
        ),
    }
    monkeypatch.setattr(module, "command", lambda w: [sys.executable, "-c", lines[w[0]], *w[1:]])
    steps = {
        "images": module.Step("good {json} {root}", 60),
        "bad": module.Step("bad {json}", 60),
        "slow": module.Step("slow {json}", 1),
        "good": module.Step("good {json}", 60),
    }
    monkeypatch.setattr(module, "STEPS", steps)
    return module


def run(gpu, tmp_path, *options):
    out = tmp_path / "out"
    gpu.main(["--out", str(out), "--data-root", str(tmp_path / "data"), *options])
    return json.loads((out / "gpu.json").read_text())["steps"], (out / "gpu.log").read_text()


def test_steps_do_not_depend_on_one_another(gpu, tmp_path, capsys):
    steps, log = run(gpu, tmp_path)
    ended = {name: step["ended"] for name, step in steps.items()}
    assert "no MNIST" in ended["images"]
    assert ended["bad"] == "FAILED with exit status 1"
    assert ended["slow"].startswith("STOPPED after 1 s")
    assert ended["good"] == "done"
    found = [step["found"] for step in steps.values()]
    assert found == [None, [3], None, [1, 2]]
    assert steps["slow"]["seconds"] < 15
    shown = capsys.readouterr().out
    for text in ("printed", "broken", "begun", "no MNIST"):
        assert text in log
        assert text in shown


def test_with_mnist_and_some_alone(gpu, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").touch()
    steps, _ = run(gpu, tmp_path, "--only", "images")
    assert list(steps) == ["images"]
    assert steps["images"]["ended"] == "done"


def test_when_the_time_is_out(gpu, tmp_path):
    steps, _ = run(gpu, tmp_path, "--minutes", "0.1")
    assert "minutes are over" in steps["good"]["ended"]


def test_without_a_gpu(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a GPU"):
        run(gpu, tmp_path)


def test_every_step_is_a_benchmark_that_takes_its_options():
    sys.path.insert(0, str(ROOT))
    steps = importlib.reload(importlib.import_module("benchmarks.gpu")).STEPS
    for name, step in steps.items():
        module, *words = step.arguments.split()
        source = (ROOT / "benchmarks" / f"{module.replace('.', '/')}.py").read_text()
        for option in ["--device", *(word for word in words if word.startswith("--"))]:
            assert f'add_argument("{option}"' in source, (name, option)
