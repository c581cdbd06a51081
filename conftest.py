"""What all tests and doctests share: the same seed and an empty store of parameters before each."""

import gc
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

torch.set_num_threads(1)  # the tensors are small: threads would only wait for one another
# Without a GPU, `torch.manual_seed` writes down the stack for each kind that there might be.
SEED = (
    torch.manual_seed if torch.cuda.is_available() else torch.random.default_generator.manual_seed
)
# Compiled code is kept by what a processor is, not by what torch is told that it is.
if "ATEN_CPU_CAPABILITY" in os.environ:
    kept = Path(tempfile.gettempdir(), f"ppl_models-{os.environ['ATEN_CPU_CAPABILITY']}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))


def pytest_collection_finish() -> None:
    """A million objects that stay are not looked at again with each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    SEED(0), random.seed(0), np.random.seed(0)
    pyro.clear_param_store()
    yield
    # All tests after it would take several times as long, where workers take all cores.
    assert torch.get_num_threads() == 1, "a test left torch with more threads than one"
