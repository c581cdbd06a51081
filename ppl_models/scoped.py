"""What is set for a while, and then as before: the mode of modules, the state of the generators."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_models.processes import together


def seed_of(seed: int | None) -> int:
    """Returns a seed: that which is given, or one from torch's generator, of process 0."""
    if seed is not None:
        return seed
    return int(together().gather_values(int(torch.randint(2**31, ())))[0])


@contextmanager
def modes(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """A context in which modules train, or do not; afterwards each is as it was before."""
    roots = list(modules)
    before = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def get_rng_state(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of the generators that a program on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores what `get_rng_state` returned, as far as a program on `device` draws from it."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def get_host_rng_state() -> tuple[Any, dict[str, Any]]:
    """The states of Python's random numbers and of NumPy's, to be compared or restored."""
    kept: Any = np.random.get_state(legacy=False)
    inner = {name: np.asarray(value).tolist() for name, value in kept["state"].items()}
    return random.getstate(), {**kept, "state": inner}


def set_host_rng_state(state: tuple[Any, dict[str, Any]]) -> None:
    """Restores what `get_host_rng_state` returned."""
    random.setstate(state[0])
    inner = {n: np.asarray(x) if isinstance(x, list) else x for n, x in state[1]["state"].items()}
    np.random.set_state({**state[1], "state": inner})


@contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """A context after which the generators are as they were."""
    state = get_rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)


@contextmanager
def own_rng(what: str, seed: int, device: torch.device) -> Iterator[None]:
    """Draws from generators seeded for `what` with `seed`, and leaves the others as they were."""
    with kept_rng(device):
        own = _seed_for(what, seed)
        if device.type == "cpu":  # those of GPUs, which are not kept, stay as they are
            torch.random.default_generator.manual_seed(own)
        else:
            torch.manual_seed(own)
        yield


@contextmanager
def own_draws(what: str, seed: int, device: torch.device) -> Iterator[None]:
    """The same for Python's random numbers and NumPy's, which programs may draw from, too.

    These are left anywhere: see `kept_host_rng`, which takes longer.
    """
    own = _seed_for(what, seed)
    random.seed(own)
    with suppress(TypeError):  # another generator than NumPy's usual one
        np.random.seed(own % 2**32)
    with own_rng(what, seed, device):
        yield


def _seed_for(what: str, seed: int) -> int:
    """Returns a seed that work of no other kind shares, nor `torch.manual_seed(seed)`.

    Rows that are drawn with `seed`, and evaluated with it, would meet their own noise again: the
    two were no longer independent, and what is estimated no longer unbiased. (A fit is seeded by
    `torch.manual_seed` itself: its first step may meet noise again, and no number is made of it.)
    """
    return int.from_bytes(blake2b(f"{what} {seed}".encode(), digest_size=8).digest()) >> 1


@contextmanager
def kept_host_rng() -> Iterator[None]:
    """A context after which Python's random numbers and NumPy's are as they were."""
    state = get_host_rng_state()
    try:
        yield
    finally:
        set_host_rng_state(state)


def mix(seed: int, number: int) -> int:
    """Returns a seed for the part `number` of a run seeded with `seed`."""
    return (seed * 1_000_003 + number) % (2**63 - 1)
