"""Tensors whose batches are made anew each time, such as binary images drawn from grey levels."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_models.prompt.lines import in_a_line


class Transformed:
    """Tensors in memory, and a function applied to each batch of them, anew each time.

    Arguments:
        tensors: Tensors with the same number of rows; arrays on disk (`numpy.memmap`) stay there.
        transform: A function from a batch of each to the batch that the program sees.

    Example:
        >>> import torch
        >>> images = torch.rand(100, 64)
        >>> train = Transformed(images, transform=torch.bernoulli)  # a fresh draw each epoch
        >>> len(train)
        100
    """

    __repr__ = in_a_line

    def __init__(self, *tensors: Tensor, transform: Callable[..., Any]) -> None:
        self.tensors = tensors
        self.transform = transform

    def __len__(self) -> int:
        return len(self.tensors[0])
