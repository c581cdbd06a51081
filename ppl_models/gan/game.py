r"""The two objectives of an adversarial game: a discriminator and a generator take turns.

With the score :math:`s`, data :math:`x` and drawn rows :math:`\tilde{x} = G(z)`, each game has a
value :math:`V = \mathbb{E}[f(s(x))] + \mathbb{E}[g(s(\tilde{x}))]` that the discriminator raises:

====================  =======================  =========================  =======================
loss                  :math:`f(s)`             :math:`g(s)`               the generator lowers
====================  =======================  =========================  =======================
``"minmax"``          :math:`\log \sigma(s)`   :math:`\log \sigma(-s)`    :math:`\log\sigma(-s)`
``"non-saturating"``  :math:`\log \sigma(s)`   :math:`\log \sigma(-s)`    :math:`-\log\sigma(s)`
``"hinge"``           :math:`\min(0, s - 1)`   :math:`\min(0, -s - 1)`    :math:`-s`
``"wasserstein"``     :math:`s`                :math:`-s`                 :math:`-s`
====================  =======================  =========================  =======================

At the best discriminator the value of the first two is :math:`2 \, \mathrm{JSD} - \log 4` nats,
from :math:`-\log 4` (the drawn rows are like the data) to 0. A gradient penalty
:math:`\lambda \, \mathbb{E}[(\lVert \nabla s(\hat{x}) \rVert - 1)^2]`, at
:math:`\hat{x} = \epsilon x + (1 - \epsilon) \tilde{x}`, keeps the score about 1-Lipschitz.

References:
    | Generative Adversarial Nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661
    | Improved Training of Wasserstein GANs (Gulrajani et al., 2017)
    | https://arxiv.org/abs/1704.00028
    | Geometric GAN (Lim & Ye, 2017), https://arxiv.org/abs/1705.02894
    | Towards Principled Methods for Training Generative Adversarial Networks (Arjovsky & Bottou,
    | 2017), for instance noise, https://arxiv.org/abs/1701.04862
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ppl_models.checks import check_choice, check_count
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs.program import Program


class Game(Protocol):
    """What a model offers, besides being a program that draws rows: `GAN` does.

    `discriminate(x)` gives one score for each pack of `packing` rows.
    """

    generator: nn.Module
    discriminator: nn.Module
    packing: int

    def discriminate(self, x: Tensor) -> Tensor: ...


class Value(NamedTuple):
    """The terms of a game."""

    real: Callable[[Tensor], Tensor]  # f
    drawn: Callable[[Tensor], Tensor]  # g
    generator: Callable[[Tensor], Tensor]
    blind: float | None  # the value where all scores are 0; the largest value is 0


def _log_game(generator: Callable[[Tensor], Tensor]) -> Value:
    return Value(logsigmoid, lambda s: logsigmoid(-s), generator, blind=-math.log(4))


LOSSES = {
    "non-saturating": _log_game(lambda s: -logsigmoid(s)),
    "minmax": _log_game(lambda s: logsigmoid(-s)),
    "hinge": Value(
        lambda s: (s - 1).clamp(max=0), lambda s: (-s - 1).clamp(max=0), torch.neg, blind=-2.0
    ),
    "wasserstein": Value(lambda s: s, torch.neg, torch.neg, blind=None),
}


def adversarial(
    gan: Game,
    loss: str = "non-saturating",
    gradient_penalty: float | None = None,
    critic_steps: int = 1,
    instance_noise: tuple[float, float, int] | None = None,
) -> "list[Player]":
    r"""Returns the objectives of the discriminator and of the generator, for `fit` to take turns.

    `run.history` then has, for each epoch, the losses of both, and under `"value"` the value of
    the game, without the penalty. A discriminator that wins outright is warned of: the value is
    then within 3 % of the largest one there is, 0, counted from where it cannot tell the rows
    apart (-log 4 nats, and -2 of the hinge), in the mean over the last ten epochs. The value of
    the Wasserstein game has no bound, and there a strong critic does no harm. Games are not
    compiled.

    Arguments:
        gan: Both players; a program that draws rows.
        loss: `"non-saturating"`, `"minmax"`, `"wasserstein"` or `"hinge"`.
        gradient_penalty: The weight of the gradient penalty. Default: 10 with `"wasserstein"`,
            else none.
        critic_steps: How many steps the discriminator takes for each one of the generator. They
            share the rows of a batch, so that each sees other ones.
        instance_noise: The standard deviation of normal noise on all rows that the discriminator
            sees: at first, at last, and the number of steps in which it falls from one to the
            other, geometrically. After them there is none.

    Raises:
        TypeError: If `gan` does not have both players.
        ValueError: If another argument does not fit.

    Example:
        >>> from ppl_models.infer.training.fit import fit
        >>> from ppl_models.gan.model import GAN
        >>> run = fit(adversarial(GAN(2, 2)), torch.randn(100, 2), epochs=3, batch_size=20, seed=0)
        >>> sorted(run.history)
        ['discriminator', 'generator', 'value']
    """
    for part in ("generator", "discriminator", "discriminate", "packing"):
        if not hasattr(gan, part):
            raise TypeError(
                f"adversarial: expected a model with a generator and a discriminator, got "
                f"{type(gan).__name__} without {part!r}. Try GAN(num_features, num_latents)."
            )
    check_choice("loss", loss, LOSSES)
    if gradient_penalty is None:
        gradient_penalty = 10.0 if loss == "wasserstein" else 0.0
    if not 0 <= gradient_penalty < math.inf:
        raise ValueError(
            f"gradient_penalty: expected a weight of 0 or more, got {gradient_penalty!r}. Try 10."
        )
    check_count(critic_steps=critic_steps)
    critic = Critic(gan, LOSSES[loss], gradient_penalty, critic_steps, Noise(instance_noise))
    return [critic, Generator(gan, LOSSES[loss], critic.noise)]


class Player(Objective):
    """What the objectives of both players have in common."""

    def __init__(self, gan: Game, value: Value, noise: "Noise") -> None:
        self.gan, self.value, self.noise = gan, value, noise
        self.program = Program(gan, "gan")  # type: ignore[arg-type]

    def draw(self, rows: int) -> Tensor:
        """Draws as many rows as fill the packs of `rows` rows."""
        packing = self.gan.packing
        return self.program(size=max(rows // packing, 1) * packing)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in getattr(self.gan, self.name).named_parameters():
            yield f"gan.{self.name}.{name}", parameter

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        if len(batch) != 1:
            raise ValueError(
                f"adversarial: expected batches of rows alone, got {len(batch)} tensors. "
                f"Try fit(objective, x), without labels."
            )
        turns, packing = self.turns, self.gan.packing
        if len(batch[0]) // turns < packing:  # the copies in each pack would give the data away
            raise ValueError(
                f"packing: expected {packing} rows or more for each step of the discriminator, got "
                f"a batch of {len(batch[0])} for critic_steps={turns}. Try batch_size="
                f"{32 * packing * turns}, or fewer critic_steps."
            )
        with torch.no_grad():
            self.gan.discriminate(self.draw(len(batch[0])))
            self.gan.discriminate(in_packs(batch[0], self.gan.packing))

    def blame(self, *batch: Tensor, size: int) -> str:
        with torch.no_grad():
            drawn = self.draw(len(batch[0]))
            if not drawn.isfinite().all():
                return "the rows that the generator draws are not finite"
            for what, x in (("data", in_packs(batch[0], self.gan.packing)), ("drawn rows", drawn)):
                if not self.gan.discriminate(x).isfinite().all():
                    return f"the scores that the discriminator gives to {what} are not finite"
        return "both players give finite numbers; their gradients or sums do not"


class Critic(Player):
    """The objective of the discriminator."""

    name = "discriminator"

    def __init__(self, gan: Game, value: Value, penalty: float, turns: int, noise: "Noise") -> None:
        super().__init__(gan, value, noise)
        self.penalty, self.turns = penalty, turns
        self.reports: dict[str, Tensor] = {}

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        super().prepare(*batch, size=size, data=data)
        self.reports = {"value": self.loss(*batch, size=size).detach()}  # a first one, for its name

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        with torch.no_grad():
            drawn = self.noise(self.draw(len(batch[0])))
        real = self.noise(in_packs(batch[0], self.gan.packing))
        value = self.value.real(self.gan.discriminate(real)).mean()
        value = value + self.value.drawn(self.gan.discriminate(drawn)).mean()
        self.reports = {"value": value.detach()}
        if not self.penalty:
            return -value
        return -value + self.penalty * gradient_penalty(self.gan, real, drawn)

    def modules(self) -> dict[str, nn.Module]:
        return {"gan": self.gan, "noise": self.noise}  # type: ignore[dict-item]

    def caveat(self, history: dict[str, list[float]]) -> str | None:
        """Says that the discriminator wins outright, where the epochs so far show it."""
        recent = history["value"][-10:]
        mean, blind = sum(recent) / len(recent), self.value.blind
        if blind is None or mean < 0.03 * blind:
            return None
        return (
            f"discriminator: it wins outright. In the last {len(recent)} epoch(s) the value of the "
            f"game was {mean:.4f} on average, where 0 is the largest there is and {blind:.3f} that "
            f"of drawn rows like the data: it tells nearly all rows apart, and the generator "
            f"learns little from it. Try spectral norm, instance_noise=(0.3, 0.01, steps), a "
            f"smaller discriminator, or loss='wasserstein'."
        )


class Generator(Player):
    """The objective of the generator."""

    name = "generator"

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        with frozen(self.gan.discriminator):
            scores = self.gan.discriminate(self.noise(self.draw(len(batch[0]))))
        return self.value.generator(scores).mean()

    def stepped(self) -> None:
        self.noise.steps_taken.add_(1)

    def modules(self) -> dict[str, nn.Module]:
        return {}  # those of the critic, which has the whole model


class Noise(nn.Module):
    """Normal noise that falls with the steps taken, which a checkpoint keeps."""

    steps_taken: Tensor

    def __init__(self, schedule: tuple[float, float, int] | None) -> None:
        super().__init__()
        if schedule is not None and not (
            len(schedule) == 3 and schedule[0] >= schedule[1] > 0 and schedule[2] >= 1
        ):
            raise ValueError(
                f"instance_noise: expected two falling positive numbers and a number of steps, "
                f"got {schedule!r}. Try (0.3, 0.01, 1000)."
            )
        self.schedule = schedule
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.int64))

    def scale(self) -> Tensor:
        """The standard deviation at this step."""
        assert self.schedule is not None
        first, last, steps = self.schedule
        share = self.steps_taken / steps
        return torch.where(share < 1, first * (last / first) ** share, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.schedule is None:
            return x
        return x + self.scale().to(x.dtype) * torch.randn_like(x)


def in_packs(x: Tensor, packing: int) -> Tensor:
    """As many rows as fill packs; if there are too few for one, some of them again."""
    rows = max(len(x) // packing, 1) * packing
    return x[:rows] if rows <= len(x) else x[torch.arange(rows, device=x.device) % len(x)]


def gradient_penalty(gan: Game, real: Tensor, drawn: Tensor) -> Tensor:
    r"""Returns :math:`\mathbb{E}[(\lVert \nabla s(\hat{x}) \rVert - 1)^2]` over packs.

    Arguments:
        gan: The model whose discriminator is penalised.
        real, drawn: Rows of both kinds, `(B, D)`, whole packs of them.
    """
    packs = len(real) // gan.packing
    share = torch.rand(packs, 1, dtype=real.dtype, device=real.device)  # epsilon
    share = share.repeat_interleave(gan.packing, 0)
    between = (share * real + (1 - share) * drawn).requires_grad_()
    with torch.enable_grad():
        total = gan.discriminate(between).sum()
        (slope,) = torch.autograd.grad(total, between, create_graph=True)
    norm = slope.reshape(packs, -1).square().sum(1).clamp(min=1e-24).sqrt()  # smooth at 0
    return (norm - 1).square().mean()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A context in which the parameters of a module take no gradient."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
