"""Rows with weights: a row of weight 2 is that row twice, one of weight 0 is not there."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_models import FactorAnalysis, GaussianMixture, PoissonMixture, ProbabilisticPCA, fit_em
from ppl_models.mixtures.em import expectation
from ppl_models.mixtures.em.expectation import from_labels
from ppl_models.mixtures.em.maximisation import maximisation
from ppl_models.mixtures.kmeans import kmeans, seeds

NAN = float("nan")
MIXTURES = {
    kind: (lambda missing, kind=kind: GaussianMixture(3, 2, kind, missing=missing))
    for kind in ("full", "tied", "diag", "spherical")
}
FACTORS = {
    "factors": lambda missing: FactorAnalysis(3, 1, missing=missing),
    "principal": lambda missing: ProbabilisticPCA(3, 1, missing=missing),
}
GAUSSIAN = MIXTURES | FACTORS
WEIGHTS = torch.tensor([2.0, 0.0, 1.0, 3.0, 1.0]).repeat(8)  # of 40 rows


def rows(missing: str = "error") -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    x[:, 1:] += x[:, :1]
    x[20:] += 4
    if missing == "marginalise":
        x[torch.rand(40, 3, generator=generator) < 0.2] = NAN
        x[7] = NAN  # a row of which nothing is known counts as a row
    return x


def repeated(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(WEIGHTS.long(), 0)


def fitted(make, missing: str, x, start: torch.Tensor, **options):
    """A model after a few steps from a start, and its losses."""
    torch.manual_seed(0)
    model = make(missing).double()
    model.initialise(start)
    with pytest.warns(UserWarning, match="still rising"):
        run = fit_em(model, x, initialise=False, max_steps=4, tolerance=0.0, **options)
    return model, run.history["loss"]


def assert_alike(one, other):
    """To the accuracy of float64."""
    (model, losses), (twin, expected) = one, other
    assert losses == pytest.approx(expected, rel=1e-12)
    for own, value in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("missing", ["error", "marginalise"])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_integer_weights_are_repeated_rows(name, missing):
    x = rows(missing)
    if name == "principal" and missing == "error":
        return  # which is at the maximum from the start: see below
    expected = fitted(GAUSSIAN[name], missing, repeated(x), x)
    assert_alike(fitted(GAUSSIAN[name], missing, x, x, sample_weight=WEIGHTS), expected)
    # A factor of all changes nothing, nor do batches, nor what else holds the numbers.
    tiny = {"sample_weight": (0.5e-9 * WEIGHTS.double()).numpy()}
    assert_alike(fitted(GAUSSIAN[name], missing, x, x, **tiny), expected)
    batches = DataLoader(TensorDataset(x), batch_size=7)
    assert_alike(fitted(GAUSSIAN[name], missing, batches, x, sample_weight=WEIGHTS), expected)


@pytest.mark.parametrize("missing", ["error", "marginalise"])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_rows_keep_their_weights_where_they_come_in_parts(name, missing, monkeypatch):
    """As there are parts of a tensor that is too large to be in float64 at once."""
    x = rows(missing)
    expected = fitted(GAUSSIAN[name], missing, x, x, sample_weight=WEIGHTS)
    for where, size in [
        ("factors.moments.CHUNK", 7),
        ("factors.em.MAX_NUMBERS", 28),
        ("mixtures.em.maximisation.CHUNK", 7),
        ("mixtures.em.expectation.MISSING_CHUNK", 7),
    ]:
        monkeypatch.setattr(f"ppl_models.{where}", size)
    assert_alike(fitted(GAUSSIAN[name], missing, x, x, sample_weight=WEIGHTS), expected)


@pytest.mark.parametrize("kind", MIXTURES)
def test_narrow_components_count_rows_from_their_centers(kind, monkeypatch):
    x = rows()
    expected = fitted(GAUSSIAN[kind], "error", repeated(x), x)
    monkeypatch.setattr(expectation, "FAR", -1.0)
    assert_alike(fitted(GAUSSIAN[kind], "error", x, x, sample_weight=WEIGHTS), expected)


def test_integer_weights_are_repeated_rows_of_counts():
    x = rows().abs().round()
    expected = fitted(lambda _: PoissonMixture(3, 2), "", repeated(x), x)
    assert_alike(fitted(lambda _: PoissonMixture(3, 2), "", x, x, sample_weight=WEIGHTS), expected)


@pytest.mark.parametrize("missing", ["error", "marginalise"])
@pytest.mark.parametrize("name", FACTORS)
def test_the_maximum_and_the_start_of_factor_models(name, missing):
    x = rows(missing)
    for method in ["initialise"] + ["maximum_likelihood"] * (missing == "error"):
        model, twin = (FACTORS[name](missing).double() for _ in range(2))
        getattr(model, method)(x, sample_weight=WEIGHTS)
        getattr(twin, method)(repeated(x))
        for own, value in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(own, value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize("restarts", [1, 3])
def test_rows_of_weight_zero_are_not_there(name, restarts):
    """To the last bit, the draws of the start included."""
    x, keep = rows(), WEIGHTS > 0
    x[~keep] = 1e9  # whatever they are
    results = []
    for data, weight in [(x, WEIGHTS), (x[keep], WEIGHTS[keep])]:
        model = GAUSSIAN[name]("error").double()
        run = fit_em(model, data, sample_weight=weight, seed=0, restarts=restarts)
        results.append((run.history["loss"], [p.tolist() for p in model.parameters()]))
    assert results[0] == results[1]


def test_a_start_by_k_means_counts_rows_by_weight():
    x = torch.tensor([[0.0], [1.0], [1.5], [9.0]], dtype=torch.float64)
    # Four rows, three clusters: the pair of the least weighted scatter is joined.
    for weight, joined in [([1.0, 9.0, 9.0, 9.0], {0, 1}), ([9.0, 9.0, 1.0, 9.0], {1, 2})]:
        weight = torch.tensor(weight, dtype=torch.float64)
        labels = kmeans(x, 3, restarts=20, weight=weight)
        scatter = []
        for row in labels:
            members = nn.functional.one_hot(row, 3).double() * weight[:, None]
            centers = members.T @ x / members.sum(0)[:, None]
            scatter.append((weight[:, None] * (x - centers[row]) ** 2).sum().item())
        best = labels[torch.tensor(scatter).argmin()]
        assert {n for n in range(4) if (best == best[n]).sum() > 1} == joined


def test_seeds_are_drawn_by_weight():
    torch.manual_seed(0)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    first = seeds(x, 1, 4000, torch.tensor([3.0, 1.0]).double())[:, 0, 0]
    assert first.mean().item() == pytest.approx(0.25, abs=0.03)


def test_later_seeds_are_drawn_by_weight_too():
    """A row that hardly counts is no seed, however far away it is."""
    torch.manual_seed(0)
    x = torch.tensor([[0.0], [1.0], [1000.0]], dtype=torch.float64)
    found = seeds(x, 2, 500, torch.tensor([1.0, 1.0, 1e-9]).double())
    assert found.max() == 1.0


@pytest.mark.parametrize("kind", MIXTURES)
def test_components_of_labelled_rows(kind):
    x, labels, floor = rows(), torch.arange(40) % 2, torch.full((1, 1, 1), 1e-6).double()
    twin = labels.repeat_interleave(WEIGHTS.long())
    weighted = from_labels(x, labels[None], 2, kind, WEIGHTS.double())
    expected = from_labels(repeated(x), twin[None], 2, kind)
    for one, other in zip(
        maximisation(weighted, kind, floor), maximisation(expected, kind, floor), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_weights_choose_what_is_fitted():
    """Nine tenths of the weight on one cluster of two: the weights of the mixture say so."""
    x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 9]).double()
    weight = torch.cat([torch.full((50,), 9.0), torch.ones(50)])
    model = GaussianMixture(2, 2).double()
    fit_em(model, x, sample_weight=weight, seed=0)
    assert model.weights.max().item() == pytest.approx(0.9, abs=1e-6)
    data = DataLoader(TensorDataset(x), batch_size=30)
    streamed = GaussianMixture(2, 2).double()
    fit_em(streamed, data, sample_weight=weight, seed=0)
    assert streamed.weights.max().item() == pytest.approx(0.9, abs=1e-6)


def test_a_data_set_is_streamed_with_its_weights():
    x = rows()

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, n):
            return x[n]

    expected = fitted(MIXTURES["full"], "error", repeated(x), x)
    found = fitted(MIXTURES["full"], "error", Rows(), x, sample_weight=WEIGHTS, batch_size=9)
    assert_alike(found, expected)


def test_a_start_from_a_data_set_has_the_weights_of_its_rows():
    """They are drawn in another order than that of the data."""
    seen = []

    class Noting(GaussianMixture):
        def initialise(self, x, sample_weight=None):
            seen.append((x[:, 0], sample_weight))
            super().initialise(x, sample_weight)

    weight = torch.arange(1.0, 41.0).double()

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, n):
            return torch.stack([weight[n], weight[n] % 7])

    fit_em(Noting(2, 1).double(), Rows(), sample_weight=weight, batch_size=9)
    ((first, weights),) = seen
    assert not torch.equal(first, weight)
    assert torch.equal(first, weights)


@pytest.mark.parametrize("weight", [[-1.0, 1.0, 1.0], [NAN, 1.0, 1.0], [torch.inf, 1.0, 1.0]])
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match=r"expected finite numbers, 0 or more.* got 1 of 3 others"):
        fit_em(GaussianMixture(2, 1).double(), torch.randn(3, 2).double(), sample_weight=weight)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(39), r"one number for each row, with shape \(40,\), got \(39,\)"),
        (torch.ones(40, 1), r"shape \(40,\), got \(40, 1\)"),
        (torch.zeros(40), "one above 0, got 40 of 40 others, all of them zero"),
    ],
)
@pytest.mark.parametrize("name", [*GAUSSIAN, "counts"])
def test_refused(name, weight, message):
    x = rows().abs().round() if name == "counts" else rows()
    model = PoissonMixture(3, 2) if name == "counts" else GAUSSIAN[name]("error")
    for call in (fit_em, lambda model, x, sample_weight: model.double().em_step(x, sample_weight)):
        with pytest.raises(ValueError, match=message if call is fit_em else "sample_weight: exp"):
            call(model, x, sample_weight=weight)


def test_streams_in_an_order_of_their_own_are_refused():
    x = rows()
    shuffled = DataLoader(TensorDataset(x), batch_size=7, shuffle=True)
    with pytest.raises(ValueError, match=r"order that is known.* Try shuffle=False"):
        fit_em(GaussianMixture(3, 2), shuffled, sample_weight=WEIGHTS)
    short = DataLoader(TensorDataset(x), batch_size=7, drop_last=True)
    with pytest.raises(ValueError, match="got 40 for 35 rows"):
        fit_em(GaussianMixture(3, 2).double(), short, sample_weight=WEIGHTS)


def test_a_model_that_knows_no_weights():
    class Plain(nn.Linear):
        def em_step(self, x):
            raise AssertionError

        def initialise(self, x):
            raise AssertionError

    with pytest.raises(TypeError, match=r"Plain.em_step takes no weights of rows"):
        fit_em(Plain(2, 2), rows(), sample_weight=WEIGHTS)
