r"""Domain-adversarial training: features that tell the label of a row and not its domain.

.. math::
    \min_{f, W} \max_{g} \; \mathbb{E}_{\mathrm{labelled}}[-\log p(y \mid f(x))]
    - \lambda \, \mathbb{E}[-\log p_g(d \mid f(x))]

A second classifier `g`, the critic, reads the domain off the features. It lowers its loss; the
gradient that goes on to the features is reversed, and times :math:`\lambda`, so that they raise
it. In the end it knows but the shares of the domains: :math:`\log 2` nats for two of one size.

Rows have no density, and so the target no evidence: whether the labels are better than those of the
source alone, `compare_labels` tells.

Shapes: `B` rows, `D` features of a row, `H` features found, `C` classes, `S` domains.

References:
    | Domain-Adversarial Training of Neural Networks (Ganin et al., 2016)
    | https://arxiv.org/abs/1505.07818
"""

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppl_models.checks import check_at_least, check_labels, check_positive
from ppl_models.infer.objectives.objective import Objective
from ppl_models.nn import MLP
from ppl_models.supervised.classifier import Classifier

UNKNOWN = -1
WHERE = "domain_adversarial"


class DomainAdversarial(Classifier):
    r"""A classifier with a critic that reads the domain off its features.

    It is a `Classifier`: `conditional(x)` and `predict(x)` know nothing of the domain.
    `fit(domain_adversarial(model), (x, y, d))` trains both.

    Arguments:
        num_features, num_classes, num_hidden, network: As in `Classifier`.
        num_domains: The number of domains, `S`.
        critic: A module from `(B, H)` to `(B, S)`. Default: a multilayer perceptron with a hidden
            layer of 128.

    Example:
        >>> model = DomainAdversarial(num_features=64, num_classes=10)
        >>> model.predict(torch.zeros(5, 64)).shape, model.domain(torch.zeros(5, 64)).shape
        (torch.Size([5]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_domains: int = 2,
        num_hidden: int = 64,
        network: nn.Module | None = None,
        critic: nn.Module | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, num_hidden, network)
        check_at_least(2, num_domains=num_domains)
        self.num_domains = num_domains
        self.critic = MLP(num_hidden, num_domains, (128,), nn.ReLU) if critic is None else critic

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        y: Tensor | None = None,
        d: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Scores labels `y` of rows `x`; with domains `d` there is no density: an error."""
        if d is not None:
            self.evidence()
        return super().forward(x, y, size)

    def domain(self, x: Tensor) -> Tensor:
        """Returns what the critic makes of rows, the logits of their domains, `(B, S)`."""
        return self.critic(self.features(x))

    def evidence(self) -> NoReturn:
        """Raises: there is none, and this says why.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "DomainAdversarial: rows of a target have no density, and so no evidence: labels alone "
            "have one, given the rows. Try log_evidence(model, None, x, y) of the source, "
            "compare_labels(x, ...) of the target, or DomainVAE, which has one of both."
        )


def reverse(x: Tensor, weight: float) -> Tensor:
    """The identity, whose gradient is reversed, and times a weight; of what a trace can hold."""
    return x.detach() - weight * (x - x.detach())


def domain_adversarial(model: DomainAdversarial, weight: float = 1.0) -> "Confusion":
    r"""The loss of the labels and that of the critic, whose gradient is reversed, as an objective.

    Data are `(x, y, d)`: rows, their labels, -1 where they are not known, and their domains, 0 for
    the source. It is no evidence and no bound on one. `run.history` has the loss of the critic
    under `"critic"`, in nats per row.

    Arguments:
        model: The classifier and its critic.
        weight: That of the reversed gradient, :math:`\lambda`.

    Raises:
        TypeError: If `model` has no critic.
        ValueError: If the weight is not positive.

    Example:
        >>> from ppl_models.infer.training.fit import fit
        >>> x, d = torch.randn(40, 4), torch.arange(40) % 2
        >>> y = torch.where(d == 0, (x[:, 0] > 0).long(), -1)  # of the source alone
        >>> run = fit(domain_adversarial(DomainAdversarial(4, 2)), (x, y, d), epochs=3, seed=0)
        >>> sorted(run.history)
        ['critic', 'domain_adversarial']
    """
    return Confusion(model, weight)


class Confusion(Objective):
    """The objective that `domain_adversarial` returns."""

    name = "domain_adversarial"

    def __init__(self, model: DomainAdversarial, weight: float) -> None:
        if not isinstance(model, DomainAdversarial):
            raise TypeError(
                f"{WHERE}: expected a classifier with a critic of domains, got "
                f"{type(model).__name__}. Try DomainAdversarial(num_features, num_classes)."
            )
        check_positive(weight=weight)
        self.classifier, self.weight = model, weight
        self.reports: dict[str, Tensor] = {}

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        x, y, d = batch
        features = self.classifier.features(x)
        logits = self.classifier.head(features)
        known = y != UNKNOWN
        nats = cross_entropy(logits, y.clamp(min=0).long(), reduction="none")
        labels = (nats * known).sum() / known.sum().clamp(min=1)
        domains = self.classifier.critic(reverse(features, self.weight))
        critic = cross_entropy(domains, d.long())
        self.reports = {"critic": critic.detach()}
        return labels + critic

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        if len(batch) != 3:
            raise ValueError(
                f"{WHERE}: expected rows, labels and domains, got {len(batch)} tensors. Try "
                f"fit(objective, (x, y, d)), with labels of -1 where they are not known."
            )
        x, y, d = data or batch
        check_domains(d, self.classifier.num_domains, len(x), WHERE)
        known = y.where(y != UNKNOWN, y.new_zeros(()))
        check_labels(known, self.classifier.num_classes, len(x), WHERE, on_any_device=True)
        _check_target(y, d)
        with torch.no_grad():
            self.loss(*batch, size=size)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.classifier.named_parameters()

    def modules(self) -> dict[str, nn.Module]:
        return {"classifier": self.classifier}

    def blame(self, *batch: Tensor, size: int) -> str:
        with torch.no_grad():
            found = self.classifier.features(batch[0])
        bad = int((~found.isfinite()).any(1).sum())
        return f"the features of {bad} of {len(found)} rows are not finite"


def check_domains(d: Tensor, num_domains: int, num_rows: int, where: str) -> None:
    """Raises unless there is a domain for each row, and rows of more than one."""
    check_labels(d, num_domains, num_rows, f"{where}, domains", on_any_device=True)
    if len(d.unique()) < 2:
        raise ValueError(
            f"{where}: expected rows of the source, domain 0, and of a target, got rows of domain "
            f"{int(d[0])} alone. Try torch.cat([source, target]) of rows, labels and domains."
        )


def _check_target(y: Tensor, d: Tensor) -> None:
    """Raises where labels of the target are passed, which are not used, or none of the source."""
    passed = (y != UNKNOWN) & (d != 0)
    if passed.any():
        raise ValueError(
            f"{WHERE}: expected no labels of the target, which are not used, got "
            f"{int(passed.sum())} of {int((d != 0).sum())} rows with one. Try "
            f"y.where(d == 0, -1); where target labels are known, DomainVAE learns from them."
        )
    if not ((y != UNKNOWN) & (d == 0)).any():
        raise ValueError(
            f"{WHERE}: expected labels of the source, domain 0, got none: all are -1. Try d == 0 "
            f"for the rows whose labels are known."
        )
