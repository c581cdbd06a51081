"""What all tests share: the same seed and an empty store of parameters before each."""

import pyro
import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
