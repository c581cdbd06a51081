"""What waits for a GPU: nothing in a step of training, one look in a step of EM."""

import pyro
import pytest
import torch

from guides import AmortizedNormal, ExactPosterior, FactorNormal, MixturePosterior
from ppl_models import (
    MADE,
    VAE,
    BayesianFactorAnalysis,
    BayesianGaussianMixture,
    Diffusion,
    FactorAnalysis,
    GaussianMixture,
    LinearRegression,
    elbo,
    log_evidence,
    probability_flow,
    variational_bound,
    varimax,
    varimax_draws,
)
from ppl_models.diffusion.samplers import ancestral, ddim, heun, langevin
from ppl_models.infer.training.batches import InMemory
from ppl_models.infer.training.descent import Descent
from ppl_models.linalg import cholesky
from ppl_models.metrics import frechet, mode_coverage, prdc
from tests.support.every_objective import ALL, HOLES, Row, X
from tests.support.fake_gpu import OnGPU, fake_gpu, on_gpu

# HalfNormal and HalfCauchy of torch begin with a mean that is the number 0.
COPIES = ("LinearRegression", "BayesianFactorAnalysis", "four particles")
READS = (
    "SemiSupervisedVAE",  # Pyro's Dice looks where the guide's probabilities are zero
    "DomainVAE",
    "BayesianFactorAnalysis",  # torch's LowRankMultivariateNormal takes a Cholesky factor
    "LinearRegression, AutoLowRankMultivariateNormal",
    "VAE, AmortizedLowRankNormal",  # alike
)


def losses(name, place, steps=2):
    """The losses of some steps, and the waits for a GPU in the last of them."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    make, data, _ = ALL[name]
    objective = make()
    objective.loss(*data)
    place(*objective.modules().values(), *([objective.gan] if hasattr(objective, "gan") else []))
    data = tuple(OnGPU(x) if place is on_gpu else x for x in data)
    descent = None
    with fake_gpu() as waits:
        found = []
        for epoch in range(steps):
            batch = next(InMemory(data, len(data[0]) - 1).epoch(epoch))
            descent = descent or Descent(objective, batch, clip=1.0, ema=0.9)
            waits.clear()
            found.append(next(iter(descent.step(batch).values())).detach())
        waits = dict(waits)
        return [loss.item() for loss in found], waits


@pytest.mark.filterwarnings("ignore:discriminator. the program runs gan")  # alone, here
@pytest.mark.parametrize("name", [n for n in ALL if "AutoStructured" not in n])  # not emulated
def test_no_step_of_training_waits(name):
    expected, _ = losses(name, lambda *modules: modules)
    found, waits = losses(name, on_gpu)
    assert found == pytest.approx(expected, rel=1e-5)
    unavoidable = {"from host"} if name.startswith(COPIES) else set()
    unavoidable |= {"read"} if name.startswith(READS) else set()
    assert waits.keys() <= unavoidable


@pytest.mark.parametrize("kind", ["read", "copy", "device"])
def test_planted(kind):
    class Faulty(VAE):
        def forward(self, x=None, size=None):
            if kind == "read" and x.sum() > 1e9:
                x = x + 1
            if kind == "copy":
                x = x + torch.zeros(4).to(x.device)
            if kind == "device":
                x = x + torch.zeros(4)
            return super().forward(x, size)

    make = lambda: elbo(Faulty(4, 2), AmortizedNormal(4, 2))  # noqa: E731
    ALL["faulty"] = Row(make, ((X > 0).float(),), None)
    try:
        if kind == "device":
            with pytest.raises(RuntimeError, match="tensors on meta and on cpu"):
                losses("faulty", on_gpu)
        else:
            assert losses("faulty", on_gpu)[1] == {"read" if kind == "read" else "from host": 1}
    finally:
        del ALL["faulty"]


ROWS = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)).double()
GAPS = ROWS.where(torch.rand(300, 4, generator=torch.Generator().manual_seed(3)) > 0.1, torch.nan)
EM = {
    "FactorAnalysis": (lambda: FactorAnalysis(4, 1), ROWS),
    "FactorAnalysis, missing": (lambda: FactorAnalysis(4, 1, "marginalise"), GAPS),
    "GaussianMixture": (lambda: GaussianMixture(4, 2), ROWS),
    "GaussianMixture, tied": (lambda: GaussianMixture(4, 2, "tied"), ROWS),
    "GaussianMixture, spherical": (lambda: GaussianMixture(4, 2, "spherical"), ROWS),
}


@pytest.mark.parametrize("name", EM)
def test_waits_of_a_step_of_em_do_not_grow_with_the_batches(name):
    make, x = EM[name]
    model = make().double()
    model.initialise(x)
    on_gpu(model)
    with fake_gpu() as waits:
        model.em_step([OnGPU(x)])  # what only the first step needs, such as places in a matrix
        counts = []
        for parts in (1, 3, 30):
            batches = list(OnGPU(x).split(len(x) // parts))
            waits.clear()
            model.em_step(batches)
            counts.append((waits["read"], waits["from host"], waits["to host"]))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] <= 4


def test_one_wait_for_each_batch_with_gaps():
    model = GaussianMixture(4, 2, missing="marginalise").double()
    model.initialise(GAPS)
    on_gpu(model)
    with fake_gpu() as waits:
        model.em_step(OnGPU(GAPS.repeat(10, 1)))  # 12 chunks
        assert waits["to host"] + waits["read"] <= 4


def diffusion():
    return on_gpu(Diffusion(4, num_steps=3))


def pair():
    return on_gpu(VAE(4, 2)), on_gpu(AmortizedNormal(4, 2))


def starts():
    model = on_gpu(BayesianFactorAnalysis(4, 2))
    return FactorNormal(model.initial_values(OnGPU(X)))(OnGPU(X))


ELSEWHERE = {
    **{
        sampler.__name__: lambda sampler=sampler: diffusion().sample(5, sampler, num_steps=4)
        for sampler in (ancestral, ddim, heun, langevin)
    },
    "probability_flow": lambda: probability_flow(diffusion(), OnGPU(X), num_steps=3),
    "variational_bound": lambda: variational_bound(diffusion(), OnGPU(X), num_samples=2),
    "log_evidence": lambda: log_evidence(*pair(), OnGPU((X > 0).float()), num_samples=3),
    "MADE": lambda: on_gpu(MADE(4))(size=5),
    "BayesianGaussianMixture": lambda: on_gpu(BayesianGaussianMixture(4, 1))(size=5),
    "MixturePosterior": lambda: MixturePosterior(on_gpu(BayesianGaussianMixture(4, 2)), OnGPU(X))(
        OnGPU(X)
    ),
    "FactorNormal": starts,
    "LinearRegression": lambda: on_gpu(LinearRegression(4, noise=0.5)).posterior(
        OnGPU(X), OnGPU(X.sum(1))
    ),
    "GaussianMixture, missing": lambda: on_gpu(
        GaussianMixture(4, 2, missing="marginalise")
    ).posterior(OnGPU(HOLES)),
    "ExactPosterior": lambda: ExactPosterior(on_gpu(FactorAnalysis(4, 2)))(OnGPU(X)),
    "varimax": lambda: varimax(OnGPU(torch.randn(6, 2))),
    "varimax_draws": lambda: varimax_draws(OnGPU(torch.randn(7, 6, 2)), 2),
    "prdc": lambda: prdc(OnGPU(X), OnGPU(X + 0.1), k=3),
    "frechet": lambda: frechet(OnGPU(X), OnGPU(X + 0.1)),
    "mode_coverage": lambda: mode_coverage(OnGPU(X), OnGPU(X[:3]), 0.5),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_one_device_elsewhere(name):
    with fake_gpu():
        ELSEWHERE[name]()


def test_no_factor_shows_in_the_loss_and_not_as_a_wrong_number():
    bad, good = -torch.eye(2), 4 * torch.eye(2)
    with fake_gpu() as waits:
        factor = cholesky(OnGPU(torch.stack([bad, good])))
        assert not waits
        assert factor[0].isnan().all()
        torch.testing.assert_close(factor[1].cpu(), 2 * torch.eye(2))
    with pytest.raises(torch.linalg.LinAlgError):
        cholesky(bad)
