"""Fresh rows in batches: one process and several draw the same ones."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_models import MADE, VAE, Diffusion, draw_rows
from ppl_models.diffusion import samplers
from ppl_models.nn import TimeMLP
from ppl_models.processes import ProcessError, together
from tests.support.together import all_returned, run_together

SIZE = 23


def generator(kind: str) -> Callable[[Tensor], Tensor]:
    """What draws rows, the same on each process, and by what."""
    torch.manual_seed(1)
    if kind == "program":
        vae = VAE(4, 2)
        return lambda rows: vae(size=len(rows))
    if kind == "autoregressive":
        model = MADE(4, hidden=(8,))
        return lambda rows: model(size=len(rows))
    if kind == "labels":
        network = TimeMLP(3, 3, hidden=(8,), num_classes=4)
        diffusion, labels = Diffusion(3, network=network, num_steps=5), torch.arange(SIZE) % 4
        return lambda rows: diffusion.sample(len(rows), samplers.ancestral, y=labels[rows])
    return lambda rows: torch.tensor(
        [[random.random(), np.random.rand(), float(row)] for row in rows]
    )


def drawn(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    draw = generator(kind)
    torch.manual_seed(5)
    by_generator = draw_rows(draw, SIZE, batch_size=4)
    return by_generator, draw_rows(draw, SIZE, batch_size=4, seed=2), torch.rand(3)


@pytest.mark.parametrize("kind", ["program", "autoregressive", "labels", "host"])
def test_processes_draw_the_rows_of_one_bit_for_bit(kind: str) -> None:
    expected = drawn(kind)
    assert expected[0].shape[0] == SIZE
    assert len(expected[0].unique(dim=0)) > 4  # batches are not copies
    for count in (2, 3):
        for found in all_returned(run_together(drawn, count, kind)):
            assert all(map(torch.equal, found, expected))


def test_generators_are_left_as_they_were() -> None:
    draw = generator("host")
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    draw_rows(draw, 5, seed=1)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_rows_are_those_of_their_numbers() -> None:
    rows = draw_rows(lambda rows: rows[:, None], SIZE, batch_size=4)
    assert torch.equal(rows[:, 0], torch.arange(SIZE))


@pytest.mark.parametrize(
    ("draw", "size", "error", "text"),
    [
        (lambda rows: torch.zeros(3, 2), 5, ValueError, r"5 rows .* got shape \(3, 2\)"),
        (lambda rows: torch.tensor(1.0), 5, ValueError, r"got shape \(\)"),
        (lambda rows: [1.0], 5, TypeError, "got list"),
        (lambda rows: rows, 0, ValueError, "size: expected a positive"),
    ],
)
def test_what_draws_no_rows_is_refused(
    draw: Any, size: int, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        draw_rows(draw, size)


def _refused(kind: str) -> None:
    rank = together().rank
    if kind == "sizes":
        draw_rows(generator("program"), 5 + rank)
    if kind == "seeds":
        draw_rows(generator("program"), 5, seed=rank)
    if kind == "programs":
        torch.manual_seed(rank)
        vae = VAE(4, 2)
        draw_rows(lambda rows: vae.decoder(torch.ones(len(rows), 2)), 5)
    draw_rows(lambda rows: rows[: len(rows) - rank] * 1.0, 5)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("sizes", "the same size on all 2 processes, got 5 on process 0 and 6"),
        ("seeds", "the same seed on all"),
        ("programs", "expected the same rows of the same random numbers"),
    ],
)
def test_what_differs_is_refused_on_all(kind: str, text: str) -> None:
    for error in run_together(_refused, 2, kind):
        assert isinstance(error, ValueError)
        assert text in str(error)


def test_what_one_raises_the_others_are_told() -> None:
    first, second = run_together(_refused, 2, "rows")
    assert isinstance(first, ProcessError)
    assert "failed on process 1" in str(first)
    assert isinstance(second, ValueError)
