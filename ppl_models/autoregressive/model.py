r"""Autoregressive models: the density of a row is a product of conditionals, one for each feature.

.. math:: p(x) = \prod_{d=1}^{D} p(x_d \mid x_1, \dots, x_{d-1})

A causal network gives the outputs of all conditionals in one pass, because those of feature `d`
depend on the features before it alone; a likelihood says what they mean. The log-density is exact.
A draw goes feature by feature.

Shapes: `B` rows, `D` features, `P` outputs for each feature.

References:
    | The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
    | https://proceedings.mlr.press/v15/larochelle11a.html
"""

from collections.abc import Generator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.autoregressive.repeated import repeated
from ppl_models.checks import check_rows
from ppl_models.likelihoods import Likelihood, check_likelihood
from ppl_models.plates import data_plate
from ppl_models.prompt.bars import progress_bar
from ppl_models.prompt.lines import in_a_line
from ppl_models.scoped import modes


class Autoregressive(dist.TorchDistribution):
    r"""The distribution over rows `(D,)` of a causal network and a likelihood.

    The likelihood sees each feature as a row of one feature, so that it does not matter in which
    order it takes the outputs of several.

    Arguments:
        network: A module from rows `(B, D)` to outputs `(B, D, P)`, of which those of feature `d`
            depend on the features before `d` alone. It may have a method `walk(rows)`: a
            generator that yields the outputs `(B, P)` of one feature after the other, and is sent
            the values `(B,)` drawn. Without it each feature of a draw costs a pass.
        likelihood: What the outputs of a feature mean.
        num_features: The length of a row, `D`.

    Example:
        >>> from ppl_models.likelihoods import Bernoulli
        >>> from ppl_models.nn import MaskedMLP
        >>> rows = Autoregressive(MaskedMLP(num_features=3, num_outputs=1), Bernoulli(), 3)
        >>> every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # (8, 3)
        >>> torch.allclose(rows.log_prob(every).exp().sum(), torch.tensor(1.0))
        True
        >>> rows.sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    __repr__ = in_a_line

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        num_features: int,
        batch_shape: torch.Size | tuple[int, ...] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.likelihood, self.num_features = network, likelihood, num_features
        event_shape = torch.Size([num_features])
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=validate_args)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:
        return self.likelihood(self._zeros(1, self.likelihood.num_outputs)).support

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Autoregressive":
        return Autoregressive(
            self.network, self.likelihood, self.event_shape[0], batch_shape, validate_args=False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of rows in nats, with shape `(*,)` for rows `(*, D)`."""
        if self._validate_args:
            self._validate_sample(value)
        total = self.log_conditionals(value).sum(-1)  # (*,)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def log_conditionals(self, value: Tensor) -> Tensor:
        r"""Returns :math:`\log p(x_d \mid x_1, \dots, x_{d-1})`, with the shape of the rows."""
        x = value.reshape(-1, self.event_shape[0])  # (B, D)
        outputs = self.network(x)  # (B, D, P)
        expected = (*x.shape, self.likelihood.num_outputs)
        if outputs.shape != expected:
            raise ValueError(
                f"Autoregressive: expected outputs of shape {expected} from the network, for rows "
                f"{tuple(x.shape)} and a likelihood with num_outputs="
                f"{self.likelihood.num_outputs}, got {tuple(outputs.shape)}."
            )
        # Densities are summed in the precision of the rows, whatever the network's.
        conditionals = self.likelihood(outputs.to(x.dtype).flatten(0, 1))  # of B * D rows (1,)
        return conditionals.log_prob(x.reshape(-1, 1)).reshape(value.shape)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: torch.Size | tuple[int, ...] = (),
        compile: bool = False,
        progress: bool = True,
    ) -> Tensor:
        """Draws rows, feature by feature, with the network in evaluation mode (no dropout).

        Arguments:
            sample_shape: How many, as torch's distributions take it.
            compile: Whether the steps run as compiled code, on the CPU, for the same rows but
                where rounding decides. The first draw of a number of rows takes seconds longer,
                the others 0.1 to 0.7 of the time.
            progress: Whether to show a progress bar (on a terminal), if it takes more than a
                second.
        """
        shape = self._extended_shape(torch.Size(sample_shape))  # (*, D)
        num_rows = shape[:-1].numel()
        with modes([self.network], training=False):
            rows = None
            if compile and num_rows and shape[-1] > 1:
                rows = repeated(self.network, self.likelihood, num_rows, shape[-1])
            rows = self._step_by_step(num_rows, progress) if rows is None else rows
        return rows.reshape(shape)

    def _step_by_step(self, num_rows: int, progress: bool) -> Tensor:
        """Rows by a walk, (B, D)."""
        walk: Any = getattr(self.network, "walk", self._walk)
        steps = walk(num_rows)
        columns: list[Tensor] = []
        with progress_bar("sample", self.event_shape[0], progress, unit="feature") as advance:
            for _ in range(self.event_shape[0]):
                outputs = steps.send(columns[-1][:, 0]) if columns else next(steps)  # (B, P)
                columns.append(self.likelihood(outputs).sample())  # (B, 1)
                advance(1)
        return torch.cat(columns, 1)

    def _walk(self, rows: int) -> Generator[Tensor, Tensor, None]:
        """The walk of any causal network: a pass for each feature."""
        x = self._zeros(rows, self.event_shape[0])
        for d in range(self.event_shape[0]):
            x[:, d] = yield self.network(x)[:, d]

    def _zeros(self, *shape: int) -> Tensor:
        """Zeros of the network's type, where it is."""
        return next(self.network.parameters()).new_zeros(shape)


class AutoregressiveModel(nn.Module):
    r"""The program of a causal network and a likelihood; no latents. Its evidence is exact.

    So `fit(elbo(model), x)` is maximum likelihood.

    Arguments:
        network: A causal network, as `Autoregressive` takes it.
        likelihood: What the outputs of a feature mean.
        num_features: The length of a row, `D`.

    Raises:
        TypeError: If `likelihood` is none.

    Example:
        >>> from ppl_models.likelihoods import Bernoulli
        >>> class Chain(nn.Module):  # each feature depends on the one before
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(()))
        ...     def forward(self, x):
        ...         before = nn.functional.pad(x[:, :-1], (1, 0))  # (B, D)
        ...         return (self.weight * before).unsqueeze(-1)  # logits, (B, D, 1)
        >>> model = AutoregressiveModel(Chain(), Bernoulli(), num_features=3)
        >>> model(size=5).shape
        torch.Size([5, 3])
    """

    __repr__ = in_a_line

    def __init__(self, network: nn.Module, likelihood: Likelihood, num_features: int) -> None:
        super().__init__()
        check_likelihood(likelihood)
        self.network, self.likelihood, self.num_features = network, likelihood, num_features

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, D)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, self.num_features, type(self).__name__, self)
        with data_plate(x, size):
            return pyro.sample("x", self.evidence(), obs=x)

    def evidence(self) -> Autoregressive:
        r"""Returns :math:`p(x)`, over rows of shape `(D,)`; with dropout in training mode."""
        return Autoregressive(self.network, self.likelihood, self.num_features)


def check_dropout(where: str, dropout: float) -> None:
    """Raises a ValueError unless `dropout` is a probability less than one."""
    if not 0 <= dropout < 1:
        raise ValueError(
            f"{where}: expected the probability to drop a unit, at least 0 and less than 1, got "
            f"dropout={dropout!r}. Try 0.2."
        )
