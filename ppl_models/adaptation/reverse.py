r"""Reverse validation: how well labels of the target tell those of the source, which are known.

A softmax regression learns the labels that are proposed for the target, and is asked for those of
the source. Each domain is standardised by itself, so that an offset of one does not count. With the
share `1 - e` of what it says, and `e` for any class:

.. math:: \log \left( (1 - e) \, p(y_m \mid x_m) + e / C \right)

Shapes: `N` rows of the target, `M` rows of the source, `D` features, `C` classes.

References:
    | Cross Validation Framework to Choose amongst Models and Datasets for Transfer Learning
    | (Zhong et al., 2010), https://doi.org/10.1007/978-3-642-15939-8_35
"""

import numpy as np
import torch
from torch import Tensor

AT_RANDOM = 0.01  # e
VARIANCE = 0.1  # of the prior of a weight, for features of variance one


def told_back(target: Tensor, y: Tensor, source: tuple[Tensor, Tensor], num_classes: int) -> Tensor:
    """Returns the log probabilities of the labels of the source, `(M,)`, in nats.

    Arguments:
        target: Rows of the target, `(N, D)`.
        y: Labels that are proposed for them, `(N,)`.
        source: Rows, `(M, D)`, and their labels, `(M,)`.
        num_classes: The number of classes, `C`.

    Example:
        >>> y = torch.arange(20) % 2
        >>> x = y[:, None] + 0.1 * torch.randn(20, 1)
        >>> right, wrong = (told_back(x + 5, labels, (x, y), 2).mean() for labels in (y, 1 - y))
        >>> bool(right > wrong)
        True
    """
    from sklearn.linear_model import LogisticRegression  # here, because it is slow to import

    rows, known = source
    shares = torch.zeros(len(rows), num_classes, dtype=torch.float64)
    classes = y.unique().cpu()
    if len(classes) == 1:  # of which a regression learns nothing
        shares[:, classes] = 1.0
    else:
        model = LogisticRegression(C=VARIANCE, max_iter=1000, tol=1e-3)
        model.fit(_standardised(target), y.cpu().numpy())
        shares[:, classes] = torch.from_numpy(model.predict_proba(_standardised(rows))).double()
    mixed = (1 - AT_RANDOM) * shares + AT_RANDOM / num_classes
    return mixed.gather(1, known.cpu()[:, None])[:, 0].log()


def _standardised(x: Tensor) -> np.ndarray:
    """Rows whose features have mean 0 and, but for constant ones, variance 1, as an array."""
    rows = x.double().cpu()
    scale = rows.std(0, correction=0)
    return ((rows - rows.mean(0)) / scale.where(scale > 0, 1.0)).numpy()
