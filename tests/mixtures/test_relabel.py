"""Labels of components that switch between draws, and which components are used."""

import arviz as az
import numpy as np
import pytest
import torch
import xarray

from guides.mixture import MeanFieldMixture
from ppl_models import from_pyro_svi
from ppl_models.mixtures.bayesian import BayesianGaussianMixture
from ppl_models.mixtures.components import component_summary, num_active
from ppl_models.mixtures.relabel import relabel

CHAINS, DRAWS, COMPONENTS = 4, 16, 5
NEW = "InferenceData" not in vars(az)  # ArviZ 1.x


def wrap(groups: dict[str, xarray.Dataset]):
    return xarray.DataTree.from_dict(groups) if NEW else az.InferenceData(**groups)


def posterior_of(weights: str = "dirichlet", draws: int = DRAWS) -> dict[str, xarray.Dataset]:
    """Draws of a mixture with three clusters and two empty components, as several chains."""
    model = BayesianGaussianMixture(2, COMPONENTS, weights=weights).double()
    centers = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]).double()
    cluster = torch.cat([torch.arange(54) % 3, torch.zeros(10).long()])  # 28, 18 and 18 rows
    x = centers[cluster] + 0.3 * torch.randn(64, 2).double()
    guide = MeanFieldMixture(model, x)
    data = from_pyro_svi(model, guide, x, num_samples=CHAINS * draws, seed=0)
    sets = {}
    for name in ("posterior", "log_likelihood", "sample_stats", "observed_data"):
        group = data[name].to_dataset() if NEW else data[name]
        if "draw" in group.dims:
            group = group.isel(chain=0, drop=True).assign_coords(draw=np.arange(CHAINS * draws))
            index = np.indices((CHAINS, draws)).reshape(2, -1)
            group = group.assign_coords(chain=("draw", index[0]), d=("draw", index[1]))
            group = group.set_index(draw=["chain", "d"]).unstack("draw").rename(d="draw")
            group = group.transpose("chain", "draw", ...)
        sets[name] = group
    return sets


def permuted(posterior: xarray.Dataset, order: np.ndarray) -> xarray.Dataset:
    """The components of each draw in an order of its own, (C, S, K)."""
    result = posterior.copy(deep=True)
    for c in range(CHAINS):
        for s in range(DRAWS):
            place = {"chain": c, "draw": s}
            for name, variable in posterior.items():
                if "component" in variable.dims:
                    moved = variable[place].isel(component=order[c, s])
                    result[name][place] = moved.values
            result["z"][place] = order[c, s].argsort()[posterior["z"][place].values]
    return result


@pytest.fixture(scope="module")
def groups() -> dict[str, xarray.Dataset]:
    torch.manual_seed(0)
    return posterior_of()


@pytest.fixture(scope="module")
def switched(groups) -> dict[str, xarray.Dataset]:
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((CHAINS, DRAWS, COMPONENTS)), axis=2)
    return groups | {"posterior": permuted(groups["posterior"], order)}


def test_planted_permutations_are_undone_exactly(groups, switched):
    assert not groups["posterior"].equals(switched["posterior"])
    expected, found = relabel(wrap(groups)), relabel(wrap(switched))
    for name, variable in expected["posterior"].data_vars.items():
        np.testing.assert_array_equal(found["posterior"][name].values, variable.values, name)


def test_a_posterior_without_switches_is_only_ordered_by_weight(groups):
    before, after = groups["posterior"], relabel(wrap(groups))["posterior"]
    occupied = slice(0, 3)
    order = np.argsort(-before["weights"].mean(("chain", "draw")).values, kind="stable")[occupied]
    for name in ("weights", "locs", "covariances", "scales"):
        kept = before[name].isel(component=order).values
        np.testing.assert_array_equal(after[name].isel(component=occupied).values, kept, name)
    weights = after["weights"].mean(("chain", "draw")).values
    assert (np.diff(weights) <= 0).all()


def test_the_row_and_its_component_stay_together(switched):
    """Each row is near the center of its component, before and after."""
    x = switched["observed_data"]["x"].values
    for data in (wrap(switched), relabel(wrap(switched))):
        locs, z = data["posterior"]["locs"].values, data["posterior"]["z"].values
        index = np.broadcast_to(z[..., None], (*z.shape, 2))
        own = np.take_along_axis(locs, index, 2)  # (C, S, N, D)
        assert np.abs(own - x).mean() < 0.5


def test_arviz_means_something_afterwards(switched):
    data = wrap(switched)
    before = az.summary(data, var_names=["locs"], round_to=6)
    after = az.summary(relabel(data), var_names=["locs"], round_to=6)
    assert before["sd"].to_numpy(float).min() > 0.5  # of a mixture of all components
    occupied = after.iloc[:6]
    assert occupied["r_hat"].to_numpy(float).max() < 1.2
    assert occupied["sd"].to_numpy(float).max() < 0.2
    means = occupied["mean"].to_numpy(float).reshape(3, 2)
    np.testing.assert_allclose(means[0], [-2.0, 0.0], atol=0.3)  # the largest cluster
    others = sorted(means[1:].tolist())
    np.testing.assert_allclose(others, [[0.0, 2.0], [2.0, 0.0]], atol=0.3)


def test_switched_chains_have_a_bad_rhat_until_relabelled(groups):
    order = np.tile(np.arange(COMPONENTS), (CHAINS, DRAWS, 1))
    order[1] = [2, 0, 1, 3, 4]
    order[3] = [1, 0, 2, 4, 3]
    data = wrap(groups | {"posterior": permuted(groups["posterior"], order)})
    before = az.summary(data, var_names=["locs"], round_to=6)["r_hat"].to_numpy(float)[:6]
    after = az.summary(relabel(data), var_names=["locs"], round_to=6)["r_hat"].to_numpy(float)[:6]
    assert before.max() > 1.5
    assert after.max() < 1.2


def test_the_other_groups_and_the_original_stay(switched):
    data = wrap(switched)
    original = switched["posterior"].copy(deep=True)
    result = relabel(data)
    assert type(result) is type(data)
    assert switched["posterior"].equals(original)
    for name in ("log_likelihood", "sample_stats", "observed_data"):
        after = result[name].to_dataset() if NEW else result[name]
        assert after.equals(switched[name])
    assert result["posterior"]["locs"].dims == original["locs"].dims
    assert result["posterior"]["locs"].dtype == original["locs"].dtype


def test_sticks_are_left_out():
    """They are in the order of breaking, and would not give the weights any more."""
    torch.manual_seed(0)
    groups = posterior_of("stick-breaking", draws=2)
    assert "sticks" in groups["posterior"]
    after = relabel(wrap(groups))["posterior"]
    assert "sticks" not in after
    np.testing.assert_allclose(after["weights"].sum("component").values, 1.0)


def test_relabel_says_what_it_needs(groups):
    with pytest.raises(ValueError, match=r"'k' along 'chain'.*Try relabel\(data, dim="):
        relabel(wrap(groups), assignments="k")
    with pytest.raises(ValueError, match="'weights' along 'cluster'"):
        relabel(wrap(groups), dim="cluster")
    with pytest.raises(ValueError, match="expected a posterior"):
        relabel(wrap({"observed_data": groups["observed_data"]}))


def test_used_and_unused_components(groups):
    data = relabel(wrap(groups))
    table = component_summary(data)
    z, weights = data["posterior"]["z"].values, data["posterior"]["weights"].values
    for k in range(COMPONENTS):
        row = table.loc[k]
        assert row["rows"] == pytest.approx((z == k).sum(2).mean())
        assert row["active"] == pytest.approx((z == k).any(2).mean())
        assert row["weight"] == pytest.approx(weights[..., k].mean())
        assert row["5%"] == pytest.approx(np.quantile(weights[..., k], 0.05))
        assert row["95%"] == pytest.approx(np.quantile(weights[..., k], 0.95))
    assert table["rows"].sum() == pytest.approx(z.shape[2])
    np.testing.assert_array_equal(table["active"][:3], 1.0)
    assert table["active"][3:].max() < 0.2
    assert list(table.columns)[1:3] == ["5%", "95%"]
    assert "10%" in component_summary(data, prob=0.8).columns

    active = num_active(data)
    expected = [[len(np.unique(draw)) for draw in chain] for chain in z]
    np.testing.assert_array_equal(active.values, expected)
    assert active.dims == ("chain", "draw")
    with pytest.raises(ValueError, match="component of each row as 'k'"):
        num_active(data, assignments="k")
