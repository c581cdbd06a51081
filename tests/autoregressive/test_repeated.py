"""Draws by compiled steps: the rows of the walk, feature by feature with the same numbers."""

import pytest
import torch
from torch import nn

from ppl_models.autoregressive.made import MADE
from ppl_models.autoregressive.model import AutoregressiveModel
from ppl_models.autoregressive.pixelcnn import PixelCNN
from ppl_models.autoregressive.pixelrnn import PixelRNN
from ppl_models.infer.compiled.code import repeat
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture, Normal, Poisson
from ppl_models.nn import GatedPixelCNN, MaskedMLP
from tests.support.causality import shaken
from tests.support.interpreted import Interpreted

ROWS = 7
LIKELIHOODS = [Bernoulli(), Categorical(3), LogisticMixture(5, 2), Normal(), Poisson()]


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(repeat, "Native", Interpreted)
    monkeypatch.setattr(Interpreted, "made", 0)
    return Interpreted


class Chain(nn.Module):
    """Each feature depends on the one before; there is no walk."""

    def __init__(self, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        before = nn.functional.pad(x[:, :-1], (1, 0))  # (B, D)
        return self.weight * before.unsqueeze(-1)


MODELS = {
    "MADE": lambda law: MADE(6, law, hidden=(20, 15)),
    "MADE, few units": lambda law: MADE(9, law, hidden=(4, 3)),
    "MADE, no hidden units": lambda law: MADE(4, law, hidden=()),
    "PixelCNN": lambda law: PixelCNN(3, 4, law, num_channels=6, num_layers=2, dropout=0.5),
    "PixelCNN, far": lambda law: PixelCNN(3, 4, law, num_channels=6, num_layers=2, reach=2),
    "PixelCNN, a row": lambda law: PixelCNN(1, 4, law, num_channels=4, num_layers=1),
    "PixelRNN, by rows": lambda law: PixelRNN(3, 4, law, order="row", num_channels=5),
    "PixelRNN, diagonal": lambda law: PixelRNN(3, 4, law, num_channels=5, dropout=0.5),
    "PixelRNN, a column": lambda law: PixelRNN(4, 1, law, num_channels=5),
    "passes": lambda law: AutoregressiveModel(Chain(law.num_outputs), law, 5),
}


def both(model, rows=ROWS, seed=1):
    """Rows by a walk, and by compiled steps; random numbers end alike."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(seed)
        found.append(model.evidence().sample((rows,), compile=compiled))
        found.append(torch.get_rng_state())
    assert torch.equal(found[1], found[3])
    return found[0], found[2]


def assert_same(model, **options):
    """Draws are the same, unless a uniform number lies between two that differ by rounding."""
    theirs, ours = both(model, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda law: type(law).__name__)
def test_rows_are_those_of_the_walk(name, likelihood, interpreted):
    model = shaken(MODELS[name](likelihood))
    with torch.no_grad():
        for p in model.network.parameters():
            p.mul_(0.3 if isinstance(likelihood, Poisson) else 1.0)  # counts would explode
    assert_same(model)
    assert interpreted.made > 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("MADE", torch.float32), ("PixelCNN", torch.float32), ("PixelRNN, diagonal", torch.float64)],
)
def test_compiled_rows_are_those_of_the_walk(name, dtype):
    model = shaken(MODELS[name](Bernoulli())).to(dtype)
    assert_same(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1.0)  # weights are live
    assert_same(model)
    assert not repeat._refused[model.network]


def test_values_of_a_likelihood_that_change_are_seen(interpreted):
    model = shaken(MODELS["MADE"](Normal()))
    assert_same(model)
    model.likelihood.min_scale = 1.0
    assert_same(model)
    with torch.no_grad():
        model.likelihood.log_scale.add_(1.0)  # a parameter, which is live
    assert_same(model)
    assert interpreted.made == 2


def test_other_numbers_of_rows(interpreted):
    model = shaken(MODELS["PixelCNN"](Bernoulli()))
    for rows in (1, 2, 5):
        assert_same(model, rows=rows)
    assert interpreted.made == 3
    assert_same(model, rows=2, seed=2)
    assert interpreted.made == 3
    assert model.evidence().sample((0,), compile=True).shape == (0, 12)
    assert model.evidence().sample((2, 3), compile=True).shape == (2, 3, 12)
    assert model.evidence().expand((4,)).sample(compile=True).shape == (4, 12)


def test_dropout_is_off_and_modes_are_as_before(interpreted):
    model = shaken(MODELS["PixelCNN"](Bernoulli())).train()
    assert_same(model)
    assert all(module.training for module in model.modules())


class Doubled(MaskedMLP):
    """Another network under the same walk."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3)])
def test_outputs_that_are_not_finite_are_the_error_of_the_walk(likelihood, interpreted):
    model = shaken(MODELS["PixelCNN"](likelihood))
    with torch.no_grad():
        model.network.out_bias[:, 1, 3] = torch.nan
    with pytest.raises((RuntimeError, ValueError)):
        model.evidence().sample((ROWS,))
    with (
        pytest.warns(UserWarning, match="draws are not compiled"),
        pytest.raises((RuntimeError, ValueError)),
    ):
        model.evidence().sample((ROWS,), compile=True)


def test_a_walk_that_is_not_known_goes_as_it_is(interpreted):
    model = AutoregressiveModel(Doubled(5, 1), Bernoulli(), 5)
    with pytest.warns(UserWarning, match="Doubled: draws are not compiled.*a walk of its own"):
        theirs, ours = both(model)
    assert torch.equal(theirs, ours)


def test_steps_that_are_not_those_of_the_network_are_seen(interpreted):
    """What is drawn is compared with a pass, which a hook changes here, but for the first pixel."""
    model = shaken(MODELS["PixelCNN"](Bernoulli()))
    factor = torch.ones(12, 1, dtype=torch.float64)
    factor[7:] = 1.1
    model.network.register_forward_hook(lambda module, inputs, outputs: factor * outputs)
    with pytest.warns(UserWarning, match="not those of a pass over what was drawn"):
        theirs, ours = both(model)
    assert torch.equal(theirs, ours)


def test_without_a_compiler_rows_are_walked(monkeypatch):
    def refuses(*_):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(repeat, "Native", refuses)
    model = shaken(MODELS["MADE"](Bernoulli()))
    with pytest.warns(UserWarning, match="MaskedMLP: draws are not compiled, but go step by step"):
        assert_same(model)
    assert_same(model)


def test_networks_of_images_are_known_by_their_own_class():
    from ppl_models.autoregressive.repeated import STAGES

    assert GatedPixelCNN in STAGES
    assert Doubled not in STAGES
