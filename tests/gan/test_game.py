"""The game of a GAN: values in closed form, gradients of each player, and what is refused."""

import copy
import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn

from ppl_models import VAE, elbo, log_evidence
from ppl_models.gan.game import LOSSES, adversarial, gradient_penalty, in_packs
from ppl_models.gan.latents import NormalOneHotLatents
from ppl_models.gan.model import GAN
from ppl_models.infer.training.batches import Batch
from ppl_models.infer.training.descent import Descent, descend
from ppl_models.priors import StandardNormal
from tests.support.oracles import binary, same, state
from tests.support.runs import quiet


class Fixed(nn.Module):
    """A generator that gives the same rows at every call, whatever the latents."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, z: Tensor) -> Tensor:
        return self.rows[: len(z)]


class Score(nn.Module):
    """A discriminator given as a function."""

    def __init__(self, score) -> None:
        super().__init__()
        self.score, self.shift = score, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).unsqueeze(-1) + self.shift


def game(drawn: Tensor, score, packing: int = 1) -> GAN:
    return GAN(drawn.shape[1], 1, Fixed(drawn), Score(score), packing=packing).double()


def losses(gan: GAN, x: Tensor, loss: str, **options) -> dict[str, float]:
    players = adversarial(gan, loss, **options)
    found = {player.name: player.loss(x).item() for player in players}
    return found | {"value": players[0].reports["value"].item()}


# --- values ---------------------------------------------------------------------------------

# Three points, with whole numbers of rows at each: the distributions are exact.
REAL, DRAWN = torch.tensor([6, 3, 1]), torch.tensor([2, 3, 5])


def rows(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(3.0, dtype=torch.float64), counts)[:, None]


def divergence(p: Tensor, q: Tensor) -> float:
    """The Jensen-Shannon divergence, in nats."""
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()).item() / 2


def best_score(x: Tensor) -> Tensor:
    """log p_data - log p_G, the logit of the best discriminator."""
    return (REAL / DRAWN).double().log()[x[:, 0].long()]


def test_the_best_discriminator_gives_the_jensen_shannon_divergence():
    expected = 2 * divergence(REAL / 10, DRAWN / 10) - math.log(4)
    for loss in ("minmax", "non-saturating"):
        found = losses(game(rows(DRAWN), best_score), rows(REAL), loss)
        assert found["value"] == pytest.approx(expected, abs=1e-6)
        assert found["discriminator"] == -found["value"]


def test_no_discriminator_does_better():
    gan = game(rows(DRAWN), best_score)
    critic, _ = adversarial(gan, "minmax")
    critic.loss(rows(REAL)).backward()
    assert gan.discriminator.shift.grad.abs() < 1e-6
    best = losses(gan, rows(REAL), "minmax")["value"]
    for shift in (-0.5, 0.5):
        worse = game(rows(DRAWN), lambda x, shift=shift: best_score(x) + shift * x[:, 0])
        assert losses(worse, rows(REAL), "minmax")["value"] < best


def test_gaussians_by_integration():
    """Data N(0, 1), drawn N(1, 1), the score 1/2 - x: the value is an integral."""
    p, q = dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0)
    level = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    x, drawn = p.icdf(level)[:, None], q.icdf(level)[:, None]
    found = losses(game(drawn, lambda x: 0.5 - x[:, 0]), x, "minmax")["value"]
    line = torch.linspace(-12, 13, 200_001, dtype=torch.float64)
    a, b = p.log_prob(line), q.log_prob(line)
    middle = torch.logaddexp(a, b) - math.log(2)
    integrand = a.exp() * (a - middle) + b.exp() * (b - middle)
    assert found == pytest.approx(torch.trapezoid(integrand, line).item() - math.log(4), abs=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_hand(loss):
    scores, drawn = torch.tensor([2.0, -0.5, 0.25]), torch.tensor([-3.0, 0.5, 1.5])
    gan = game(drawn.double()[:, None], lambda x: x[:, 0])
    found = losses(gan, scores.double()[:, None], loss, gradient_penalty=0.0)
    sigmoid = lambda s: 1 / (1 + math.exp(-s))  # noqa: E731
    by_hand = {
        "minmax": (
            lambda s: math.log(sigmoid(s)),
            lambda s: math.log(1 - sigmoid(s)),
            lambda s: math.log(1 - sigmoid(s)),
        ),
        "non-saturating": (
            lambda s: math.log(sigmoid(s)),
            lambda s: math.log(1 - sigmoid(s)),
            lambda s: -math.log(sigmoid(s)),
        ),
        "hinge": (lambda s: -max(0, 1 - s), lambda s: -max(0, 1 + s), lambda s: -s),
        "wasserstein": (lambda s: s, lambda s: -s, lambda s: -s),
    }
    real, fake, generator = by_hand[loss]
    mean = lambda f, values: sum(map(f, values.tolist())) / 3  # noqa: E731
    value = mean(real, scores) + mean(fake, drawn)
    assert found["value"] == pytest.approx(value)
    assert found["discriminator"] == pytest.approx(-value)
    assert found["generator"] == pytest.approx(mean(generator, drawn))


def test_the_wasserstein_value_of_point_masses_is_their_distance():
    """The critic -x, of slope 1, gives the distance of two sets that lie apart on a line."""
    gan = game(torch.full((4, 1), 3.0), lambda x: -x[:, 0])
    found = losses(gan, torch.zeros(4, 1, dtype=torch.float64), "wasserstein")
    assert found["value"] == 3.0
    assert found["discriminator"] == pytest.approx(-3.0)  # the penalty is nought at slope 1


@pytest.mark.parametrize("packing", [1, 2])
def test_the_penalty_of_a_linear_critic(packing):
    weight = torch.randn(3 * packing, dtype=torch.float64)
    gan = game(torch.randn(8, 3), lambda x: x @ weight, packing)
    x = torch.randn(8, 3, dtype=torch.float64)
    expected = (weight.norm() - 1) ** 2
    torch.testing.assert_close(gradient_penalty(gan, x, gan(size=8)), expected)
    plain = losses(gan, x, "hinge", gradient_penalty=0.0)
    penalised = losses(gan, x, "hinge", gradient_penalty=7.0)
    difference = penalised["discriminator"] - plain["discriminator"]
    assert difference == pytest.approx(7 * expected.item())
    assert penalised["value"] == plain["value"]


def test_the_penalty_is_taken_between_the_rows():
    """Of s = x^2 / 2 the slope is x: between 1 and 3 uniformly, E (x - 1)^2 = 4 / 3."""
    gan = game(torch.full((100_000, 1), 3.0), lambda x: x[:, 0] ** 2 / 2)
    x = torch.ones(100_000, 1, dtype=torch.float64)
    found = gradient_penalty(gan, x, gan(size=len(x)))
    assert found.item() == pytest.approx(4 / 3, abs=0.02)
    assert found.requires_grad


# --- players --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_each_player_moves_its_own_parameters_alone(loss):
    gan = GAN(3, 2)
    for player, other in zip(adversarial(gan, loss), ("generator", "discriminator"), strict=True):
        gan.zero_grad(set_to_none=True)
        player.loss(torch.randn(8, 3)).backward()
        gradients = [p.grad for p in getattr(gan, player.name).parameters()]
        assert sum(g.abs().sum() > 0 for g in gradients) >= 5  # a shift of all scores may cancel
        assert all(p.grad is None for p in getattr(gan, other).parameters())
        assert all(p.requires_grad for p in gan.parameters())
        named = {id(p) for _, p in player.named_parameters()}
        assert named == {id(p) for p in getattr(gan, player.name).parameters()}


def test_the_gradient_of_the_generator_is_that_of_the_value():
    """In the min-max game, by finite differences."""
    torch.manual_seed(1)
    gan = game(torch.randn(4, 2), lambda x: x.square().sum(1) - x[:, 0])
    critic, generator = adversarial(gan, "minmax")
    x = torch.randn(4, 2, dtype=torch.float64)
    generator.loss(x).backward()
    gradient, step = gan.generator.rows.grad[2, 1].item(), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            gan.generator.rows[2, 1] += sign * step
        critic.loss(x)
        values.append(critic.reports["value"].item())
        with torch.no_grad():
            gan.generator.rows[2, 1] -= sign * step
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_packs():
    seen = []

    def score(x: Tensor) -> Tensor:
        seen.append(x)
        return x.sum(1)

    gan = game(torch.arange(14.0).reshape(7, 2), score, packing=3)
    x = torch.arange(14.0, dtype=torch.float64).reshape(7, 2)
    torch.testing.assert_close(gan.discriminate(x[:6]), torch.tensor([15.0, 51.0]).double())
    assert torch.equal(seen[0], x[:6].reshape(2, 6))  # three rows beside one another
    for player in adversarial(gan):
        seen.clear()
        player.loss(x)  # 7 rows: two packs of three, one row left over
        assert [part.shape for part in seen] == [(2, 6)] * (2 if player.name[0] == "d" else 1)
    assert torch.equal(in_packs(x[:2], 3), x[[0, 1, 0]])
    with pytest.raises(ValueError, match=r"a multiple of packing=3 rows, got 7"):
        gan.discriminate(x)
    run = quiet(adversarial(GAN(2, 2, packing=3)), torch.randn(10, 2), epochs=1, batch_size=4)
    assert run.steps == 3  # the last batch has two rows


def test_the_critic_takes_more_steps_on_other_rows():
    gan = GAN(1, 1)
    players = adversarial(gan, "wasserstein", critic_steps=3)
    batches, plain = [], players[0].loss

    def noted(*batch: Tensor, size: int | None = None) -> Tensor:
        batches.append(batch[0].flatten().tolist())
        return plain(*batch, size=size)

    players[0].loss = noted
    x = torch.arange(6.0)[:, None]
    batch = Batch((x,), torch.arange(6), 6)
    descent = Descent(players, batch)
    batches.clear()
    found = descent.step(batch)
    assert batches == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert set(found) == {"discriminator", "generator", "value"}
    moved = {id(p): s["step"].item() for o in descent.optimizers for p, s in o.state.items()}
    assert {moved[id(p)] for p in gan.discriminator.parameters()} == {3.0}
    assert {moved[id(p)] for p in gan.generator.parameters()} == {1.0}
    descent.step(Batch((x[:2],), torch.arange(2), 6))  # as far as there are rows


# --- fit ------------------------------------------------------------------------------------

NOISE = (0.5, 0.1, 6)


def trained(steps: int, **options) -> tuple[dict[str, Tensor], dict]:
    torch.manual_seed(7)
    gan = GAN(2, 34, latents=NormalOneHotLatents(2, (16, 16)), packing=2)
    gan.discriminator[0] = nn.utils.parametrizations.spectral_norm(gan.discriminator[0])
    objective = adversarial(gan, "hinge", 1.0, critic_steps=2, instance_noise=NOISE)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    run = quiet(objective, x, steps=steps, batch_size=12, seed=3, **options)
    return state(gan), run.history


def test_a_run_is_repeatable_and_resumes_bit_for_bit(tmp_path):
    whole, history = trained(11)
    again, _ = trained(11)
    assert same(whole, again)
    assert all(len(values) == 3 for values in history.values())
    path = tmp_path / "gan.safetensors"
    part, _ = trained(5, checkpoint=path)
    assert not same(part, whole)
    resumed, resumed_history = trained(11, checkpoint=path, resume=True)
    assert same(whole, resumed)
    for name, values in history.items():  # of the cut epoch both parts are recorded
        assert resumed_history[name][-1] == values[-1]


def test_instance_noise_falls_and_ends():
    gan = GAN(1, 1)
    critic, generator = adversarial(gan, instance_noise=(0.5, 0.1, 2))
    scales = []
    for _ in range(4):
        scales.append(critic.noise.scale().item())
        generator.loss(torch.zeros(3, 1))  # a look does not count
        generator.stepped()
    assert scales == pytest.approx([0.5, 0.05**0.5, 0.0, 0.0])
    x = torch.zeros(100_000, 1)
    fresh = adversarial(gan, instance_noise=(0.5, 0.1, 2))[0].noise
    assert fresh(x).std().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(critic.noise(x), x)


@pytest.mark.slow
def test_a_gan_learns_a_normal():
    """Pairs show how far rows lie apart, which single rows do not.

    Alone, the deviation ends anywhere from 0.3 to 0.8, by the last bits of a sum; in pairs, with
    400 rows a step, it is 0.5 +- 0.045 and the mean 3 +- 0.07 (standard deviations over seeds).
    """
    torch.manual_seed(0)
    gan = GAN(1, 1, packing=2)
    x = 3 + 0.5 * torch.randn(2000, 1)
    adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR
    options = {"steps": 300, "batch_size": 400, "optimizer": adam, "seed": 0, "schedule": decay}
    run = quiet(adversarial(gan, instance_noise=(1.0, 0.1, 300)), x, lr=4e-3, **options)
    draws = gan(size=4000).detach()
    assert draws.mean().item() == pytest.approx(3, abs=0.3)
    assert draws.std().item() == pytest.approx(0.5, abs=0.25)
    assert run.history["value"][-1] == pytest.approx(-math.log(4), abs=0.1)
    assert run.history["discriminator"] == [-value for value in run.history["value"]]


@pytest.mark.parametrize("loss", ["non-saturating", "hinge"])
def test_a_discriminator_that_wins_outright_is_reported_once(loss):
    gan = game(torch.zeros(20, 1), lambda x: 0 * x[:, 0])
    gan.discriminator.score = nn.Linear(1, 1).double()
    x = torch.full((20, 1), 10.0, dtype=torch.float64)
    gan.generator.rows.requires_grad_(True)
    slow = lambda parameters, lr: torch.optim.SGD(  # noqa: E731
        parameters, lr=1e-6 if len(parameters) == 1 else lr
    )
    gan.discriminator.forward = lambda x: gan.discriminator.score(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = quiet(adversarial(gan, loss), x, epochs=300, lr=0.1, optimizer=slow, seed=0)
    (text,) = [str(w.message) for w in caught if "wins outright" in str(w.message)]
    assert "0 is the largest there is" in text
    assert "Try spectral norm" in text
    assert run.history["value"][-1] > -0.05


def test_the_warning_waits_for_ten_epochs_that_agree():
    critic, _ = adversarial(GAN(1, 1))
    bad, good = -0.01, -1.386
    assert critic.caveat({"value": [good] * 30}) is None
    assert critic.caveat({"value": [good] * 30 + [bad] * 9}) is None
    assert "last 10 epoch(s)" in critic.caveat({"value": [good] * 30 + [bad] * 10})
    assert critic.caveat({"value": [bad] * 10 + [good] * 10}) is None
    unbounded, _ = adversarial(GAN(1, 1), "wasserstein")
    assert unbounded.caveat({"value": [0.0] * 10}) is None


@pytest.mark.parametrize(
    ("player", "where", "match"),
    [
        ("generator", "weight", r"generator.*not finite"),
        ("discriminator", "weight", r"discriminator.*not finite"),
        ("generator", "data", "the rows that the generator draws are not finite"),
        ("discriminator", "data", r"scores that the discriminator gives to data are not finite"),
    ],
)
def test_nan_names_the_player(player, where, match, tmp_path):
    """In the parameters of a player, and in what it gives: after a step that was good."""
    gan = GAN(2, 2)
    part = getattr(gan, player)
    path = tmp_path / "gan.safetensors"
    steps = 0

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal steps
            steps += torch.is_grad_enabled()
            return part_forward(x) * (math.nan if steps > 4 else 1.0)

    if where == "weight":
        optimizers = []

        def optimizer(parameters, lr):
            optimizers.append(torch.optim.SGD(parameters, lr=lr))
            return optimizers[-1]

        objective = adversarial(gan)
        x = torch.randn(4, 2)
        batch = Batch((x,), torch.arange(4), 4)
        descent = Descent(objective, batch, optimizer=optimizer)
        descent.step(batch)
        with torch.no_grad():
            next(part.parameters())[0] = math.nan
        with pytest.raises(FloatingPointError, match=match):
            descent.step(batch)
        return
    part_forward = copy.deepcopy(part)
    setattr(gan, player, nn.Sequential(part, Breaks()) if False else Breaks())
    getattr(gan, player).inner = part_forward
    with pytest.raises(FloatingPointError, match=match):
        quiet(adversarial(gan), torch.randn(4, 2), steps=20, checkpoint=path)


# --- the program ----------------------------------------------------------------------------


def test_the_program_samples():
    gan = GAN(3, 2)
    draws = Predictive(gan, num_samples=4)(size=5)
    assert draws["x"].shape == (4, 5, 3)
    assert draws["z"].shape == (4, 5, 2)
    trace = pyro.poutine.trace(gan).get_trace(size=5)
    torch.testing.assert_close(trace.nodes["x"]["value"], gan.generator(trace.nodes["z"]["value"]))
    assert trace.nodes["z"]["cond_indep_stack"][0].name == "data"


@pytest.mark.parametrize("method", ["auto", "importance"])
def test_there_is_no_evidence_and_the_error_says_why(method):
    with pytest.raises(ValueError, match=r"no likelihood.*Try gan\(size=10\)"):
        log_evidence(GAN(3, 2), None, torch.randn(4, 3), method=method)
    with pytest.raises(ValueError, match="no likelihood"):
        GAN(3, 2)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="no likelihood"):
        quiet(elbo(GAN(3, 2)), torch.randn(4, 3), epochs=1)


def test_latents():
    z = NormalOneHotLatents(3, (4, 6), scale=0.5)
    draws = z.double()().sample((20_000,))
    assert draws.dtype == torch.float64
    torch.testing.assert_close(
        draws[:, :3].std(0), torch.full((3,), 0.5).double(), atol=0.02, rtol=0
    )
    for part, count in ((draws[:, 3:7], 4), (draws[:, 7:], 6)):
        assert set(part.unique().tolist()) == {0.0, 1.0}
        assert (part.sum(1) == 1).all()
        shares = torch.full((count,), 1 / count).double()
        torch.testing.assert_close(part.mean(0), shares, atol=0.015, rtol=0)
    together = (draws[:, 3:7, None] * draws[:, None, 7:]).mean(0)  # independent
    torch.testing.assert_close(together, torch.full_like(together, 1 / 24), atol=0.01, rtol=0)
    normals = dist.Normal(0.0, 0.5).log_prob(draws[:5, :3]).sum(1)
    torch.testing.assert_close(z().log_prob(draws[:5]), normals - math.log(24))
    assert StandardNormal(2).double()().sample((3,)).dtype == torch.float64


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "best"}, r"expected one of 'non-saturating', 'minmax', 'hinge', 'wasserstein'"),
        ({"gradient_penalty": -1.0}, "weight of 0 or more, got -1.0"),
        ({"gradient_penalty": math.nan}, "weight of 0 or more, got nan"),
        ({"critic_steps": 0}, "positive whole number, got 0"),
        ({"instance_noise": (0.1, 0.3, 10)}, "two falling positive numbers"),
        ({"instance_noise": (0.3, 0.0, 10)}, "two falling positive numbers"),
    ],
)
def test_arguments_of_the_game(options, match):
    with pytest.raises(ValueError, match=match):
        adversarial(GAN(2, 2), **options)


def test_models_without_players():
    with pytest.raises(TypeError, match=r"got VAE without 'generator'. Try GAN"):
        adversarial(VAE(2, 2))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GAN(2, 2, packing=0), "packing: expected a positive whole number, got 0"),
        (lambda: GAN(2, 3, latents=StandardNormal(4)), r"latents of shape \(3,\), got \(4,\)"),
        (lambda: StandardNormal(0), "num_latents: expected a positive whole number, got 0"),
        (lambda: NormalOneHotLatents(2, ()), "one-hot vectors of 2 categories or more"),
        (lambda: NormalOneHotLatents(2, (1,)), "one-hot vectors of 2 categories or more"),
        (
            lambda: NormalOneHotLatents(2, (3,), scale=0.0),
            "scale: expected a positive number, got 0.0",
        ),
    ],
)
def test_arguments_of_the_model(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("gan", "data", "match"),
    [
        (GAN(2, 2, generator=nn.Linear(2, 3)), torch.randn(4, 2), r"give \(4, 2\) for 4 latent"),
        (GAN(2, 2, discriminator=nn.Linear(2, 3)), torch.randn(4, 2), "one score for each of 4"),
        (GAN(2, 2), torch.randn(4, 3), "expected rows of 2 features"),
        (GAN(2, 2), (torch.randn(4, 2), torch.zeros(4)), "rows alone, got 2 tensors"),
        (GAN(2, 2), torch.tensor([[0.0, math.nan]]), "hold NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(gan, data, match):
    before = state(gan)
    with pytest.raises(ValueError, match=match):
        quiet(adversarial(gan), data, epochs=1)
    assert same(before, state(gan))


def test_descend_gives_both_players():
    steps = list(descend(adversarial(GAN(2, 2)), [torch.randn(6, 2)] * 2))
    assert [sorted(step) for step in steps] == [["discriminator", "generator", "value"]] * 2


def test_packs_are_not_made_of_copies():
    """With eight rows in four parts, a pack of four would hold each row twice."""
    gan = GAN(4, 2, packing=4)
    with pytest.raises(ValueError, match=r"packing: expected 4 rows or more for each step"):
        quiet(adversarial(gan, critic_steps=5), binary(12)[:8], epochs=1, seed=0)
    assert quiet(adversarial(gan, critic_steps=3), binary(12), epochs=1, seed=0).steps == 1
