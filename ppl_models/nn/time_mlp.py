r"""Networks that are told how noisy their input is, and perhaps its label.

.. math::
    e(\lambda) = (\sin f_1 \lambda, \dots, \sin f_K \lambda,
    \cos f_1 \lambda, \dots, \cos f_K \lambda)

is the embedding of a log-SNR :math:`\lambda`. In training a share of the labels is left out: one
network learns with them and without, as guidance needs it.

Shapes: `B` rows, `D` inputs, `K` frequencies, `E` the length of an embedding.

References:
    | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), on labels
    | https://arxiv.org/abs/2207.12598
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ppl_models.nn.mlp import MLP


class TimeEmbedding(nn.Module):
    r"""Sines and cosines of a log-SNR, at frequencies from 0.1 to 3.

    Arguments:
        num_outputs: The length of the embedding, even.

    Raises:
        ValueError: If it is odd.

    Example:
        >>> TimeEmbedding(8)(torch.zeros(5)).shape
        torch.Size([5, 8])
    """

    frequencies: Tensor  # f, (K,)

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        if num_outputs < 2 or num_outputs % 2:
            raise ValueError(f"TimeEmbedding: expected an even length, got {num_outputs}.")
        frequencies = torch.logspace(-1, 0.5, num_outputs // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)  # f, (K,)

    def forward(self, log_snr: Tensor) -> Tensor:
        angles = log_snr[:, None].to(self.frequencies.dtype) * self.frequencies  # (B, K)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Condition(nn.Module):
    """What a network is told beside its input: a log-SNR and, where there are classes, a label.

    Arguments:
        num_outputs: The length of the embedding, `E`, even.
        num_classes: The number of labels; 0 for a network that takes none.
        left_out: The share of labels left out in training.

    Raises:
        ValueError: If a number makes no sense.

    Example:
        >>> Condition(8, num_classes=10)(torch.zeros(5), torch.arange(5)).shape
        torch.Size([5, 8])
    """

    def __init__(self, num_outputs: int, num_classes: int = 0, left_out: float = 0.1) -> None:
        super().__init__()
        if num_classes < 0 or not 0 <= left_out <= 1:
            raise ValueError(
                f"Condition: expected a number of classes, or 0, and a share of labels to leave "
                f"out, got num_classes={num_classes} and left_out={left_out}."
            )
        embedding = TimeEmbedding(num_outputs)
        self.time = nn.Sequential(embedding, nn.Linear(num_outputs, num_outputs), nn.SiLU())
        self.num_classes, self.left_out = num_classes, left_out
        if num_classes:
            self.labels = nn.Embedding(num_classes + 1, num_outputs)  # the last: not known

    def forward(self, log_snr: Tensor, y: Tensor | None = None) -> Tensor:
        time = self.time(log_snr)  # (B, E)
        if self.num_classes == 0:
            if y is not None:
                raise ValueError("labels: the network takes none. Try num_classes=10.")
            return time
        unknown = torch.full((len(time),), self.num_classes, device=time.device)
        if y is None:
            y = unknown
        elif self.training and self.left_out > 0:
            y = torch.where(torch.rand(len(y), device=y.device) < self.left_out, unknown, y)
        return time + self.labels(y)


class TimeMLP(nn.Module):
    r"""A multilayer perceptron on a noisy row and the embedding of its log-SNR.

    Arguments:
        num_inputs: The length of a row, `D`.
        num_outputs: The length of the output.
        hidden: The width of each hidden layer.
        activation: The non-linearity, a module without arguments.
        num_times: The length of the embedding, even.
        num_classes: The number of labels that it may be told, or 0.

    Example:
        >>> TimeMLP(64, 64)(torch.zeros(5, 64), torch.zeros(5)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (128, 128),
        activation: Callable[[], nn.Module] = nn.SiLU,
        num_times: int = 16,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.condition = Condition(num_times, num_classes)
        self.body = MLP(num_inputs + num_times, num_outputs, hidden, activation)

    def forward(self, x: Tensor, log_snr: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(torch.cat([x, self.condition(log_snr, y)], 1))
