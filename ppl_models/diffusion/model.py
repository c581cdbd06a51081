r"""Diffusion: noise becomes a row in many small steps, each a Gaussian with a denoiser in it.

.. math::
    p(x, z_{0:T}) = \mathcal{N}(z_T; 0, I) \prod_{t=1}^{T} p(z_{t-1} \mid z_t) \; p(x \mid z_0),
    \qquad p(z_{t-1} \mid z_t) = q(z_{t-1} \mid z_t, \hat{x}(z_t, \lambda_t))

The guide is the noising process, :math:`q(z_T \mid x) \prod_t q(z_{t-1} \mid z_t, x)`, which has no
parameters of its own. The ELBO of the two, with the Gaussian integrals done, is the variational
bound:

.. math::
    \log p(x) \ge \mathbb{E}\left[ \log p(x \mid z_0) \right]
    - \mathrm{KL}(q(z_T \mid x) \,\|\, \mathcal{N}(0, I))
    - \sum_{t=1}^{T} \tfrac{1}{2} (e^{\lambda_{t-1}} - e^{\lambda_t})
    \, \mathbb{E} \, \lVert x - \hat{x}(z_t, \lambda_t) \rVert^2

With labels all of this is given the label of the row, :math:`p(x, z_{0:T} \mid y)`, for a network
that takes them.

Shapes: `B` rows, `D` features, `T` steps, `L` levels.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239
    | Variational Diffusion Models (Kingma et al., 2021)
    | https://arxiv.org/abs/2107.00630
    | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
    | https://arxiv.org/abs/2207.12598
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import (
    check_choice,
    check_labels,
    check_positive,
    check_rows,
)
from ppl_models.diffusion.preconditioning import TARGETS, precondition
from ppl_models.diffusion.repeated import compiled
from ppl_models.diffusion.samplers import Denoiser, counted, guided, num_calls
from ppl_models.diffusion.schedules import LogLinear, Schedule, alpha_sigma, log_snrs, step_back
from ppl_models.likelihoods import Categorical
from ppl_models.nn import TimeMLP
from ppl_models.plates import data_plate
from ppl_models.prompt.bars import progress_bar
from ppl_models.prompt.lines import in_a_line
from ppl_models.scoped import modes


class Diffusion(nn.Module):
    r"""A diffusion model, with latent sites `z_0` to `z_T`, one noisy row for each step.

    Inside, a row is `(x - loc) / scale`. The targets `"x0"`, `"eps"`, `"v"` and `"edm"` are those
    of `precondition`. Under `"levels"`, with outputs :math:`o` of the network, :math:`\hat{x}_d` is
    the mean of the levels :math:`g_l` with probabilities :math:`\mathrm{softmax}_l(o_{dl} + \log
    \mathcal{N}(z_{td}; \alpha_t g_l, \sigma_t^2))`: what a noisy
    feature says of its own level is known, and the network adds what the others say.

    The row is read off as :math:`p(x \mid z_0) \propto q(z_0 \mid x)`, normalised over the levels
    or over the real numbers; under `"levels"`, by the probabilities at time 0.

    Arguments:
        num_features: The length of a row, `D`.
        network: A module called as `network(z, log_snr)` with `(B, D)` and `(B,)`, which returns
            `(B, D)`, or `(B, D * L)` for `"levels"`. With labels `(B,)` it is called as
            `network(z, log_snr, y)`, and has an attribute `num_classes`. Default: a multilayer
            perceptron without classes.
        schedule: A callable from times in [0, 1] to log-SNRs, such as those of `schedules`.
        target: What the network predicts: `"v"`, `"eps"`, `"x0"`, `"edm"` or `"levels"`.
        num_steps: The number of steps, `T`. The network knows nothing of it: bounds and samples
            may take another.
        likelihood: `Categorical(levels)` for grey levels in [0, 1]; None for real rows.
        loc: What is subtracted from a row. Default: 0, or 0.5 for levels.
        scale: What it is then divided by, positive. Default: 1, or 0.5 for levels.
        data_scale: The standard deviation of rows inside, for the target `"edm"`.

    Raises:
        TypeError: If the likelihood or the schedule is none.
        ValueError: If there is no such target, or the schedule does not fall.

    Example:
        >>> diffusion = Diffusion(num_features=3, num_steps=10)
        >>> x = diffusion(size=5)
        >>> x.shape, diffusion.bound(x).shape  # five fresh rows; nats
        (torch.Size([5, 3]), torch.Size([5]))
    """

    zero: Tensor  # (D,)
    grid: Tensor  # g, (L,)

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        network: nn.Module | None = None,
        schedule: Schedule | None = None,
        target: str = "v",
        num_steps: int = 100,
        likelihood: Categorical | None = None,
        loc: float | None = None,
        scale: float | None = None,
        data_scale: float = 0.5,
    ) -> None:
        super().__init__()
        _check_arguments(target, likelihood, scale, data_scale)
        discrete = likelihood is not None
        levels = likelihood.levels if likelihood is not None else 1
        self.num_features = num_features
        num_outputs = num_features * (levels if target == "levels" else 1)
        self.network = TimeMLP(num_features, num_outputs) if network is None else network
        self.schedule = LogLinear() if schedule is None else schedule
        self.num_classes = int(getattr(self.network, "num_classes", 0))
        self.target = target
        self.num_steps = num_steps
        self.likelihood = likelihood
        self.loc = (0.5 if discrete else 0.0) if loc is None else loc
        self.scale = (0.5 if discrete else 1.0) if scale is None else scale
        self.data_scale = data_scale
        self.register_buffer("zero", torch.zeros(num_features), persistent=False)
        grid = (torch.linspace(0, 1, levels) - self.loc) / self.scale
        self.register_buffer("grid", grid, persistent=False)  # g, (L,)
        self.log_snrs(num_steps)  # for its checks

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        """Scores rows `x`, given labels `y` if the network takes them, or draws `size`."""
        check_rows(x, self.num_features, "Diffusion", self)
        self.check_condition(y)

        with data_plate(x, size):
            z = self.generate(y)  # (B, D)
            return pyro.sample("x", self.read(z, y), obs=x)

    def noising(self, x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        r"""The guide, a Pyro program: rows become noise, :math:`q(z_{0:T} \mid x)`, whatever `y`.

        Each step is drawn given the later one, in the order of the model, so that
        `TraceMeanField_ELBO` integrates each step exactly given what it was drawn from.
        """
        with data_plate(x, size):
            return self.diffuse(x)

    def generate(self, y: Tensor | None = None) -> Tensor:
        r"""A part of programs: the sites `z_T` to `z_0` in a plate of rows; returns `z_0`."""
        log_snr = self.log_snrs()  # (T + 1,), falling
        noise = dist.Normal(self.zero, torch.ones_like(self.zero)).to_event(1)
        z = pyro.sample(f"z_{self.num_steps}", noise)  # (B, D)
        for t in range(self.num_steps, 0, -1):
            x_hat = self.denoise(z, log_snr[t], y)  # (B, D)
            step = dist.Normal(*step_back(z, x_hat, log_snr[t], log_snr[t - 1]))
            z = pyro.sample(f"z_{t - 1}", step.to_event(1))
        return z

    def diffuse(self, x: Tensor) -> Tensor:
        r"""A part of guides: the same sites given rows `(B, D)`; returns `z_0`."""
        check_rows(x, self.num_features, "Diffusion", self)
        log_snr, inside = self.log_snrs(), self.standardise(x)
        alpha, sigma = alpha_sigma(log_snr)
        last = dist.Normal(alpha[-1] * inside, sigma[-1]).to_event(1)
        z = pyro.sample(f"z_{self.num_steps}", last)
        for t in range(self.num_steps, 0, -1):
            step = dist.Normal(*step_back(z, inside, log_snr[t], log_snr[t - 1]))
            z = pyro.sample(f"z_{t - 1}", step.to_event(1))
        return z

    def denoise(self, z: Tensor, log_snr: Tensor, y: Tensor | None = None) -> Tensor:
        r"""Returns :math:`\hat{x}(z_t, \lambda_t)`, the row inside, with shape `(B, D)`.

        Arguments:
            z: The noisy rows, with shape `(B, D)`.
            log_snr: One number, or one for each row, `(B,)`.
            y: The labels, with shape `(B,)`. Default: not known.
        """
        log_snr = log_snr.expand(len(z))  # (B,)
        if self.target == "levels":
            return self._level_logits(z, log_snr, y).softmax(-1) @ self.grid
        into, skip, out = precondition(self.target, log_snr[:, None], self.data_scale)
        return skip * z + out * self._outputs(into * z, log_snr, y)

    def read(self, z: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        r"""Returns :math:`p(x \mid z_0)`, of rows in the units of the data, `(B, D)`."""
        log_snr = self.log_snrs()[0]
        if self.likelihood is None:
            mean = self.loc + self.scale * z / alpha_sigma(log_snr)[0]
            return dist.Normal(mean, self.scale * (-log_snr / 2).exp()).to_event(1)
        log_snr = log_snr.expand(len(z))
        own = self.target == "levels"
        logits = self._level_logits(z, log_snr, y) if own else self._level_log_density(z, log_snr)
        return self.likelihood(logits.flatten(1))

    def bound(self, x: Tensor, y: Tensor | None = None, num_steps: int | None = None) -> Tensor:
        r"""Returns the variational bound of each row in nats, `(B,)`, at one draw of every `z_t`.

        The Gaussian integrals are done; what is left to the draws are the noise at each step and
        the reading. Its mean over draws is the ELBO of the program and its guide.

        Arguments:
            x: The rows, with shape `(B, D)`.
            y: Their labels, with shape `(B,)`. Default: not known.
            num_steps: The number of steps, `T`. Default: that of the model.
        """
        total = self.reconstruction(x, y) - self.prior_divergence(x)
        for t in range(1, (self.num_steps if num_steps is None else num_steps) + 1):
            step = torch.full((len(x),), t, device=x.device)
            total = total - self.step_divergence(x, step, y, num_steps)
        return total

    def reconstruction(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        r"""Returns :math:`\log p(x \mid z_0)` at one draw of :math:`z_0`, in nats, `(B,)`."""
        return self.read(self.noisy(x, self.log_snrs()[0]), y).log_prob(x)

    def prior_divergence(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\mathrm{KL}(q(z_T \mid x) \,\|\, \mathcal{N}(0, I))` in nats, `(B,)`."""
        check_rows(x, self.num_features, "Diffusion", self)
        alpha, sigma = alpha_sigma(self.log_snrs()[-1])
        divergence = ((alpha * self.standardise(x)) ** 2 + sigma**2 - 1) / 2 - sigma.log()
        return divergence.sum(1)

    def step_divergence(
        self, x: Tensor, step: Tensor, y: Tensor | None = None, num_steps: int | None = None
    ) -> Tensor:
        r"""Returns the KL divergence of a step of each row, at one draw of :math:`z_t`.

        .. math::
            \mathrm{KL}(q(z_{t-1} \mid z_t, x) \,\|\, p(z_{t-1} \mid z_t)) =
            \tfrac{1}{2} (e^{\lambda_{t-1}} - e^{\lambda_t}) \lVert x - \hat{x} \rVert^2

        Arguments:
            x: The rows, with shape `(B, D)`.
            step: A step `t` from 1 to `T` for each row, with shape `(B,)`.
            y: Their labels, with shape `(B,)`. Default: not known.
            num_steps: The number of steps, `T`. Default: that of the model.
        """
        log_snr = self.log_snrs(num_steps)
        late, early = log_snr[step], log_snr[step - 1]  # (B,)
        weight = late.exp() * (early - late).expm1() / 2  # without cancellation
        return weight * self.squared_error(x, late, y)

    def squared_error(self, x: Tensor, log_snr: Tensor, y: Tensor | None = None) -> Tensor:
        r"""Returns :math:`\lVert x - \hat{x}(z_t, \lambda_t) \rVert^2` at one draw, `(B,)`."""
        x_hat = self.denoise(self.noisy(x, log_snr), log_snr, y)
        return (self.standardise(x) - x_hat).square().sum(1)

    def noisy(self, x: Tensor, log_snr: Tensor) -> Tensor:
        r"""Returns a draw from :math:`q(z_t \mid x)`, with shape `(B, D)`."""
        check_rows(x, self.num_features, "Diffusion", self)
        alpha, sigma = alpha_sigma(log_snr.expand(len(x))[:, None])
        return alpha * self.standardise(x) + sigma * torch.randn_like(x)

    def log_snrs(self, num_steps: int | None = None) -> Tensor:
        r"""Returns :math:`\lambda` at the times `0, 1 / T, ..., 1`, with shape `(T + 1,)`."""
        if num_steps is None:  # checked when the model was made: a check makes a GPU wait
            return log_snrs(self.schedule, self.num_steps, like=self.zero, check=False)
        return log_snrs(self.schedule, num_steps, like=self.zero)

    def check_condition(self, y: Tensor | None, num_rows: int | None = None) -> None:
        """Raises unless `y` is None or holds labels that the network can be told.

        Arguments:
            y: The labels, with shape `(B,)`.
            num_rows: The number of rows, `B`, where there are rows besides the labels.

        Raises:
            TypeError: If they are no whole numbers.
            ValueError: If the network takes none, there is not one for each row, or one is not of
                its classes.
        """
        if y is None:
            return
        if self.num_classes == 0:
            raise ValueError(
                f"Diffusion: got labels, and {type(self.network).__name__} takes none. Try a "
                f"network with num_classes=10, trained with labels, or no labels."
            )
        # They are no site, whose support would be checked.
        check_labels(y, self.num_classes, num_rows, "Diffusion", on_any_device=True)
        if y.is_floating_point():  # a network looks its classes up
            raise TypeError(
                f"Diffusion: expected labels of an integer type, got {y.dtype}. Try y.long()."
            )

    def standardise(self, x: Tensor) -> Tensor:
        """Returns the rows inside, `(x - loc) / scale`."""
        return (x - self.loc) / self.scale

    @torch.no_grad()
    def sample(
        self,
        size: int,
        sampler: Callable[..., Tensor],
        num_steps: int | None = None,
        y: Tensor | None = None,
        guidance: float | None = None,
        compile: bool = False,
        progress: bool = True,
    ) -> Tensor:
        """Returns fresh rows in the units of the data, with shape `(size, D)`.

        Arguments:
            size: How many rows.
            sampler: One of `samplers`, called as `sampler(denoiser, z, schedule, num_steps)`.
            num_steps: The number of times at which it stops. Default: that of the model.
            y: The labels of the rows, with shape `(size,)`, for a network that takes them.
            guidance: The strength of classifier-free guidance, see `guided`: at 1, the default,
                rows follow the network given their labels; above 1 they exaggerate them.
            compile: Whether the steps run as compiled code, on the CPU, for the same rows to
                rounding. The first draw of a number of rows takes seconds longer; of small
                networks, the others take 0.2 to 0.6 of the time.
            progress: Whether to show a progress bar (on a terminal), if it takes more than a
                second: of the calls of the denoiser, the only thing that is known of any sampler.

        Raises:
            TypeError: If the sampler cannot be called, or it is none whose steps are compiled.
            ValueError: If there are labels or guidance that the network knows nothing of.
            FloatingPointError: If what comes out is not finite.

        Example:
            >>> from ppl_models.diffusion.samplers import heun
            >>> Diffusion(num_features=3).sample(5, heun, num_steps=18).shape
            torch.Size([5, 3])
        """
        if not callable(sampler):
            raise TypeError(
                f"sampler: expected a function of ppl_models.diffusion.samplers, got {sampler!r}. "
                f"Try ancestral, or heun for few steps."
            )
        self.check_condition(y, num_rows=size)
        if guidance is not None and y is None:
            raise ValueError(
                "guidance: expected the labels that it leads to, got y=None. Try "
                "y=torch.arange(10), for a network with num_classes=10."
            )
        steps = self.num_steps if num_steps is None else num_steps
        noise = torch.randn(size, self.num_features, dtype=self.zero.dtype, device=self.zero.device)
        denoiser = self.denoiser(y, guidance)
        way = compiled(sampler, self, y, guidance) if compile else sampler
        bar = progress_bar("sample", num_calls(sampler, steps), progress, unit="call")
        with modes([self], training=False), bar as advance:  # no label left out, nothing dropped
            return self._in_units(way(counted(denoiser, advance), noise, self.schedule, steps))

    def denoiser(self, y: Tensor | None = None, guidance: float | Tensor | None = None) -> Denoiser:
        """Returns `denoise` given labels, as `samplers` take it, with guidance or without."""

        def given(z: Tensor, log_snr: Tensor) -> Tensor:
            return self.denoise(z, log_snr, y)

        return given if guidance is None else guided(given, self.denoise, guidance)

    def _in_units(self, inside: Tensor) -> Tensor:
        """Rows inside as rows of data: of the nearest levels, where there are levels."""
        if not inside.isfinite().all():  # the nearest level of NaN would be the first
            raise FloatingPointError(
                f"sample: {int((~inside.isfinite()).any(1).sum())} of {len(inside)} rows hold NaN "
                f"or infinity. Try less guidance, more steps, or a network whose parameters are "
                f"finite."
            )
        if self.likelihood is not None:
            nearest = (inside[..., None] - self.grid).abs().argmin(-1)
            inside = self.grid[nearest]
        return self.loc + self.scale * inside

    def _level_log_density(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """log N(z; alpha g, sigma^2) up to a constant, (B, D, L)."""
        alpha, sigma = alpha_sigma(log_snr[:, None, None])
        return -((z[..., None] - alpha * self.grid) / sigma).square() / 2

    def _level_logits(self, z: Tensor, log_snr: Tensor, y: Tensor | None) -> Tensor:
        """The logits of the levels given z_t, (B, D, L)."""
        output = self._outputs(z, log_snr, y)  # (B, D * L)
        return output.unflatten(1, (self.num_features, -1)) + self._level_log_density(z, log_snr)

    def _outputs(self, z: Tensor, log_snr: Tensor, y: Tensor | None) -> Tensor:
        output = self.network(z, log_snr) if y is None else self.network(z, log_snr, y)
        expected = len(z), self.num_features * (len(self.grid) if self.target == "levels" else 1)
        if output.shape != expected:  # one number would be spread over all levels, or features
            raise ValueError(
                f"network: expected outputs of shape {expected} for the target {self.target!r} of "
                f"{self.num_features} features, got {tuple(output.shape)}. Try num_outputs="
                f"{expected[1] // self.num_features} for each pixel of a convolutional network, "
                f"{expected[1]} of TimeMLP."
            )
        return output.to(z.dtype)


def _check_arguments(
    target: str, likelihood: object, scale: float | None, data_scale: float
) -> None:
    check_choice("target", target, (*TARGETS, "levels"))
    if likelihood is not None and not isinstance(likelihood, Categorical):
        raise TypeError(
            f"likelihood: expected Categorical(levels), or None for real rows, got "
            f"{likelihood!r}. Try Categorical(2) for binary rows."
        )
    if target == "levels" and likelihood is None:
        raise ValueError(
            "target: 'levels' are those of a likelihood, got likelihood=None. "
            "Try likelihood=Categorical(levels=17), or target='v'."
        )
    check_positive(scale=1.0 if scale is None else scale, data_scale=data_scale)
