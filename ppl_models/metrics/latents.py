r"""How much of the labels a latent space holds: two classifiers that see the latents alone.

The `k` nearest neighbours ask whether like lies near like; the linear probe (logistic regression on
standardised latents) whether planes separate the classes.

Shapes: `N` rows, `K` latents.

References:
    | Understanding intermediate layers using linear classifier probes (Alain & Bengio, 2017)
    | https://arxiv.org/abs/1610.01644
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_models.metrics.rows import check_pair
from ppl_models.prompt.lines import in_words


@dataclass(frozen=True)
class LatentClassification:
    """The share of test rows whose label is found.

    Attributes:
        knn: By the `k` nearest neighbours.
        linear: By logistic regression.
        majority: By always naming the most frequent label: the floor.
        k: The neighbours asked.

    Example:
        >>> found = LatentClassification(knn=0.97, linear=0.95, majority=0.1, k=5)
        >>> print(found)  # doctest: +NORMALIZE_WHITESPACE
        test accuracy from latents: 97.0% by 5 nearest neighbours, 95.0% by a linear probe
        (always the same label: 10.0%)
    """

    knn: float
    linear: float
    majority: float
    k: int

    __repr__ = in_words

    def __str__(self) -> str:
        return (
            f"test accuracy from latents: {self.knn:.1%} by {self.k} nearest neighbours, "
            f"{self.linear:.1%} by a linear probe (always the same label: {self.majority:.1%})"
        )


def latent_classification(
    z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, k: int = 5
) -> LatentClassification:
    """Returns the test accuracy of classifiers trained on latents.

    Latents are standardised by the training rows. Pass posterior means, or rows for comparison.

    Arguments:
        z_train, z_test: Latents, `(N, K)`.
        y_train, y_test: Their labels, integers, `(N,)`.
        k: The neighbours asked.

    Raises:
        TypeError: If latents are not floating-point numbers, or labels no integers.
        ValueError: If lengths differ, there is one class only, or fewer rows than `k`.

    Example:
        >>> y = torch.arange(200) % 2
        >>> z = y[:, None] + 0.1 * torch.randn(200, 3)
        >>> result = latent_classification(z[:100], y[:100], z[100:], y[100:])
        >>> result.knn, result.linear, result.majority
        (1.0, 1.0, 0.5)
    """
    from sklearn.linear_model import LogisticRegression  # here, because it is slow to import
    from sklearn.neighbors import KNeighborsClassifier

    check_pair("latent_classification", 1, z_train=z_train, z_test=z_test)
    for name, y, z in (("y_train", y_train, z_train), ("y_test", y_test, z_test)):
        if not isinstance(y, Tensor) or y.is_floating_point():
            raise TypeError(f"latent_classification: expected {name} to be a tensor of integers.")
        if y.shape != z.shape[:1]:
            raise ValueError(
                f"latent_classification: expected one label for each of {len(z)} rows in {name}, "
                f"got {tuple(y.shape)}."
            )
    if not isinstance(k, int) or not 1 <= k <= len(z_train):
        raise ValueError(
            f"latent_classification: expected k from 1 to {len(z_train)} rows, got {k!r}."
        )
    if len(y_train.unique()) < 2:
        raise ValueError(
            "latent_classification: expected two classes or more in y_train, got one. "
            "Try rows in random order."
        )
    mean, scale = z_train.flatten(1).mean(0), z_train.flatten(1).std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    train, test = (
        ((z.detach().flatten(1) - mean) / scale).detach().cpu().double().numpy()
        for z in (z_train, z_test)
    )
    labels, truth = y_train.cpu().numpy(), y_test.cpu().numpy()
    most = y_train.mode().values
    return LatentClassification(
        knn=float(KNeighborsClassifier(k).fit(train, labels).score(test, truth)),
        linear=float(LogisticRegression(max_iter=5000).fit(train, labels).score(test, truth)),
        majority=(y_test == most.to(y_test.device)).double().mean().item(),
        k=k,
    )
