"""The library on a GPU that is not there: one device, no reads by the host, no copies from it."""

import inspect
from typing import Any

import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

import ppl_models
from guides import AmortizedNormal, BottomUpNormal, ConditionalNormal, LabelNormal
from ppl_models import (
    GAN,
    VAE,
    AutoEncoder,
    DenoisingAutoEncoder,
    Diffusion,
    FactorAnalysis,
    GaussianDiscriminant,
    GaussianMixture,
    LinearRegression,
    ProbabilisticPCA,
    elbo,
)
from ppl_models.infer.training.average import Average
from tests.support.every_objective import ALL, BINARY, LABELS, Row, X, mixture, programs
from tests.support.fake_cuda import CUDA, fake_cuda

# HalfNormal and HalfCauchy of torch begin with a mean that is the number 0.
COPIES = ("LinearRegression", "BayesianFactorAnalysis", "four particles")
READS = (
    "SemiSupervisedVAE",
    "DomainVAE",
)  # Pyro's Dice looks where the guide's probabilities are zero


@pytest.mark.parametrize("name", ALL)
def test_loss(name):
    make, data, _ = ALL[name]
    objective = make()
    objective.loss(*data, size=100)  # what is built at the first call
    with fake_cuda(copies=name.startswith(COPIES)) as gpu:
        gpu.objective(objective)
        batch = [gpu.tensor(x) for x in data]
        if name.startswith(READS):
            with pytest.raises(
                (DataDependentOutputException, DynamicOutputShapeException)
            ) as error:
                objective.loss(*batch, size=100)
            assert any(str(e.path).endswith("pyro/infer/util.py") for e in error.traceback)
        else:
            loss = objective.loss(*batch, size=100)
            assert loss.device == CUDA
            assert loss.shape == ()


def planted(kind: str):
    """A model with a fault that only a GPU shows."""

    class Faulty(VAE):
        def forward(self, x=None, size=None):
            if kind == "device":
                x = x + torch.zeros(3, 4)[0]
            elif kind == "read":
                x = x * x.sum().item()
            elif kind == "branch" and x.sum() > 0:
                x = x + 1
            elif kind == "mask":
                x = x[x[:, 0] > 0]
            elif kind == "copy":
                x = x + torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device)
            elif kind == "constant":
                x = x + torch.zeros(4).to(x.device)
            elif kind == "held":
                x = x + self.held
            return super().forward(x, size)

    model = Faulty(4, 2)
    model.held = torch.ones(4)  # neither a parameter nor a buffer
    return elbo(model, AmortizedNormal(4, 2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("device", "DeviceMismatch|different devices"),
        ("held", "DeviceMismatch|different devices"),
        ("read", "_local_scalar_dense"),
        ("branch", "_local_scalar_dense"),
        ("mask", "nonzero"),
        ("copy", "a copy from the host"),
        ("constant", "a copy from the host"),
    ],
)
def test_planted(kind, message):
    objective = planted(kind)
    with fake_cuda() as gpu:
        gpu.objective(objective)
        with pytest.raises(Exception, match=message):
            objective.loss(gpu.tensor(BINARY))


@pytest.mark.parametrize(
    "kind", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta]
)
def test_autoguides_are_built_on_the_device_of_the_data(kind):
    model = LinearRegression(4)
    objective, y = elbo(model, kind(model)), X.sum(1)
    with fake_cuda(copies=True) as gpu:
        gpu.objective(objective)
        objective.loss(gpu.tensor(X), gpu.tensor(y))
        parameters = dict(objective.named_parameters())
        assert parameters
        assert all(p.device == CUDA for p in parameters.values())


def given(model: nn.Module, data: tuple[Tensor, ...]) -> dict[str, Any]:
    """With what a program draws rows: what it cannot do without, labels, or a number of rows."""
    parameters = inspect.signature(model.forward).parameters
    first = next(iter(parameters.values()))
    if first.default is inspect.Parameter.empty:
        return {first.name: data[0]}
    if "y" in parameters and len(data) > 1 and (data[1] >= 0).all():
        return {"y": data[1]}
    return {"size": 5}


LOOKS = ("Diffusion, labels",)  # at its labels, before it draws
DRAWN = {name: row for name, row in ALL.items() if row.evidence and name not in LOOKS} | {
    "GaussianMixture, spherical": Row(lambda: elbo(GaussianMixture(4, 2, "spherical")), (X,), None),
    "BayesianGaussianMixture, diag": Row(lambda: elbo(mixture(covariance="diag")), (X,), None),
    "GaussianDiscriminant, no labels": Row(ALL["GaussianDiscriminant"].make, (X,), None),
    "known noise": Row(lambda: elbo(LinearRegression(4, noise=0.5)), (X, X.sum(1)), None),
    "SemiSupervisedVAE, labels": Row(ALL["SemiSupervisedVAE"].make, (BINARY, LABELS), None),
    "GAN": ALL["GAN, generator"],
}


@pytest.mark.parametrize("name", DRAWN)
def test_rows_are_drawn_on_the_device_of_the_parameters(name):
    make, data, _ = DRAWN[name]
    model, _ = programs(make())
    arguments = given(model, data)
    with fake_cuda(copies=name.startswith(COPIES)) as gpu, torch.no_grad():
        gpu.modules([model])
        on_gpu = {k: gpu.tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        drawn = model(**on_gpu)
        assert drawn.device == CUDA
        assert len(drawn) == (5 if "size" in arguments else len(data[0]))
        assert arguments.keys() & {"x", "pairs"} or drawn.shape[1:] == data[0].shape[1:]


def log_prob(model: Any, x: Tensor) -> Tensor:
    return model.evidence().log_prob(x)


def posterior(model: Any, *data: Tensor) -> Tensor:
    return model.posterior(*data).sample()


def run(model: Any, *data: Tensor) -> Tensor:
    return model(*data)


Z = X[:, :2]
CLOSED = {
    "FactorAnalysis": (lambda: FactorAnalysis(4, 2), log_prob, (X,)),
    "GaussianMixture": (lambda: GaussianMixture(4, 2), log_prob, (X,)),
    "GaussianMixture, tied": (lambda: GaussianMixture(4, 2, "tied"), log_prob, (X,)),
    "GaussianMixture, diag": (lambda: GaussianMixture(4, 2, "diag"), log_prob, (X,)),
    "GaussianDiscriminant": (lambda: GaussianDiscriminant(4, 3), log_prob, (X,)),
    "FactorAnalysis, posterior": (lambda: FactorAnalysis(4, 2), posterior, (X,)),
    "ProbabilisticPCA, posterior": (lambda: ProbabilisticPCA(4, 2), posterior, (X,)),
    "GaussianMixture, posterior": (lambda: GaussianMixture(4, 2), posterior, (X,)),
    "GaussianDiscriminant, posterior": (lambda: GaussianDiscriminant(4, 3), posterior, (X,)),
    "AmortizedNormal": (lambda: AmortizedNormal(4, 2), posterior, (X,)),
    "BottomUpNormal": (lambda: BottomUpNormal(4, 2, 2), posterior, (X,)),
    "ConditionalNormal": (lambda: ConditionalNormal(4, 3, 2), posterior, (X, LABELS)),
    "LabelNormal": (lambda: LabelNormal(4, 3, 2), posterior, (X, LABELS)),
    "AutoEncoder": (lambda: AutoEncoder(4, 2), run, (X,)),
    "DenoisingAutoEncoder": (lambda: DenoisingAutoEncoder(4, 2), run, (X,)),
    "VAE, mean": (lambda: VAE(4, 2), VAE.mean, (Z,)),
    "GAN, generator": (lambda: GAN(4, 2).generator, run, (Z,)),
    "GAN, discriminate": (lambda: GAN(4, 2), GAN.discriminate, (X,)),
    "Diffusion, bound": (lambda: Diffusion(4, num_steps=3), Diffusion.bound, (X,)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_and_parts(name):
    make, use, data = CLOSED[name]
    model = make()
    with fake_cuda(copies=True) as gpu, torch.no_grad():
        gpu.modules([model])
        assert use(model, *map(gpu.tensor, data)).device == CUDA


def test_the_work_around_a_step():
    model = VAE(4, 2)
    parameters = list(model.parameters())
    average = Average(parameters, 0.9)
    with fake_cuda() as gpu:
        parameters = [gpu.tensor(p) for p in parameters]
        average.parameters = parameters
        average.tensors = [gpu.tensor(a) for a in average.tensors]
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer = torch.optim.Adam(parameters, fused=True)
        for _ in range(2):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.update(1)
        assert all(a.device == CUDA for a in average.tensors)
        assert all(s["step"].device == CUDA for s in optimizer.state.values())


class OnMPS(Tensor):
    """A tensor that says that it is on a device of Apple's."""

    device = property(lambda self: torch.device("mps"))  # type: ignore[assignment]


@pytest.mark.parametrize(
    "use",
    [
        lambda x: FactorAnalysis(4, 2).maximum_likelihood(x),
        lambda x: FactorAnalysis(4, 2).initialise(x),
        lambda x: GaussianMixture(4, 2).initialise(x),
        lambda x: GaussianDiscriminant(4, 2).maximum_likelihood(x, x[:, 0]),
        lambda x: ppl_models.PCA(4, 2).least_squares(x),
        lambda x: ppl_models.BayesianFactorAnalysis(4, 2).initial_values(x),
    ],
)
def test_a_device_without_double_precision(use):
    x = X.as_subclass(OnMPS)
    with pytest.raises(TypeError, match=r"double precision, which the device mps.*Try \.cpu\(\)"):
        use(x)
