"""Runs on a GPU that computes on the CPU, and on a real one where there is one, as on the CPU.

The numbers drawn are the same everywhere, so that whole runs agree in double precision.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import ppl_models
from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    PCA,
    VAE,
    FactorAnalysis,
    GaussianDiscriminant,
    GaussianMixture,
    HistogramDensity,
    LinearRegression,
    ProbabilisticPCA,
    adversarial,
    data_plate,
    elbo,
    fit,
    fit_em,
    from_pyro_svi,
    impute,
    load,
    log_evidence,
    save,
)
from tests.support.every_objective import ALL, HOLES, LABELS, X
from tests.support.fake_gpu import GPU, fake_gpu
from tests.support.runs import Rows
from tests.support.tutorials import CompiledSVI


@pytest.fixture(params=["emulated", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "emulated":
        with fake_gpu():
            yield str(GPU)
    else:
        yield "cuda"


@pytest.fixture(autouse=True)
def _same_numbers(monkeypatch):
    """All draws come from the generator of the CPU."""

    def standard_normal(shape, dtype, device):
        return torch.randn(shape, dtype=dtype).to(device)

    for module in ("normal", "multivariate_normal", "lowrank_multivariate_normal"):
        path = f"torch.distributions.{module}._standard_normal"
        monkeypatch.setattr(path, standard_normal)
    rand = torch.rand

    def rand_on(*size, device=None, **options):
        return rand(*size, **options).to(device or "cpu")

    def randn_like(x):
        return torch.randn(x.shape, dtype=x.dtype).to(x.device)

    monkeypatch.setattr(torch, "rand", rand_on)
    monkeypatch.setattr(torch, "randn_like", randn_like)


def made(name):
    """An objective and its data, in double precision."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    make, data, _ = ALL[name]
    objective = make()
    for module in objective.modules().values():
        module.double()
    data = tuple(x.double() if x.is_floating_point() else x for x in data)
    objective.loss(*data)  # autoguides look for their start here: draws differ between devices
    return objective, data


def trained(name, device, **options):
    objective, data = made(name)
    settings = {"batch_size": 10, "seed": 0, "progress": False, "lr": 1e-2} | options
    if "epochs" not in settings:
        settings.setdefault("steps", 8)
    run = fit(objective, data, device=device, **settings)
    return objective, run


TRAINED = [
    "VAE, Bernoulli",
    "GaussianMixture",
    "LinearRegression, AutoNormal",
    "BayesianGaussianMixture, AutoNormal",
    "Diffusion",
    "PixelCNN",
    "FactorAnalysis",
]


@pytest.mark.parametrize("name", TRAINED)
def test_a_fit_is_that_of_the_cpu(name, device):
    _, expected = trained(name, "cpu", clip=1.0, ema=0.9, epochs=2)
    objective, run = trained(name, device, clip=1.0, ema=0.9, epochs=2)
    assert run.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-7)
    parameters = dict(objective.named_parameters())
    assert parameters
    assert all(p.device.type == torch.device(device).type for p in parameters.values())


def test_a_loss_falls(device):
    _, run = trained("VAE, Bernoulli", device, epochs=15)
    assert run.history["loss"][-1] < 0.9 * run.history["loss"][0]


def test_a_game_is_that_of_the_cpu(device):
    def play(place):
        torch.manual_seed(0)
        gan = ppl_models.GAN(4, 2).double()
        objectives = adversarial(gan, instance_noise=(0.3, 0.1, 10))
        return fit(objectives, X.double(), epochs=3, batch_size=12, seed=0, device=place).history

    expected, found = play("cpu"), play(device)
    for key in expected:
        assert found[key] == pytest.approx(expected[key], rel=1e-7)


def test_validation(device):
    held_out = X[:8].double()
    options = {"validation": held_out, "patience": 2, "epochs": 4}
    _, expected = trained("FactorAnalysis", "cpu", **options)
    _, run = trained("FactorAnalysis", device, **options)
    assert run.history["validation"] == pytest.approx(expected.history["validation"], rel=1e-7)


def test_streamed_batches(device):
    def stream(place):
        objective, data = made("GaussianMixture")
        loader = DataLoader(TensorDataset(*data), batch_size=10, shuffle=True)
        return fit(objective, loader, epochs=3, seed=0, device=place).history["loss"]

    assert stream(device) == pytest.approx(stream("cpu"), rel=1e-7)


def test_half_precision(device):
    torch.manual_seed(0)
    objective = elbo(VAE(4, 2), AmortizedNormal(4, 2))
    x = torch.ones(24, 4)
    run = fit(objective, x, epochs=20, seed=0, device=device, amp=True, lr=1e-2)
    assert run.history["loss"][-1] < 0.5 * run.history["loss"][0]
    assert all(p.dtype == torch.float32 for _, p in objective.named_parameters())


@pytest.mark.parametrize(
    ("written", "resumed"), [("here", "here"), ("here", "cpu"), ("cpu", "here")]
)
def test_checkpoints_go_from_one_device_to_another(tmp_path, device, written, resumed):
    first, second = (device if place == "here" else "cpu" for place in (written, resumed))
    path = tmp_path / "run.safetensors"
    name = "VAE, Bernoulli"
    _, whole = trained(name, "cpu", steps=12, ema=0.9, clip=1.0)
    trained(name, first, steps=5, ema=0.9, clip=1.0, checkpoint=path)
    objective, run = trained(
        name, second, steps=12, ema=0.9, clip=1.0, checkpoint=path, resume=True
    )
    assert run.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-7)
    place = torch.device(second).type
    assert all(p.device.type == place for _, p in objective.named_parameters())


def test_weights_go_from_one_device_to_another(tmp_path, device):
    there, here = FactorAnalysis(4, 2).to(device), FactorAnalysis(4, 2)
    save(tmp_path / "there.safetensors", model=there)
    load(tmp_path / "there.safetensors", model=here)
    torch.testing.assert_close(here.loadings, there.loadings.cpu(), rtol=0, atol=0)
    load(tmp_path / "there.safetensors", model=there)
    assert there.loadings.device.type == torch.device(device).type


def _rows():
    """Rows of one factor and noise; in four columns."""
    generator = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(200, k, generator=generator) for k in (1, 4))
    return (z @ torch.tensor([[1.0, 0.8, -0.9, 0.7]]) + 0.6 * noise).double()


ROWS = _rows()
GAPS = ROWS.where(torch.rand(200, 4, generator=torch.Generator().manual_seed(3)) > 0.1, torch.nan)
EM = {
    "FactorAnalysis": (lambda: FactorAnalysis(4, 1), ROWS),
    "FactorAnalysis, missing": (lambda: FactorAnalysis(4, 1, "marginalise"), GAPS),
    "ProbabilisticPCA": (lambda: ProbabilisticPCA(4, 1), ROWS),
    "GaussianMixture": (lambda: GaussianMixture(4, 2), ROWS),
    "GaussianMixture, tied": (lambda: GaussianMixture(4, 2, "tied"), ROWS),
    "GaussianMixture, diag": (lambda: GaussianMixture(4, 2, "diag"), ROWS),
    "GaussianMixture, missing": (lambda: GaussianMixture(4, 2, missing="marginalise"), GAPS),
}


KINDS = [(name, "whole") for name in EM]
KINDS += [(name, kind) for name in EM for kind in ("parts", "loader") if "missing" not in name]
KINDS += [("FactorAnalysis, missing", "dataset"), ("GaussianMixture, missing", "parts")]


@pytest.mark.filterwarnings("ignore:fit_em")  # still rising
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_expectation_maximisation_is_that_of_the_cpu(name, kind, device):
    make, x = EM[name]

    def climb(place, kind):
        torch.manual_seed(0)
        model = make().double()
        if not isinstance(model, FactorAnalysis):  # its start is no draw
            model.initialise(x)
        data, options = {
            "whole": (x.to(place), {}),
            "parts": (x, {"batch_size": 70}),  # which stay on the CPU
            "dataset": (Rows(x), {"batch_size": 70}),
            "loader": (DataLoader(TensorDataset(x), batch_size=70), {}),
        }[kind]
        start = isinstance(model, FactorAnalysis)
        model.to(place)
        # No more: rows in one piece would leap then, which those in parts do not.
        run = fit_em(model, data, initialise=start, max_steps=3, tolerance=0.0, **options)
        return run.history["loss"], [p.detach().cpu() for p in model.parameters()], model

    losses, parameters, _ = climb("cpu", "whole")
    found, moved, model = climb(device, kind)
    assert found == pytest.approx(losses, abs=1e-8)
    for a, b in zip(moved, parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert all(p.device.type == torch.device(device).type for p in model.parameters())


def test_several_starts(device):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40, 2) + 6 * i for i in range(4)]).double()
    model = GaussianMixture(2, 4).double().to(device)
    one = fit_em(model, x.to(device), restarts=1, seed=1).history["loss"][-1]
    assert fit_em(model, x.to(device), restarts=4, seed=1).history["loss"][-1] <= one + 1e-4
    assert -model.em_step(x.to(device)).item() <= one + 1e-4


CLOSED = {
    "FactorAnalysis": lambda to: (
        FactorAnalysis(4, 1).double().to(to).maximum_likelihood(ROWS.to(to))
    ),
    "ProbabilisticPCA": lambda to: (
        ProbabilisticPCA(4, 1).double().to(to).maximum_likelihood(ROWS.to(to))
    ),
    "PCA": lambda to: PCA(4, 2).double().to(to).least_squares(ROWS.to(to)),
    "GaussianDiscriminant": lambda to: (
        GaussianDiscriminant(4, 2)
        .double()
        .to(to)
        .maximum_likelihood(ROWS.to(to), (ROWS[:, 0] > 0).long().to(to))
    ),
    "HistogramDensity": lambda to: (
        HistogramDensity(torch.linspace(-20, 20, 9).double())
        .double()
        .to(to)
        .maximum_likelihood(ROWS[:, :1].to(to), pseudo_count=1.0)
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_those_of_the_cpu(name, device):
    torch.manual_seed(0)
    expected, found = CLOSED[name]("cpu").state_dict(), CLOSED[name](device).state_dict()
    for key in expected:
        assert found[key].device.type == torch.device(device).type
        torch.testing.assert_close(found[key].cpu(), expected[key], rtol=1e-8, atol=1e-8)


def test_evidence_and_criteria(device):
    torch.manual_seed(0)
    model = FactorAnalysis(4, 1).double()
    guide = ExactPosterior(model)
    expected = log_evidence(model, guide, ROWS, num_samples=4).mean, model.bic(ROWS)
    model.to(device)
    x = ROWS.to(device)
    found = log_evidence(model, guide, x, num_samples=4).mean, model.bic(x)
    assert found == pytest.approx(expected, rel=1e-7)
    mixture = GaussianMixture(4, 2).double()
    expected = log_evidence(mixture, None, ROWS).mean, mixture.aic(ROWS)
    mixture.to(device)
    assert (log_evidence(mixture, None, x).mean, mixture.aic(x)) == pytest.approx(expected)


def test_draws_for_arviz(device):
    def drawn(place):
        objective, data = made("LinearRegression, AutoNormal")
        fit(objective, data, steps=2, seed=0, device=place)
        data = tuple(x.to(place) for x in data)
        model, guide = objective.model, objective.guide
        return from_pyro_svi(model, guide, *data, num_samples=5, seed=0)["posterior"]

    expected, found = drawn("cpu"), drawn(device)
    for name in expected.data_vars:
        assert found[name].values == pytest.approx(expected[name].values, rel=1e-7)


def test_missing_entries_are_filled_in(device):
    torch.manual_seed(0)
    x = HOLES.double()
    for model in (
        FactorAnalysis(4, 2, "marginalise"),
        GaussianMixture(4, 2, missing="marginalise"),
    ):
        expected = model.double().impute(x)
        found = model.to(device).impute(x.to(device))
        torch.testing.assert_close(found.cpu(), expected)
        assert model.impute(x.to(device), num_samples=3).shape == (3, *x.shape)
    vae = FactorAnalysis(4, 2, "marginalise").double().to(device)
    filled = impute(vae, ExactPosterior(vae), x.to(device), num_samples=2, num_particles=5)
    assert filled.device.type == torch.device(device).type
    assert not filled.isnan().any()


@pytest.mark.filterwarnings("ignore:SVI. it runs eagerly")  # where it is emulated
def test_steps_of_the_drop_in(device, monkeypatch):
    if device != "cuda":  # its compiler takes long, and is tested elsewhere
        monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)

    def steps(kind):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, x = LinearRegression(4).to(device), X.to(device)
        guide = pyro.infer.autoguide.AutoNormal(model)
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        # No more: from the fifth on steps are recorded, which draws of the CPU cannot be.
        return [svi.step(x, x.sum(1)) for _ in range(4)]

    expected = steps(pyro.infer.SVI)
    assert steps(CompiledSVI) == pytest.approx(expected, rel=1e-4)


def own_parameters(x, size=None):
    """A guide with a parameter for each row, found by the index of the row."""
    locs = pyro.param("locs", lambda: x.new_zeros(24))
    with data_plate(x, size) as rows:
        pyro.sample("z", dist.Normal(locs[rows], torch.ones_like(x[:, 0])))


def one_latent(x, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, 0]), torch.ones_like(x[:, 0])))
        pyro.sample("x", dist.Normal(z[:, None], torch.ones_like(x)).to_event(1), obs=x)


def test_rows_that_are_not_known_are_refused_before_any_kernel_runs(device):
    objective = elbo(one_latent, own_parameters)
    fit(objective, X, steps=3, batch_size=10, seed=0, device=device)
    loader = DataLoader(TensorDataset(X), batch_size=10)
    with pytest.raises(ValueError, match=r"plate 'data'.*not known which rows"):
        fit(objective, loader, steps=3, seed=0, device=device)
    assert bool(torch.ones(1, device=device).sum() == 1)  # a GPU is not the worse for it


def test_mixed_devices_are_refused(device):
    model = GaussianMixture(4, 2).double().to(device)
    with pytest.raises(ValueError, match=r"the data are on cpu, but model\.\w+ is on"):
        fit_em(model, ROWS)
    model = VAE(4, 2).to(device)
    with pytest.raises(ValueError, match="the data are on cpu, but"):
        fit(elbo(model, AmortizedNormal(4, 2)), X, steps=1)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_are_built_where_the_data_are(kind, device):
    model = LinearRegression(4)
    objective = elbo(model, kind(model))
    fit(objective, (X, X.sum(1)), steps=3, batch_size=10, seed=0, device=device)
    parameters = dict(objective.named_parameters())
    assert parameters
    assert all(p.device.type == torch.device(device).type for p in parameters.values())


def test_labels(device):
    def losses(place):
        torch.manual_seed(0)
        objective = elbo(GaussianDiscriminant(4, 3).double())
        data = (X.double(), LABELS)
        return fit(objective, data, epochs=3, batch_size=10, seed=0, device=place).history["loss"]

    assert losses(device) == pytest.approx(losses("cpu"), rel=1e-7)
