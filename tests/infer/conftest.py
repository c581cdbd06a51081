"""What tests of inference share: graphs without a compiler, counts of draws, rows on disk."""

import numpy as np
import pytest
import torch

from ppl_models.infer.compiled import side_by_side
from ppl_models.infer.compiled.code import native
from ppl_models.infer.training import blocks


@pytest.fixture
def graphs_as_traced(monkeypatch):
    """Graphs are traced and compared, but run as they are: a compiler takes seconds for each."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    monkeypatch.setattr(native, "_compile", lambda graph, *_: graph)
    monkeypatch.setattr(native.kept, "find", lambda key: None)


@pytest.fixture
def float64():
    """Tensors that are made in the test are in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def batches(monkeypatch):
    """For each batch of draws how many there were, or False where they ran one by one."""
    kept, original = [], side_by_side._together

    def together(run, numbers, checks):
        results = original(run, numbers, checks)
        kept.append(results is not None and len(numbers))
        return results

    monkeypatch.setattr(side_by_side, "_together", together)
    return kept


@pytest.fixture
def taken(monkeypatch):
    """The blocks that runs take, and what they are made of."""
    found = []
    run = blocks.Blocks._run
    monkeypatch.setattr(
        blocks.Blocks,
        "_run",
        lambda self, plan: (
            found.append((self, sum(times for _, times in plan))),
            run(self, plan),
        )[1],
    )
    return found


@pytest.fixture
def on_disk(tmp_path):
    """Writes rows to a file, and returns the array over it."""

    def write(x, dtype=None):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, np.asarray(x, dtype))
        return np.load(path, mmap_mode="r")

    return write
