"""Programs that run, and whose numbers would be wrong: they are made right, or refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, from_pyro_svi, log_evidence
from tests.support.oracles import binary, linear_gaussian


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


@pytest.mark.parametrize("rows", [3, 20])
def test_a_point_is_no_bound(rows):
    model, x = linear_gaussian(rows)
    guide = AutoDelta(model)
    guide(x)
    with pytest.raises(ValueError, match=r"guide: its site 'z' is a point.*AutoNormal"):
        log_evidence(model, guide, x, method="importance")
    spread = AutoNormal(model)
    spread(x)
    assert log_evidence(model, spread, x, num_samples=2, method="importance").mean < 0


def test_every_row_is_checked_against_the_support():
    vae, guide, x = VAE(6, 2), AmortizedNormal(6, 2), torch.ones(20, 6)
    x[15], x[16] = 0.5, -3.0
    for evaluate in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match=r"2 of 20 rows lie outside.*such as 0\.5"):
            evaluate(vae, guide, x)


class Scaled:
    """Models and guides whose plates do not tell what a minibatch stands for."""

    @staticmethod
    def guide_without_size(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    @staticmethod
    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(pyro.param("w", torch.ones(())) * x, 1.0))

    @staticmethod
    def model(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + pyro.param("b", torch.zeros(())), 1.0), obs=x)

    @staticmethod
    def model_of_a_batch(x, size=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @staticmethod
    def model_without_a_plate(x, size=None):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape).to_event(1), obs=x)

    @staticmethod
    def model_with_a_number(x):
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            loc = pyro.param("loc", torch.zeros(()))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (Scaled.model, Scaled.guide_without_size, "'z' of the guide.*4 of 40 .*10 times.*1 times"),
        (Scaled.model_of_a_batch, Scaled.guide, "'z' of the model.*10 times.*1 times"),
        (Scaled.model_without_a_plate, None, "'x' of the model.*10 times.*1 times"),
        (Scaled.model_with_a_number, None, "'x' of the model.*count 1 times.*10 times"),
    ],
)
def test_minibatches_that_would_be_scaled_wrongly_are_refused(model, guide, message):
    x = torch.randn(40)
    with pytest.raises(ValueError, match=message + r".*data_plate\(x, size\)"):
        fit(elbo(model, guide), x, epochs=1, batch_size=4)


def test_minibatches_that_are_scaled_rightly_pass():
    x = torch.randn(40)
    assert fit(elbo(Scaled.model, Scaled.guide), x, epochs=1, batch_size=4).steps == 10
    assert fit(elbo(Scaled.model_without_a_plate), x, epochs=1).steps == 1


def test_scaled_densities_have_no_evidence():
    model, x = linear_gaussian(rows=30)

    def some(x):
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([10]), obs=x[rows])

    with pytest.raises(ValueError, match=r"site 'x'.*counts 3 times.*subsample|draws some"):
        log_evidence(some, None, x[:, 0])
    tempered = poutine.scale(model, 0.1)
    with pytest.raises(ValueError, match=r"counts 0\.1 times, by poutine\.scale"):
        log_evidence(tempered, ExactPosterior(model), x)


def test_bits_per_dim_with_a_plate_of_pixels():
    def coins(x=None, size=None):
        with data_plate(x, size), pyro.plate("pixels", 64, dim=-2):
            return pyro.sample("x", dist.Bernoulli(0.5), obs=x if x is None else x.T)

    evidence = log_evidence(coins, None, torch.ones(10, 64))
    assert evidence.num_features == 64
    assert evidence.bits_per_dim == pytest.approx(1.0)


def test_a_loader_of_a_part_has_the_size_of_the_part():
    x = binary(100)
    half = DataLoader(TensorDataset(x), batch_size=10, sampler=SubsetRandomSampler(range(50)))
    vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
    run = fit(elbo(vae, guide), x, epochs=1, validation=half, seed=0)
    expected = fit(elbo(vae, guide), x, epochs=1, validation=x[:50], seed=0, lr=1e-12)
    assert run.history["validation"] == pytest.approx(expected.history["validation"], rel=0.1)


def indirect():
    """A function that reaches its net through a list."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))]

    def model(x=None, size=None):
        pyro.module("net", nets[0])
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=nets[0](z)).to_event(1), obs=x)

    return model, nets[0]


def test_modules_that_a_function_reaches_indirectly_are_evaluated():
    model, net = indirect()
    guide, x = AmortizedNormal(4, 2), binary()
    before = net[1].running_mean.clone()
    a, b = (log_evidence(model, guide, x, num_samples=5, seed=1).mean for _ in range(2))
    assert a == b
    assert torch.equal(net[1].running_mean, before)
    assert net.training
    assert net[2].training


def test_buffers_of_such_modules_are_resumed(tmp_path):
    def run(steps, **options):
        pyro.clear_param_store()
        model, net = indirect()
        torch.manual_seed(1)
        guide = AmortizedNormal(4, 2)
        fit(elbo(model, guide), binary(), steps=steps, batch_size=5, seed=0, **options)
        return net

    whole = run(12)
    path = tmp_path / "run"
    run(6, checkpoint=path)
    resumed = run(12, checkpoint=path, resume=True)
    assert not whole.training
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_factor_outside_of_the_rows_counts_once():
    model, x = linear_gaussian(rows=10)

    def with_factor(x=None, size=None):
        pyro.factor("penalty", torch.tensor(-1.0))
        return model(x, size)

    evidence = log_evidence(with_factor, ExactPosterior(model), x, num_samples=3)
    exact = model.evidence().log_prob(x).sum().item() - 1
    assert evidence.value.tolist() == pytest.approx([exact], abs=1e-8)


def test_deterministic_sites_in_the_plate_need_not_be_of_rows():
    matrix = torch.arange(16.0).reshape(4, 4)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("matrix", matrix)
            pyro.deterministic("number", torch.tensor(3.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    posterior = from_pyro_svi(model, guide, torch.randn(7), num_samples=500)["posterior"]
    assert posterior["matrix"].shape == (1, 500, 4, 4)
    assert (posterior["matrix"].values == matrix.numpy()).all()
    assert posterior["number"].shape == (1, 500)


def test_resume_with_a_sampler_that_has_its_own_generator(tmp_path):
    def run(steps, **options):
        torch.manual_seed(3)
        vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
        data = TensorDataset(binary())
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5))
        loader = DataLoader(data, batch_size=5, sampler=sampler)
        fit(elbo(vae, guide), loader, steps=steps, seed=0, **options)
        return vae.decoder[0].weight

    path = tmp_path / "run"
    run(6, checkpoint=path)
    assert torch.equal(run(12), run(12, checkpoint=path, resume=True))


def test_sums_over_many_rows_keep_their_digits():
    torch.manual_seed(0)
    x = torch.randn(3000, 50) * 100

    def model(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(torch.zeros(50), 1.0).to_event(1), obs=x)

    stats = from_pyro_svi(model, None, x, num_samples=1)["sample_stats"]
    exact = dist.Normal(torch.zeros(50), 1.0).to_event(1).log_prob(x).double().sum().item()
    assert stats["log_p"].item() == pytest.approx(exact, rel=1e-12)


def test_the_closed_form_makes_the_checks_of_the_model():
    model = FactorAnalysis(5, 2)
    for x in (torch.randn(10, 2, 5), torch.randn(5), torch.randn(10, 4)):
        with pytest.raises(ValueError, match=r"FactorAnalysis: expected rows of 5 features"):
            log_evidence(model, None, x)


def test_rows_of_another_precision_are_told_what_to_do():
    with pytest.raises(RuntimeError) as caught:
        fit(elbo(VAE(6, 2), AmortizedNormal(6, 2)), torch.ones(9, 6).double(), epochs=1)
    assert any("x.float()" in note for note in caught.value.__notes__)


def test_improper_priors_are_left_out():
    def model(x=None, size=None):
        real = dist.constraints.real
        loc = pyro.sample("loc", dist.ImproperUniform(real, torch.Size(), torch.Size()))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x=None, size=None):
        pyro.sample("loc", dist.Normal(x.mean(), len(x) ** -0.5))

    data = from_pyro_svi(model, guide, torch.randn(9), num_samples=30)
    assert data["posterior"]["loc"].shape == (1, 30)
    assert "prior" not in (data.children if hasattr(data, "children") else data.groups())


def test_nets_that_are_not_trained_are_named():
    net = nn.Linear(2, 4)

    def model(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    with pytest.warns(UserWarning, match=r"runs model.net.*not trained.*pyro\.module\('net'"):
        fit(elbo(model, AmortizedNormal(4, 2)), binary(), epochs=1)
    net.requires_grad_(False)
    fit(elbo(model, AmortizedNormal(4, 2)), binary(), epochs=1)


def test_an_empty_network_is_the_identity():
    vae = VAE(3, 3, decoder=nn.Sequential())
    z = torch.randn(2, 3)
    torch.testing.assert_close(vae.mean(z), z.sigmoid())


def test_a_schedule_is_not_given_steps_for_something_else():
    schedulers = torch.optim.lr_scheduler
    pair = VAE(4, 2), AmortizedNormal(4, 2)
    with pytest.raises(TypeError, match=r"ExponentialLR needs gamma.*functools\.partial"):
        fit(elbo(*pair), binary(), epochs=3, schedule=schedulers.ExponentialLR)
    assert math.isfinite(
        fit(elbo(*pair), binary(), epochs=3, schedule=schedulers.CosineAnnealingLR).history["loss"][
            -1
        ]
    )
