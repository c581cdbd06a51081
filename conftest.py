"""What all tests and doctests share: the same seed and an empty store of parameters before each."""

import pyro
import pytest
import torch

torch.set_num_threads(1)  # the tensors are small: threads would only wait for one another


@pytest.fixture(autouse=True)
def seeded() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
