r"""Label shift: the classes are those of the source, and there are as many of each as may be.

.. math::
    y_n \sim \mathrm{Categorical}(\pi), \qquad p_t(x \mid y) = p_s(x \mid y)

What a classifier of the source says of a row, :math:`r_y = p_s(y \mid x)`, tells all that can be
known of its label, and the odds of the row in the target are exact where the classifier is right:

.. math::
    \frac{p_t(x)}{p_s(x)} = \sum_y \pi_y \frac{r_y}{\bar r_y}, \qquad
    p_t(y \mid x) \propto \pi_y \frac{r_y}{\bar r_y}

with the shares :math:`\bar r` of the classes in the source. A step of EM for :math:`\pi` is the
mean of the second, in closed form. The first is the evidence here: a log density *relative to the
source*, 0 for a row where nothing shifted. At the best :math:`\pi` it is no less than that of no
shift, whatever became of the rows: whether labels are better for it, see `compare_labels`.

Shapes: `N` rows, `M` rows of the source, `C` classes.

References:
    | Adjusting the Outputs of a Classifier to New a Priori Probabilities (Saerens et al., 2002)
    | https://doi.org/10.1162/089976602753284446
"""

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_models.adaptation.coral import check_without_labels
from ppl_models.checks import check_float64, check_rows
from ppl_models.plates import data_plate
from ppl_models.processes import by_parts, processes_of
from ppl_models.prompt.lines import in_a_line
from ppl_models.row_weights import weight_of, weighted_batches

WHERE = "LabelShift"


class LabelShift(nn.Module):
    r"""The shares of classes in a target, with the label of a row at site `y`.

    A row `x` is what a classifier of the source says of a row: the probabilities of the classes.
    `fit_em(shift, probabilities)` finds the shares, `shift.posterior(probabilities)` the labels.

    Arguments:
        source: The same of rows of the source that the classifier was not trained on, `(M, C)`.
            Their mean is the shares of the classes there, and fresh rows are drawn from them.

    Raises:
        TypeError: If they are no floating-point numbers.
        ValueError: If they are no probabilities, or a class has none.

    Example:
        >>> from ppl_models import fit_em
        >>> source = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        >>> target = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
        >>> shift = LabelShift(source)
        >>> run = fit_em(shift, target, tolerance=1e-9, progress=False)
        >>> shift.probs  # more than 3 of 4 are of the first class: 1 of 10 looks like the other
        tensor([0.8125, 0.1875], grad_fn=<SoftmaxBackward0>)
    """

    source: Tensor

    __repr__ = in_a_line

    def __init__(self, source: Tensor) -> None:
        super().__init__()
        check_probabilities(source, None, f"{WHERE}, source")
        shares = source.double().mean(0)
        if not (shares > 0).all():
            raise ValueError(
                f"{WHERE}: expected a share of each class in the source, got none of class "
                f"{int(shares.argmin())}. Try source rows of all classes."
            )
        self.register_buffer("source", source.detach().clone())  # (M, C)
        self.logits = nn.Parameter(shares.log().to(source.dtype))  # log pi, up to a constant, (C,)

    @property
    def probs(self) -> Tensor:
        """The shares of the classes in the target, pi, `(C,)`."""
        return self.logits.softmax(0)

    @property
    def num_parameters(self) -> int:
        """The number of free parameters."""
        return len(self.logits) - 1

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores rows `x`, `(B, C)`, of `size` in all; without them draws `size` rows."""
        check_rows(x, len(self.logits), WHERE)
        prior = dist.Categorical(logits=self.logits)
        with data_plate(x, size):
            y = pyro.sample("y", prior, infer={"enumerate": "parallel"})  # (B,), or (C, 1)
            return pyro.sample("x", RowsOfClass(y, self.source), obs=x)

    def posterior(self, x: Tensor) -> dist.Categorical:
        r"""Returns :math:`p_t(y \mid x)`, with batch shape `(B,)`."""
        check_without_labels(x, WHERE)
        check_probabilities(x, len(self.logits), WHERE)
        return dist.Categorical(logits=self.logits.log_softmax(0) + log_odds(x, self.source))

    @torch.no_grad()
    def initialise(self, x: Tensor, sample_weight: Tensor | None = None) -> None:
        """Starts from the shares of the source.

        Raises:
            ValueError: If the rows are no probabilities of the classes.
        """
        check_without_labels(x, WHERE)
        check_probabilities(x, len(self.logits), WHERE)
        self.logits.copy_(self.source.double().mean(0).log())

    @by_parts
    @torch.no_grad()
    def em_step(self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None = None) -> Tensor:
        """Takes one step of EM; returns the mean log evidence before it, in nats per row.

        Arguments:
            x: Probabilities of the classes, `(N, C)`, or batches of them, or a `Part` of either.
            sample_weight: How many times each row counts, `(N,)`. Default: once.
        """
        check_float64(self.logits, WHERE)
        here = processes_of(x)
        with here.all_or_none(WHERE):
            sums = self._expected(x, sample_weight)
        rows, total, members = here.totals(*sums)
        self.logits.copy_((members / members.sum()).log().clamp(min=-100))
        return total / rows

    def _expected(
        self, x: Tensor | Iterable[Tensor], sample_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows by weight, their log evidence, and how many are expected of each class."""
        log_weights = self.logits.double().log_softmax(0)
        rows, total = self.logits.new_zeros(2, dtype=torch.float64)
        members = torch.zeros_like(log_weights)
        for batch, weight in weighted_batches(x, sample_weight, WHERE):
            joint = log_weights + log_odds(batch.double(), self.source.double())  # (B, C)
            shares, evidence = joint.softmax(1), joint.logsumexp(1)
            if weight is not None:
                shares, evidence = shares * weight[:, None], evidence * weight
            rows, total = rows + weight_of(batch, weight), total + evidence.sum()
            members = members + shares.sum(0)
        return rows, total, members


class RowsOfClass(dist.TorchDistribution):
    r"""What a classifier says of rows of one class, relative to what it says of the source's.

    Its density is :math:`r_y / \bar r_y`, and its draws are rows of the source, each as probable.

    Arguments:
        y: Classes, of any shape.
        source: Probabilities of the classes of rows of the source, `(M, C)`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.simplex

    def __init__(self, y: Tensor, source: Tensor) -> None:
        self.y, self.source = y, source
        super().__init__(y.shape, source.shape[1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "RowsOfClass":
        return RowsOfClass(self.y.expand(batch_shape), self.source)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        y = self.y.expand(torch.Size(sample_shape) + self.batch_shape)
        return self.source[dist.Categorical(self.source.T[y]).sample()]  # (*, C)

    def log_prob(self, value: Tensor) -> Tensor:
        odds = log_odds(value, self.source)  # (*, C)
        shape = torch.broadcast_shapes(odds.shape[:-1], self.y.shape)
        y = self.y.expand(shape).unsqueeze(-1)
        return odds.expand(*shape, -1).gather(-1, y).squeeze(-1)


def log_odds(x: Tensor, source: Tensor) -> Tensor:
    r"""Returns :math:`\log r_y / \bar r_y`, `(*, C)`: the density of a row in each class."""
    return x.log() - source.mean(0).log()


def check_probabilities(x: Tensor, num_classes: int | None, where: str) -> None:
    """Raises unless rows are probabilities of classes.

    Raises:
        TypeError: If they are no tensor of floating-point numbers.
        ValueError: If there is not one for each class, or they do not sum to 1.
    """
    wanted = x.shape[1] if num_classes is None and isinstance(x, Tensor) and x.ndim == 2 else 0
    check_rows(x, num_classes or wanted, where)
    wrong = ~((x >= 0).all(1) & ((x.sum(1) - 1).abs() < 1e-3))
    if wrong.any() or not len(x):
        raise ValueError(
            f"{where}: expected probabilities of the classes, 0 or more, that sum to 1 in each "
            f"row, got {int(wrong.sum())} of {len(x)} rows of other numbers. Try .softmax(1) for "
            f"logits, classifier.conditional(x).probs, or predict_proba(x) of scikit-learn."
        )
