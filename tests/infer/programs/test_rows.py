"""Rows keep their identity: parameters of a row meet it in every minibatch, or are refused."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from ppl_models import FactorAnalysis, data_plate, elbo, fit, from_pyro_svi, log_evidence
from ppl_models.infer.programs.own import own_parameters
from tests.support.oracles import linear_gaussian
from tests.support.programs import OWNED
from tests.support.runs import quiet


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDelta])
def test_subsampling_inside_the_program_with_latents_of_a_row(autoguide):
    sizes = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            sizes.append(len(rows))
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])

    x = torch.linspace(-3, 3, 12)
    guide = autoguide(model)
    quiet(elbo(model, guide), x, steps=400, lr=0.05, seed=0)
    assert set(sizes) == {3}
    location = guide.locs.z if autoguide is AutoNormal else guide.z
    assert correlation(location, x) > 0.95


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).detach().double())[0, 1].item()


def frozen(rows: int = 22) -> tuple[FactorAnalysis, Tensor]:
    model = FactorAnalysis(5, 2).requires_grad_(False)
    return model, model(size=rows)


def autonormal(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = AutoNormal(model, init_scale=0.3)
    return guide, lambda: guide.locs.z


def autonormal_in_list(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(model, init_scale=0.3))
    return guide, lambda: guide[0].locs.z


def autodelta(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = AutoDelta(model)
    return guide, lambda: guide.z


def param_of_each_row(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    def guide(x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            loc = pyro.param("row_loc", lambda: torch.zeros(size, 2), event_dim=1)
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    return guide, lambda: pyro.param("row_loc")


class RowParams(nn.Module):
    """The same in a module, with one parameter of each row and feature, `event_dim=0`."""

    def forward(self, x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            locs = [pyro.param(f"loc_{k}", lambda: torch.zeros(size), event_dim=0) for k in "ab"]
            pyro.sample("z", dist.Normal(torch.stack(locs, -1), 0.3).to_event(1))


def param_in_forward(model: FactorAnalysis) -> tuple[Any, Callable[[], Tensor]]:
    guide = RowParams()

    def locations() -> Tensor:
        found = own_parameters(guide)
        return torch.stack([found["loc_a"], found["loc_b"]], -1)

    return guide, locations


GUIDES = [autonormal, autonormal_in_list, autodelta, param_of_each_row, param_in_forward]


@pytest.mark.parametrize("guide", GUIDES)
def test_rows_keep_their_identity(guide):
    model, x = frozen()
    guide, locations = guide(model)
    # 22 rows in batches of 5: the last has 2
    quiet(elbo(model, guide), x, epochs=60, batch_size=5, lr=0.1, seed=0)
    assert locations().shape == (22, 2)
    assert correlation(locations(), model.posterior(x).mean) > 0.95


@pytest.mark.parametrize("batch_size", [None, 5, 22])
@pytest.mark.parametrize("guide", [autonormal, param_of_each_row])
def test_rows_of_a_dataset_keep_their_identity(guide, batch_size):
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> Tensor:
            return x[i]

    model, x = frozen()
    guide, locations = guide(model)
    epochs = 60 if batch_size == 5 else 150
    quiet(elbo(model, guide), Rows(), epochs=epochs, batch_size=batch_size, lr=0.1, seed=0)
    assert correlation(locations(), model.posterior(x).mean) > 0.95


@pytest.mark.parametrize("count", [1, 12, 21, 23])
def test_a_guide_of_rows_takes_no_others_by_itself(count):
    model, x = frozen()
    objective = elbo(model, AutoNormal(model))
    quiet(objective, x, epochs=1, batch_size=5, seed=0)
    with pytest.raises(ValueError, match=f"each of 22 rows, and was called with {count} rows that"):
        objective.loss(x.repeat(2, 1)[:count])


def test_a_guide_fitted_in_minibatches_takes_all_rows_at_once():
    model, x = frozen()
    guide = AutoNormal(model)
    objective = elbo(model, guide)
    quiet(objective, x, epochs=1, batch_size=5, seed=0)
    assert torch.isfinite(objective.loss(x))
    assert guide(x, size=22)["z"].shape == (22, 2)


def test_autonormal_refuses_rows_that_it_cannot_place():
    model, x = frozen()
    guide = AutoNormal(model)
    objective = elbo(model, guide)
    quiet(objective, x, epochs=1, batch_size=5, seed=0)
    with pytest.raises(ValueError, match=r"parameters for each of 22 rows.*called with 5 rows"):
        objective.loss(x[:5], size=22)
    with pytest.raises(ValueError, match=r"22 rows.*there are 30 in all.*amortised guide"):
        quiet(objective, torch.zeros(30, 5), epochs=1, batch_size=5)


@pytest.mark.parametrize("batch_size", [5, 22])
@pytest.mark.parametrize("guide", [autonormal, param_of_each_row, param_in_forward])
def test_a_loader_that_hides_its_rows_is_refused(guide, batch_size):
    model, x = frozen()
    guide, _ = guide(model)
    loader = DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True)
    with pytest.raises(ValueError, match=r"not known which rows.*instead of a DataLoader"):
        quiet(elbo(model, guide), loader, epochs=1)


@pytest.mark.parametrize("guide", [autonormal, param_of_each_row])
def test_validation_rows_are_other_rows(guide):
    """As many as were fitted, and yet not those that the guide has parameters for."""
    model, x = frozen()
    guide, _ = guide(model)
    with pytest.raises(ValueError, match=r"not known which rows.*instead of others"):
        quiet(elbo(model, guide), x, epochs=1, batch_size=5, validation=x.clone())


def test_all_latents_in_one_vector_need_the_whole_data():
    model, x = frozen(6)
    guide = AutoMultivariateNormal(model)
    quiet(elbo(model, guide), x, epochs=200, lr=0.05, seed=0)
    loc = guide.loc.reshape(6, 2)
    assert correlation(loc, model.posterior(x).mean) > 0.95
    with pytest.raises(ValueError, match=r"AutoMultivariateNormal: .* one vector.*batch_size=None"):
        quiet(elbo(model, AutoMultivariateNormal(model)), x, epochs=1, batch_size=4)


def test_all_latents_in_one_vector_inside_a_list_need_the_whole_data():
    model, x = frozen(6)
    guide = AutoGuideList(model)
    guide.append(AutoMultivariateNormal(model))
    with pytest.raises(ValueError, match="one vector"):
        quiet(elbo(model, guide), x, epochs=1, batch_size=4)


def test_shared_latents_take_minibatches_of_any_size():
    case = OWNED["AutoMultivariateNormal"]()
    run = quiet(elbo(case.model, case.guide), case.data, epochs=3, batch_size=4, seed=0)
    assert run.steps == 9


def indexing_guide(model, x):
    """Parameters for each row, found by the indices of the plate: Pyro's oldest idiom."""
    exact = model.posterior(x)

    def guide(x, size=None):
        loc = pyro.param("loc", exact.mean.detach().clone())
        with data_plate(x, size) as rows:
            covariance = exact.covariance_matrix[0].detach()
            pyro.sample("z", dist.MultivariateNormal(loc[rows], covariance))

    return guide


@pytest.mark.parametrize("batch_size", [1, 4, 4096])
def test_indices_of_the_plate_are_those_of_the_rows(batch_size):
    model, x = linear_gaussian(rows=10)
    guide = indexing_guide(model, x)
    options = {"num_samples": 20, "batch_size": batch_size}
    evidence = log_evidence(model, guide, x, method="importance", **options)
    torch.testing.assert_close(evidence.value, model.evidence().log_prob(x).detach())
    stats = from_pyro_svi(model, guide, x, **options)["sample_stats"]
    assert float((stats["log_p"] - stats["log_q"]).std()) < 1e-8


def test_indices_of_rows_that_are_not_known_are_refused():
    model, x = linear_gaussian(rows=10)
    loader = DataLoader(TensorDataset(x), batch_size=5, shuffle=True)
    with pytest.raises(ValueError, match=r"plate 'data'.*not known which rows"):
        fit(elbo(model, indexing_guide(model, x)), loader, epochs=1)
    with pytest.raises(ValueError, match=r"plate 'data'.*not known which rows"):
        fit(elbo(model, indexing_guide(model, x)), x, epochs=1, validation=x[:5])


@pytest.mark.parametrize(
    "make",
    [
        torch.zeros_like,
        lambda rows: torch.ones_like(rows, dtype=torch.float32),
        lambda rows: rows.new_zeros(len(rows)),
        lambda rows: torch.full_like(rows, 2),
    ],
)
def test_as_many_numbers_as_rows_that_are_not_known(make):
    """What is made in their shape needs none of their values."""

    def model(x=None, size=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        with data_plate(x, size) as rows:
            assert make(rows).shape == (5,)
            return pyro.sample("x", dist.Normal(loc + make(rows), 1.0), obs=x)

    x = torch.arange(10.0)
    run = fit(elbo(model), DataLoader(TensorDataset(x), batch_size=5), epochs=1, progress=False)
    assert math.isfinite(run.history["loss"][0])


def test_an_autoguide_is_as_pyro_made_it_outside_of_a_fit():
    """By itself it does not look at its arguments."""
    model, x = frozen()
    guide = AutoNormal(model)
    quiet(elbo(model, guide), x, epochs=1, batch_size=5, seed=0)
    assert guide.create_plates is None
    for other in (x[:5], torch.zeros(30, 5)):
        assert guide(other)["z"].shape == (22, 2)
    again = pickle.loads(pickle.dumps(guide))
    assert torch.equal(again.locs.z, guide.locs.z)


def test_plates_that_its_owner_makes_are_kept():
    model, x = frozen(6)
    own = lambda x, size=None: [pyro.plate("data", 6)]  # noqa: E731
    guide = AutoNormal(model, create_plates=own)
    quiet(elbo(model, guide), x, epochs=1, seed=0)
    assert guide.create_plates is own


GROUP = torch.arange(10) % 3


def of_groups(x):
    """A plate of that name that is not one of rows."""
    with pyro.plate("data", 3):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate[GROUP[: len(x)]]), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [10, 2])
def test_a_plate_of_another_meaning(rows):
    x = torch.tensor([40.0, 3.0, 9.0, 44.0, 5.0, 12.0, 38.0, 4.0, 10.0, 41.0])[:rows]
    guide = AutoNormal(of_groups, init_scale=0.1)
    quiet(elbo(of_groups, guide), x, steps=500, lr=0.03, schedule=CosineAnnealingLR, seed=0)
    shape = 2 + torch.zeros(3).index_add(0, GROUP[:rows], x)
    rate = 1 + torch.zeros(3).index_add(0, GROUP[:rows], torch.ones(rows))
    # The normal nearest to the logarithm of a Gamma variable has its mean at log a - 1 / 2a.
    torch.testing.assert_close(
        guide.locs.rate, (shape / rate).log() - 0.5 / shape, rtol=0, atol=0.1
    )


def test_other_rows_are_refused_also_where_the_model_takes_no_size():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model)
    quiet(elbo(model, guide), torch.randn(10), steps=2, seed=0)
    for rows in (12, 8):
        with pytest.raises(ValueError, match=f"each of 10 rows, but there are {rows} in all"):
            quiet(elbo(model, guide), torch.randn(rows), steps=2, seed=0)
