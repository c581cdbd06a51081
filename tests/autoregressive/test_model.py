"""Autoregressive models: causal order by gradient, densities by enumeration, draws by feature."""

import re

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_models import elbo, fit, from_pyro_svi, load, log_evidence, save
from ppl_models.autoregressive.made import MADE
from ppl_models.autoregressive.model import Autoregressive, AutoregressiveModel
from ppl_models.autoregressive.pixelcnn import PixelCNN
from ppl_models.autoregressive.pixelrnn import PixelRNN
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture, Normal
from ppl_models.nn import GatedPixelCNN, MaskedMLP, RecurrentPixels
from tests.support.causality import dependence, shaken
from tests.support.oracles import same, state


def made(height, width, likelihood=Bernoulli(), **options):
    return MADE(height * width, likelihood, **({"hidden": (20, 15)} | options))


def cnn(height, width, likelihood=Bernoulli(), **options):
    return PixelCNN(height, width, likelihood, **({"num_channels": 6, "num_layers": 2} | options))


def row(height, width, likelihood=Bernoulli(), **options):
    options = {"num_channels": 5, "num_layers": 2} | options
    return PixelRNN(height, width, likelihood, order="row", **options)


def diagonal(height, width, likelihood=Bernoulli(), **options):
    options = {"num_channels": 5, "num_layers": 2} | options
    return PixelRNN(height, width, likelihood, order="diagonal", **options)


MODELS = [made, cnn, row, diagonal]
every_model = pytest.mark.parametrize("make", MODELS)


def every_row(num_features, levels=2):
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    return torch.cartesian_prod(*[grid] * num_features).reshape(-1, num_features)


before = torch.ones(20, 20).tril(-1).bool()  # output d sees the inputs before d


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3), LogisticMixture(5, 2)])
@every_model
def test_no_output_depends_on_its_feature_or_a_later_one(make, likelihood):
    network = shaken(make(4, 5, likelihood)).network
    assert not (dependence(network, 20) & ~before).any()


NETWORKS = {
    "one layer": lambda: MaskedMLP(20, 2, hidden=(40,)),
    "two layers": lambda: MaskedMLP(20, 1, hidden=(60, 40)),
    "narrow kernels": lambda: GatedPixelCNN(4, 5, 1, num_channels=6, num_layers=3),
    "wide kernels": lambda: GatedPixelCNN(4, 5, 2, num_channels=6, num_layers=1, reach=2),
    "one BiLSTM": lambda: RecurrentPixels(4, 5, 1, num_channels=5, num_layers=1),
    "two BiLSTMs": lambda: RecurrentPixels(4, 5, 2, num_channels=5, num_layers=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_output_depends_on_all_features_before(name):
    """No blind spot: gradient reaches every earlier pixel, in one of three random networks."""
    found = [dependence(shaken(NETWORKS[name]()), 20) for _ in range(3)]
    assert torch.equal(torch.stack(found).any(0), before)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 3), (1, 4), (5, 1), (1, 1)])
@every_model
def test_binary_images_sum_to_one(make, height, width):
    density = shaken(make(height, width)).evidence()
    total = density.log_prob(every_row(height * width)).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("likelihood", [Categorical(3), LogisticMixture(3, 2)])
@every_model
def test_grey_images_sum_to_one(make, likelihood):
    density = shaken(make(2, 3, likelihood)).evidence()
    total = density.log_prob(every_row(6, levels=3)).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-12)


@every_model
def test_byte_images_sum_to_one(make):
    density = shaken(make(1, 2, LogisticMixture(256, 3))).evidence()
    total = density.log_prob(every_row(2, levels=256)).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Categorical(3), LogisticMixture(3, 2), Normal(own_scale=True)]
)
@every_model
def test_one_pass_is_the_product_of_conditionals(make, likelihood):
    """Each computed by itself, on rows whose later features are others."""
    model = shaken(make(2, 3, likelihood))
    x = model(size=4)
    total = torch.zeros(4, dtype=torch.float64)
    for d in range(6):
        other = x.clone()
        other[:, d:] = 0.5
        outputs = model.network(other)[:, d]  # (B, P)
        total += likelihood(outputs).log_prob(x[:, d : d + 1])
    torch.testing.assert_close(model.evidence().log_prob(x), total)


class Plain(nn.Module):
    """A causal network without a walk."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (made, {}),
        (made, {"hidden": ()}),
        (made, {"hidden": (4,)}),  # narrower than the row
        (made, {"hidden": (25, 9, 13), "dropout": 0.4}),
        (cnn, {}),
        (cnn, {"reach": 2, "num_layers": 1}),
        (cnn, {"reach": 5, "num_layers": 3, "dropout": 0.4}),
        (row, {}),
        (row, {"num_layers": 3, "dropout": 0.4}),
        (diagonal, {}),
        (diagonal, {"num_layers": 3, "dropout": 0.4}),
    ],
)
@pytest.mark.parametrize("likelihood", [Categorical(3), Normal()])
def test_draws_are_those_of_a_pass_for_each_feature(make, options, likelihood):
    """What is kept between features changes nothing but the time, in training mode too."""
    model = shaken(make(3, 4, likelihood, **options))
    slow = Autoregressive(Plain(model.network), likelihood, 12)
    pyro.set_rng_seed(1)
    expected = slow.sample((7,))
    for training in (False, True):
        model.train(training)
        pyro.set_rng_seed(1)
        torch.testing.assert_close(model(size=7), expected)
        assert all(m.training is training for m in model.modules())


@every_model
def test_draws_have_the_enumerated_frequencies(make):
    model = shaken(make(2, 2))
    rows = every_row(4)
    probability = model.evidence().log_prob(rows).exp()  # (16,)
    x = model(size=50_000)
    index = (x @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=x.dtype)).long()
    count = torch.bincount(index, minlength=16)
    expected = 50_000 * probability
    chi_squared = ((count - expected) ** 2 / expected).sum()
    assert chi_squared < 37.7  # the 0.1 % quantile for 15 degrees of freedom
    assert probability.max() < 0.9  # the model is no point


@every_model
def test_a_draw_takes_few_passes(make):
    """The arithmetic of a draw is that of one pass (a draw by passes takes one a feature)."""
    model = make(6, 6).eval()

    def multiplications(call):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    one = multiplications(lambda: model.network(torch.zeros(10, 36)))
    draw = multiplications(lambda: model(size=10))
    assert draw <= 1.01 * one


@pytest.mark.parametrize("rows", [1, 8, 40])
@every_model
def test_the_loss_is_the_negative_log_likelihood_of_any_minibatch(make, rows):
    model = shaken(make(2, 3))
    x = model(size=rows)
    loss = elbo(model).loss(x, size=40)
    expected = -model.evidence().log_prob(x).mean()
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)


@pytest.mark.slow
@every_model
def test_a_fit_learns_the_density_of_its_rows(make):
    """Pixels that copy their left neighbour: the entropy of a row is known."""
    pyro.set_rng_seed(0)
    first = torch.randint(2, (200, 2, 1)).float()
    x = first.expand(200, 2, 3).reshape(200, 6)  # two bits a row
    model = make(2, 3, **({} if make is made else {"num_layers": 1}))
    fit(elbo(model), x, epochs=60, batch_size=100, lr=3e-2, seed=0, progress=False)
    evidence = log_evidence(model, None, x)
    assert evidence.kind == "exact"
    assert evidence.mean == pytest.approx(-2 * torch.tensor(2.0).log().item(), abs=0.05)
    assert evidence.bits_per_dim == pytest.approx(2 / 6, abs=0.012)
    assert re.fullmatch(r".* nats per row, exact, 0\.3\d+ bits/dim", str(evidence))
    draws = model(size=200).view(200, 2, 3)
    assert (draws == draws[..., :1]).all(-1).float().mean() > 0.97


@every_model
def test_weights_are_saved_and_loaded(make, tmp_path):
    model, other = make(2, 3), make(2, 3)
    x = torch.randint(2, (5, 6)).float()
    save(tmp_path / "weights.safetensors", model=model)
    load(tmp_path / "weights.safetensors", model=other)
    assert same(state(model), state(other))
    assert torch.equal(model.evidence().log_prob(x), other.evidence().log_prob(x))


@every_model
def test_a_program_like_any_other(make):
    model = make(2, 3, Categorical(3)).eval()
    x = model(size=4)
    site = poutine.trace(model).get_trace(x, size=8).nodes["x"]
    assert site["is_observed"]
    assert site["scale"] == 2.0
    assert site["fn"].batch_shape == (4,)
    assert site["fn"].event_shape == (6,)
    assert poutine.uncondition(model)(x).shape == (4, 6)
    groups = from_pyro_svi(model, None, x, num_samples=3)
    assert groups["posterior_predictive"]["x"].shape == (1, 3, 4, 6)


def test_shapes_of_the_distribution():
    rows = made(2, 3).eval().evidence()
    assert rows.sample().shape == (6,)
    assert rows.sample((2, 5)).shape == (2, 5, 6)
    assert rows.expand((3,)).sample((2,)).shape == (2, 3, 6)
    x = rows.sample((2, 5))
    assert rows.log_prob(x).shape == (2, 5)
    assert rows.expand((4,)).log_prob(x[0, 0]).shape == (4,)
    flat = rows.log_prob(x.view(10, 6)).view(2, 5)
    torch.testing.assert_close(rows.log_prob(x), flat)
    torch.testing.assert_close(rows.log_conditionals(x).sum(-1), flat)


def test_ones_own_network():
    class Chain(nn.Module):
        """Each feature depends on the one before."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x):
            before = nn.functional.pad(x[:, :-1], (1, 0))
            return (self.weight[0] + self.weight[1] * before).unsqueeze(-1)

    model = AutoregressiveModel(Chain(), Bernoulli(), 4)
    assert log_evidence(model, None, model(size=5)).kind == "exact"
    total = model.double().evidence().log_prob(every_row(4)).logsumexp(0)
    assert total.item() == pytest.approx(0.0, abs=1e-12)


def test_densities_have_the_precision_of_the_rows():
    class Half(nn.Module):
        """Gives its logits in half precision, as under autocast."""

        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            return self.logit.bfloat16().expand(*x.shape, 1)

    x = torch.ones(2, 400)
    found = log_evidence(AutoregressiveModel(Half(), Bernoulli(), 400), None, x)
    logit = torch.tensor(0.3).bfloat16().double()
    expected = 400 * nn.functional.logsigmoid(logit)
    torch.testing.assert_close(found.value, expected.expand(2), atol=1e-3, rtol=0)


@every_model
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(5, 7), ValueError, r"6 features.*got \(5, 7\)"),
        (torch.zeros(5, 2, 3), ValueError, r"x.flatten\(1\)"),
        (torch.zeros(5, 6, dtype=torch.uint8), TypeError, "floating-point"),
        (torch.full((5, 6), 0.5), ValueError, "5 of 5 rows lie outside the support"),
        (torch.full((5, 6), float("nan")), ValueError, "NaN"),
    ],
)
def test_rows_that_do_not_fit(make, x, error, message):
    model = make(2, 3)
    kept = state(model)
    with pytest.raises(error, match=message):
        fit(elbo(model), x, epochs=1, progress=False)
    assert same(kept, state(model))


@every_model
@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (
            Bernoulli(),
            r"1 of 5 rows .* \(Boolean\(\)\), such as 0\.3\. Grey levels .* binarize\(x\)",
        ),
        (Categorical(3), r"1 of 5 rows .* \(3 grey levels from 0 to 1\), such as 0\.3\. Try other"),
        (LogisticMixture(17, 2), r"1 of 5 rows .* \(17 grey levels from 0 to 1\), such as 0\.3"),
    ],
)
def test_pixels_outside_the_levels_are_named(make, likelihood, message):
    """Not those beside them in the row, which are legal."""
    x = torch.ones(5, 6)
    x[3, 4] = 0.3
    model = make(2, 3, likelihood)
    with pytest.raises(ValueError, match=message):
        fit(elbo(model), x, epochs=1, progress=False)
    with pytest.raises(ValueError, match="support"):
        log_evidence(model, None, x)


@every_model
@pytest.mark.parametrize("likelihood", ["bernoulli", Bernoulli, LogisticMixture, None])
def test_what_is_no_likelihood(make, likelihood):
    with pytest.raises(TypeError, match=r"LogisticMixture\(levels, num_components\)"):
        make(2, 3, likelihood)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MADE(0), "num_features: .* got 0"),
        (lambda: MADE(4.0), r"num_features: .* got 4\.0"),
        (lambda: MADE(4, hidden=(8, 0)), "hidden: .* got 0"),
        (lambda: MADE(4, dropout=1.0), r"dropout=1\.0"),
        (lambda: PixelCNN(0, 4), "height: .* got 0"),
        (lambda: PixelCNN(4, True), "width: .* got True"),
        (lambda: PixelCNN(4, 4, reach=0), "reach: .* got 0"),
        (lambda: PixelCNN(4, 4, num_layers=-1), "num_layers: .* got -1"),
        (lambda: PixelCNN(4, 4, num_channels=0), "num_channels: .* got 0"),
        (lambda: PixelCNN(4, 4, dropout=-0.1), r"dropout=-0\.1"),
        (lambda: PixelRNN(4, 0), "width: .* got 0"),
        (lambda: PixelRNN(4, 4, num_layers=0), "num_layers: .* got 0"),
        (lambda: PixelRNN(4, 4, order="columns"), "'row' or 'diagonal', got 'columns'"),
        (lambda: PixelRNN(4, 4, dropout=2.0), r"dropout=2\.0"),
    ],
)
def test_sizes_that_make_no_model(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_network_with_too_few_outputs():
    model = AutoregressiveModel(MaskedMLP(4, 2), Categorical(3), 4)
    with pytest.raises(ValueError, match=r"\(5, 4, 3\) from the network.*got \(5, 4, 2\)"):
        model.evidence().log_prob(torch.zeros(5, 4))
