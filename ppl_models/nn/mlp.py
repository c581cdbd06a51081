"""A multilayer perceptron."""

from collections.abc import Callable, Sequence

from torch import nn


class MLP(nn.Sequential):
    r"""Linear layers with a non-linearity between them.

    .. math:: o = W_{n} f(\dots f(W_1 x + b_1) \dots) + b_n

    Arguments:
        num_inputs: The length of the last dimension of the input.
        num_outputs: The length of the last dimension of the output.
        hidden: The width of each hidden layer.
        activation: The non-linearity, a module without arguments.
        dropout: The probability with which a hidden unit is dropped in training.

    Example:
        >>> import torch
        >>> MLP(64, 16, hidden=(32,))(torch.zeros(5, 64)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (128, 128),
        activation: Callable[[], nn.Module] = nn.Tanh,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(num_inputs, width), activation()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            num_inputs = width
        super().__init__(*layers, nn.Linear(num_inputs, num_outputs))
