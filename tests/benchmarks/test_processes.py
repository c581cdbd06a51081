"""What the benchmark of one process and n notes of a run."""

import torch

from benchmarks.truth.processes import BATCH, EPOCHS, PROGRAMS, furthest


def test_losses_of_all_steps_and_parameters_are_noted() -> None:
    one, same = (PROGRAMS["mixture, gradient"]() for _ in range(2))
    assert len(one["losses"]) == EPOCHS * 700 // BATCH
    assert all(torch.isfinite(torch.tensor([*step.values()])).all() for step in one["losses"])
    assert furthest(one["parameters"], same["parameters"]) == 0
    other = PROGRAMS["regression, AutoNormal"]()
    assert len(other["losses"]) == len(one["losses"])
