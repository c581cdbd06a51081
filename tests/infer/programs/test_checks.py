"""What a first run must show: sites, supports and plates, before any work is lost."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, Diffusion, FactorAnalysis, check, data_plate, elbo, fit, log_evidence
from ppl_models.likelihoods import Categorical, Normal
from tests.support.refusals import Refused, spoiled, vae
from tests.support.runs import Rows, quiet


@pytest.mark.parametrize("kind", [Rows, lambda x: DataLoader(TensorDataset(x), batch_size=9)])
def test_a_dataset_whose_first_batch_is_not_finite(kind):
    pair = vae(Normal())
    with Refused(ValueError, r"site 'x': 1 of 9 rows lie outside.*such as nan", *pair):
        quiet(elbo(*pair), kind(spoiled(3)), steps=2)


def test_grey_levels_for_a_bernoulli_are_found_in_any_row():
    pair, x = vae(), torch.ones(9, 4)
    x[7] = 0.5  # not in the first batch
    with Refused(
        ValueError,
        r"site 'x': 1 of 9 rows lie outside the support of its Bernoulli \(Boolean\(\)\), such "
        r"as 0.5.*binarize\(x\).*Normal\(\) or Categorical\(levels\)",
        *pair,
    ):
        quiet(elbo(*pair), x, steps=2, batch_size=2, seed=1)
    with Refused(ValueError, "1 of 9 rows lie outside", *pair):
        quiet(elbo(*pair), torch.ones(9, 4), steps=2, batch_size=2, validation=x)


def test_numbers_between_the_levels():
    pair = vae(Categorical(3))
    with Refused(ValueError, r"support of its Levels \(3 grey levels from 0 to 1\).* 0\.3", *pair):
        quiet(elbo(*pair), torch.full((9, 4), 0.3), steps=2)


@pytest.mark.parametrize("events", [0, 1])
@pytest.mark.parametrize(
    ("family", "value", "message"),
    [
        (lambda s: dist.LogNormal(0.0, s), -1.0, r"LogNormal \(GreaterThan.*\), such as -1"),
        (lambda s: dist.Gamma(2.0, s), -1.0, r"Gamma \(.*\), such as -1"),
        (lambda s: dist.Poisson(s), 0.5, r"Poisson \(.*\), such as 0.5"),
        (lambda s: dist.Beta(s, s), 2.0, r"Beta \(.*\), such as 2"),
    ],
)
def test_values_outside_the_support(family, value, message, events):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                fn = family(self.log_scale.exp())
                pyro.sample("x", fn.expand([3]).to_event(1) if events else fn, obs=x)

    x = torch.ones(9, 3) if events else torch.ones(9)
    x[4] = value
    model = Model()
    with Refused(ValueError, rf"site 'x': 1 of 9 rows lie outside .* its {message}", model):
        quiet(elbo(model), x, steps=2, batch_size=2)


def test_a_support_that_depends_on_the_row():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_width = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, low: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                pyro.sample("x", dist.Uniform(low, low + self.log_width.exp()), obs=x)

    model, low = Model(), torch.arange(9.0)
    quiet(elbo(model), (low + 1, low), steps=2, batch_size=4)
    with Refused(ValueError, r"site 'x': 4 of 4 rows lie outside .* Uniform", model):
        quiet(elbo(model), (low - 1, low), steps=2, batch_size=4)


def test_a_distribution_that_does_not_tell_its_support():
    class Own(dist.TorchDistribution):
        arg_constraints = {}

        def __init__(self, loc: Tensor) -> None:
            self.loc = loc
            super().__init__(loc.shape, validate_args=False)

        def log_prob(self, value: Tensor) -> Tensor:
            return -(value - self.loc).square()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, size: int | None = None) -> None:
            with data_plate(x, size):
                pyro.sample("x", Own(self.loc.expand(len(x))), obs=x)

    assert quiet(elbo(Model()), torch.ones(9), steps=2).steps == 2


def with_sites(*names: str) -> Callable[..., None]:
    def guide(x: Tensor, size: int | None = None) -> None:
        with data_plate(x, size):
            for name in names:
                pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))

    return guide


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (
            with_sites(),
            r"guide: the model's latent site\(s\) 'z' .* has none.*sample\('z', \.\.\.\)",
        ),
        (None, r"guide: the model's latent site\(s\) 'z' are neither in the guide nor enumerated"),
        (with_sites("u"), r"'z' are neither in the guide nor enumerated; the guide has 'u'"),
        (with_sites("z", "u"), r"guide: its site\(s\) 'u' are not latent in the model, .* 'z'"),
        (with_sites("z", "x"), r"guide: its site\(s\) 'x' are not .*The model observes 'x'"),
    ],
)
def test_a_guide_with_other_sites(guide, message):
    model = FactorAnalysis(4, 2)
    with Refused(ValueError, message, model):
        quiet(elbo(model, guide), torch.ones(9, 4), steps=2)
    with Refused(ValueError, message, model):
        elbo(model, guide).loss(torch.ones(9, 4))


def test_a_minibatch_that_cannot_be_scaled():
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(model)
    with pytest.raises(ValueError, match=r"'loc' are shared by all rows.*data_plate\(x, size\)"):
        quiet(elbo(model, guide), torch.ones(9), steps=2, batch_size=4)
    assert quiet(elbo(model, guide), torch.ones(9), steps=2).steps == 2


def test_an_error_in_a_program_says_what_it_was_called_with():
    class Broken(nn.Module):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            x @ torch.ones(7)

    with pytest.raises(RuntimeError) as caught:
        quiet(elbo(Broken()), torch.ones(9, 4), steps=1)
    assert "called with a batch of (9, 4) torch.float32 on cpu" in caught.value.__notes__[0]


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


def test_rows_of_another_precision_are_told_what_to_do():
    x = torch.ones(9, 6).double()
    with pytest.raises(TypeError, match=r"expected rows of torch.float32, as the model.*Try x\.to"):
        fit(elbo(VAE(6, 2), AmortizedNormal(6, 2)), x, epochs=1)
    layer = nn.Linear(6, 6)

    def model(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(layer(x), 1.0).to_event(1), obs=x)

    with pytest.raises(RuntimeError) as caught:
        fit(elbo(model), x, epochs=1)
    assert any("x.float()" in note for note in caught.value.__notes__)


def forgotten(family):
    """A model whose rows are drawn, and not observed."""

    def model(x=None, size=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with data_plate(x, size):
            return pyro.sample("x", family(rate))

    return model


def hidden_kinds(x=None, size=None):
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    with data_plate(x, size):
        kind = pyro.sample("kind", dist.Bernoulli(share))
        return pyro.sample("x", dist.Normal(kind, 1.0), obs=x)


def without_an_event(x=None, size=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            forgotten(lambda rate: dist.Normal(rate, 1.0)),
            r"observes nothing.*It draws 'rate', 'x'.*obs=x\) where one of these is data",
        ),
        (
            forgotten(dist.Poisson),
            r"guide: Auto\w+ draws continuous latents, and the site 'x' of the model is discrete "
            r"and not observed.*obs=\.\.\.\) where it is data",
        ),
        (hidden_kinds, r"site 'kind' of the model is discrete.*'enumerate': 'parallel'"),
        (without_an_event, r"site 'w' of the model: dimension -1.*\.to_event\(1\)"),
    ],
)
def test_what_a_model_lacks_is_said_before_a_fit(model, message, kind):
    """Each would be fitted in silence, or end in an error of Pyro's that leads elsewhere."""
    x = torch.ones(9)
    with pytest.raises(ValueError, match=message):
        quiet(elbo(model, kind(model)), x, steps=2)
    found = str(check(model, kind(model), x)).replace("\n", " ")
    assert "1 thing is wrong" in found
    assert "fails with" not in found


def test_a_factor_is_an_observation():
    def model(x=None, size=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("banana", -((z - x.mean()) ** 2))

    quiet(elbo(model, AutoNormal(model)), torch.ones(9), steps=2)


def test_of_many_sites_a_few_are_named():
    with pytest.raises(ValueError, match=r"'z_0', .* and 95 others are neither in the guide"):
        log_evidence(Diffusion(3), None, torch.rand(10, 3))
