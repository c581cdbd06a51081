"""Ranks and what is said of them: exact probabilities, ties, bands, false alarms, chains."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ppl_models import Calibration
from ppl_models.infer.diagnostics.calibration.ranks import Counts
from ppl_models.infer.diagnostics.calibration.thinning import effective_size, thinned
from ppl_models.infer.diagnostics.calibration.uniform import (
    band,
    counts_below,
    p_values,
    probability_inside,
)
from ppl_models.infer.evidence.arviz import to_arviz


@pytest.mark.parametrize(("number", "draws"), [(6, 3), (3, 7), (8, 1)])
def test_p_values_are_those_of_all_ranks_that_there_may_be(number, draws):
    every = np.array([*itertools.product(range(draws + 1), repeat=number)]).T  # (S, all)
    found = p_values(every, draws)
    for p in np.unique(found.round(12)):
        assert (found < p + 1e-9).mean() == pytest.approx(p, abs=1e-9)


def uniform_ranks(*shape, draws=100, seed=0):
    return np.random.default_rng(seed).integers(0, draws + 1, shape)


@pytest.mark.parametrize(("number", "draws"), [(1000, 100), (50, 20), (20, 200)])
def test_ranks_leave_the_band_where_their_p_value_is_small(number, draws):
    ranks = uniform_ranks(number, 100, draws=draws)
    found = band(number, draws, 0.8)
    assert 0.8 <= probability_inside(found, number) < 0.83
    counts = counts_below(ranks, draws)
    inside = (counts >= found.lower[:, None]) & (counts <= found.upper[:, None])
    assert (inside.all(0) == (p_values(ranks, draws) > 0.2 - 0.01)).mean() > 0.98


def test_ranks_that_are_far_from_uniform():
    """A number, with no warning, where no floating-point one is as small."""
    ranks = np.stack([np.zeros(1000, int), np.full(1000, 50), uniform_ranks(1000)], 1)
    found = p_values(ranks, 100)
    assert (found[:2] < 1e-100).all()
    assert (found > 0).all()
    assert found[2] > 0.01


def test_false_alarms_are_as_rare_as_they_should_be():
    """Of 200 repeats, each of nine quantities; Bonferroni's is no more than that."""
    found = [
        Calibration.of({"z": torch.from_numpy(uniform_ranks(300, 9, draws=50, seed=seed))}, 50)
        for seed in range(200)
    ]
    p = torch.tensor([each.p_value for each in found])
    assert 2 <= (p < 0.05).sum() <= 20
    assert (p < 0.01).sum() <= 7
    each = torch.cat([c.p_values["z"] for c in found])
    assert (each < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.015)


def counted(truth, draws, rounding=None, number=None):
    """Ranks of `(S,)` numbers among `(S, L)` draws."""
    counts = Counts({"z": truth})
    for place in range(draws.shape[1]):  # one after the other
        which = torch.arange(len(truth))
        counts.add(which, {"z": draws[:, place]}, {} if rounding is None else {"z": rounding})
    number = torch.full((len(truth),), draws.shape[1]) if number is None else number
    return counts.ranks(number, draws.shape[1])["z"]


def test_ranks_without_ties():
    draws = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert counted(torch.tensor([0.5, 5.5, 9.5]), draws).tolist() == [0, 2, 3]


def test_ties_are_broken_at_random():
    truth, draws = torch.randint(3, (2000,)), torch.randint(3, (2000, 20))
    assert p_values(counted(truth, draws).numpy(), 20).item() > 0.01


def test_what_differs_by_rounding_is_equal():
    truth = torch.zeros(2000, dtype=torch.float64)
    draws = torch.full((2000, 20), 1e-9, dtype=torch.float64)
    assert (counted(truth, draws) == 0).all()
    assert p_values(counted(truth, draws, torch.tensor(1e-8)).numpy(), 20).item() > 0.01


def test_ranks_among_fewer_draws_are_spread_over_those_of_all():
    truth, draws = torch.randn(2000), torch.randn(2000, 7)
    counts = Counts({"z": truth})
    number = torch.randint(3, 8, (2000,))
    for place in range(7):
        some = (number > place).nonzero()[:, 0]
        counts.add(some, {"z": draws[some, place]}, {})
    ranks = counts.ranks(number, 50)["z"]
    assert ranks.max() == 50
    assert p_values(ranks.numpy(), 50).item() > 0.01


def test_what_is_no_number_has_no_rank():
    with pytest.raises(FloatingPointError, match="z: 1 of 2 values of draws are no numbers"):
        counted(torch.zeros(2), torch.tensor([[1.0], [float("nan")]]))


def autoregressive(draws, chains=2, slope=0.9):
    """Draws of a standard normal of which each depends on the one before, `(C, D)`."""
    noise = np.random.default_rng(0).standard_normal((chains, draws))
    for place in range(1, draws):
        noise[:, place] = slope * noise[:, place - 1] + (1 - slope**2) ** 0.5 * noise[:, place]
    return noise


def chains(**values):
    names = {
        n: ["chain", "draw", *(f"{n}_{i}" for i in range(x.ndim - 2))] for n, x in values.items()
    }
    return to_arviz({"posterior": {n: (names[n], x) for n, x in values.items()}}, {}, {})


def test_chains_are_thinned_to_what_they_are_worth():
    z = autoregressive(2000)
    worth = effective_size(z)
    assert 4000 / 19 / 2 < worth < 4000 / 19 * 2  # (1 + a) / (1 - a) draws are worth one
    independent = np.random.default_rng(1).standard_normal((2, 2000, 3))
    found = thinned(chains(z=z, w=independent, fixed=np.ones((2, 2000))), 1000)
    assert {len(x) for x in found.values()} == {int(worth)}
    assert found["w"].shape[1:] == (3,)
    assert len(thinned(chains(z=z), 50)["z"]) == 50


def test_thinned_draws_are_of_all_chains():
    z = np.random.default_rng(0).standard_normal((2, 100))
    found = thinned(chains(z=z), 20)["z"]
    assert [np.isin(found, chain).sum() for chain in z] == [10, 10]


def test_what_is_no_posterior():
    with pytest.raises(TypeError, match=r"expected a guide, or an ArviZ object .* got list"):
        thinned([1.0], 10)


def quantities():
    ranks = {"z": uniform_ranks(200, 2, draws=20), "log_p": uniform_ranks(200, draws=20, seed=1)}
    ranks["z"][:, 1] = ranks["z"][:, 1] // 2
    return Calibration.of({n: torch.from_numpy(r) for n, r in ranks.items()}, 20)


def test_the_line_names_the_worst_and_what_is_wrong_with_it():
    found = quantities()
    assert found.worst == "z[1]"
    assert found.p_value == pytest.approx(3 * found.p_values["z"][1].item())
    assert "not calibrated" in str(found)
    assert "of 3 quantities, the worst z[1]: draws too high" in str(found)
    assert str(found).count("\n") == 0


def test_the_picture_has_a_curve_for_each_quantity_and_a_band():
    figure = quantities().plot()
    (axes,) = figure.axes
    assert axes.get_legend().get_texts()[0].get_text().startswith("95%")
    curves = {line.get_label(): line for line in axes.lines}
    assert {"z[0]", "z[1]", "log_p"} <= curves.keys()
    edges = axes.collections[0].get_paths()[0].vertices
    assert curves["z[1]"].get_ydata().max() > edges[:, 1].max()
    assert curves["z[0]"].get_ydata().max() < edges[:, 1].max()


def test_the_picture_is_drawn_where_it_is_wanted():
    figure = Figure()
    _, right = figure.subplots(1, 2)
    assert quantities().plot(right) is figure
    assert [len(axes.lines) > 0 for axes in figure.axes] == [False, True]


def test_ranks_as_arviz_has_them():
    found = quantities()
    group = found.arviz()["prior_sbc"]
    assert dict(group["z"].sizes) == {"chain": 1, "draw": 200, "z_dim_0": 2}
    values = group["log_p"].values[0]
    np.testing.assert_allclose(values * 21 - 0.5, found.ranks["log_p"])
    assert 0 < values.min() < values.max() < 1
