"""Maps of items: closed forms first, then fits, and what is refused."""

import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from torch import Tensor

from ppl_models import (
    DistanceEmbedding,
    distance_pairs,
    elbo,
    from_pyro_svi,
    log_evidence,
    predict,
    procrustes,
)
from ppl_models.embeddings.classical import classical_scaling
from ppl_models.embeddings.procrustes import align_positions
from ppl_models.metrics import stress
from tests.support.runs import cosine, quiet

FEW = "log_evidence. .* draws are as good as"  # a mean-field guide of a map is no posterior


def scattered(n: int = 12, num_dims: int = 2) -> tuple[Tensor, Tensor]:
    """Positions in kilometers, say, and their distances."""
    positions = 300 * torch.randn(n, num_dims, dtype=torch.float64)
    return positions, torch.cdist(positions, positions).fill_diagonal_(0)


def fitted(table: Tensor, noise: float | None = None, kind=AutoNormal, steps: int = 400):
    data = distance_pairs(table)
    model = DistanceEmbedding(len(table), 2, noise).to(table.dtype)
    start = model.initialise(*data)
    start = start + 0.1 * torch.randn_like(start)
    options = {"init_scale": 0.01} if kind is AutoNormal else {}
    guide = kind(model, init_loc_fn=init_to_value(values={"z": start}), **options)
    objective = elbo(model, guide)
    quiet(objective, data, steps=steps, lr=0.02, schedule=cosine, seed=0)
    return model, guide, data


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_classical_scaling_finds_what_euclidean_distances_are_of(num_dims):
    positions, table = scattered(num_dims=num_dims)
    found = classical_scaling(table, num_dims)
    aligned = align_positions(found, positions)
    torch.testing.assert_close(aligned, positions - positions.mean(0), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_exact_distances_give_the_configuration_of_classical_scaling():
    _, table = scattered()
    model, guide, data = fitted(table, noise=0.01, kind=AutoDelta, steps=700)
    classical = classical_scaling(table)
    with torch.no_grad():
        found = align_positions(model.positions(guide.median(*data)["z"]), classical)
    size = classical.square().mean().sqrt()  # some 300
    assert ((found - classical) / size).abs().max() < 1e-4
    assert stress(table, found) < 1e-4


def test_its_density_is_that_of_its_sites():
    """The joint density by hand, in a minibatch of half of the pairs."""
    _, table = scattered(5)
    pairs, distances = distance_pairs(table)
    model = DistanceEmbedding(5, 2, noise=40.0).double()
    z = model.initialise(pairs, distances)
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"z": z}))
    loss = elbo(model, guide).loss(pairs[::2], distances[::2], size=len(pairs))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    expected = expected + 2 * model.conditional(pairs[::2], z).log_prob(distances[::2]).sum()
    torch.testing.assert_close(loss.detach(), -expected.detach() / len(pairs))


@pytest.mark.filterwarnings(f"ignore:{FEW}")
def test_missing_distances_are_foreseen():
    _, table = scattered(15)
    scattering = table + 10 * torch.randn_like(table).triu(1)
    table = (scattering.triu(1) + scattering.triu(1).T).abs()
    held = torch.zeros_like(table, dtype=torch.bool)
    i, j = torch.triu_indices(15, 15, 1)
    some = torch.randperm(len(i))[:25]
    held[i[some], j[some]] = held[j[some], i[some]] = True
    model, guide, data = fitted(table.masked_fill(held, torch.nan))
    assert len(data[0]) == len(i) - 25
    assert 5 < model.log_noise.exp() < 15  # it was 10

    new = torch.stack([i[some], j[some]], 1)
    with torch.no_grad():
        z = guide.median(*data)["z"]
        error = model.positions(1.0) * (z[new[:, 0]] - z[new[:, 1]]).norm(dim=1)
        error = error - table[i[some], j[some]]
    assert error.square().mean().sqrt() < 20
    drawn = predict(model, guide, new, num_samples=200)["predictions"]["distance"].values
    inside = abs(drawn.mean((0, 1)) - table[i[some], j[some]].numpy()) < 3 * drawn.std((0, 1))
    assert inside.mean() > 0.9
    assert log_evidence(model, guide, *data, num_samples=100, seed=0).kind == "lower bound"


@pytest.mark.slow
@pytest.mark.filterwarnings(f"ignore:{FEW}")
def test_more_dimensions_than_there_are_cost_evidence():
    _, table = scattered(14)
    noisy = table + 5 * torch.randn_like(table).triu(1)
    data = distance_pairs((noisy.triu(1) + noisy.triu(1).T).abs())
    found = {}
    for num_dims in (1, 2, 3):
        model = DistanceEmbedding(14, num_dims).double()
        start = init_to_value(values={"z": model.initialise(*data)})
        guide = AutoNormal(model, init_loc_fn=start, init_scale=0.01)
        quiet(elbo(model, guide), data, steps=400, lr=0.02, schedule=cosine, seed=0)
        found[num_dims] = log_evidence(model, guide, *data, num_samples=500, seed=0).mean
    assert max(found, key=found.get) == 2


def test_draws_are_turned_alike():
    positions, table = scattered(8)
    model, guide, data = fitted(table, noise=5.0)
    posterior = from_pyro_svi(model, guide, *data, num_samples=60, seed=0)
    z = torch.from_numpy(posterior["posterior"]["z"].values[0])
    turns = torch.linalg.qr(torch.randn(60, 2, 2, dtype=z.dtype)).Q
    mixed = posterior["posterior"]["z"].copy(data=(z @ turns + 3)[None].numpy())
    posterior["posterior"] = posterior["posterior"].assign(z=mixed)

    def spread(found) -> float:
        return float(found["posterior"]["z"].std("draw").max())

    assert spread(posterior) > 0.5
    aligned = procrustes(posterior)
    assert spread(aligned) < 0.1
    mean = torch.from_numpy(aligned["posterior"]["z"].mean(("chain", "draw")).values)
    covariance = mean.T @ mean
    assert abs(covariance[0, 1]) < 1e-6 * covariance[0, 0]  # principal axes, the longest first
    assert covariance[0, 0] > covariance[1, 1]
    for name in ("log_likelihood", "prior"):
        assert name in aligned

    north = procrustes(posterior, reference=positions)
    mean = torch.from_numpy(north["posterior"]["z"].mean(("chain", "draw")).values)
    true = positions - positions.mean(0)
    assert (mean * true).sum() / (mean.norm() * true.norm()) > 0.999


def test_a_rigid_motion_keeps_all_distances():
    positions, table = scattered(9)
    moved = align_positions(positions, torch.randn(9, 2))
    torch.testing.assert_close(torch.cdist(moved, moved).fill_diagonal_(0), table)
    torch.testing.assert_close(moved.mean(0), torch.zeros(2, dtype=torch.float64))


TABLE = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.5], [2.0, 1.5, 0.0]])


def changed(*entries: tuple[int, int, float]) -> Tensor:
    table = TABLE.clone()
    for i, j, value in entries:
        table[i, j] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE[:2], "square table"),
        (changed((0, 1, 1.2)), "symmetric table, got 1 .* 1.2 from 0 to 1 .* 1 from 1 to 0"),
        (changed((0, 1, torch.nan)), "symmetric"),
        (changed((0, 1, -1.0), (1, 0, -1.0)), "none below zero, got 2 negative"),
        (changed((1, 1, 0.5)), "zeros on the diagonal, got 1 of items to themselves"),
        (changed((0, 1, torch.inf), (1, 0, torch.inf)), "finite ones"),
        (torch.full((3, 3), torch.nan), "one that is known"),
    ],
)
def test_a_table_that_is_none_of_distances_is_refused(table, message):
    for read in (distance_pairs, classical_scaling):
        with pytest.raises(ValueError, match=message):
            read(table)


def test_a_table_may_be_of_anything_that_holds_numbers():
    import pandas

    for table in (TABLE.numpy(), TABLE.tolist(), pandas.DataFrame(TABLE.numpy())):
        pairs, distances = distance_pairs(table)
        assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
        torch.testing.assert_close(distances, torch.tensor([1.0, 2.0, 1.5]))


@pytest.mark.parametrize(
    ("pairs", "distances", "message"),
    [
        ([[0, 3]], [1.0], "two items from 0 to 2, got 1 others, such as .0, 3. .rows 0."),
        ([[0, 1], [2, 2]], [1.0, 1.0], "no item with itself"),
        ([[0, 1, 2]], [1.0], "shape .B, 2."),
        ([[0, 1], [0, 2]], [1.0], "number of rows|one distance for each pair"),
        ([[0, 1]], [-1.0], "outside the support"),
        ([[0, 1]], [torch.nan], "NaN or infinity"),
    ],
)
def test_pairs_that_are_none_are_refused_before_the_first_step(pairs, distances, message):
    model = DistanceEmbedding(3, 2)
    guide = AutoNormal(model)
    with pytest.raises(ValueError, match=message):
        quiet(elbo(model, guide), (torch.tensor(pairs), torch.tensor(distances)), steps=1)


def test_other_types_are_refused():
    model = DistanceEmbedding(3, 2)
    with pytest.raises(TypeError, match="pairs of items as a tensor of integers"):
        model(TABLE)
    with pytest.raises(TypeError, match="distances as floating-point numbers"):
        model(torch.tensor([[0, 1]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="fewer dimensions"):
        DistanceEmbedding(3, 3)
    with pytest.raises(ValueError, match="noise"):
        DistanceEmbedding(3, 2, noise=0.0)
    with pytest.raises(ValueError, match="a posterior with 'map'"):
        procrustes(from_pyro_svi(model, AutoNormal(model), *distance_pairs(TABLE)), variable="map")
    with pytest.raises(ValueError, match="the same items"):
        align_positions(torch.zeros(3, 2), torch.zeros(4, 2))
