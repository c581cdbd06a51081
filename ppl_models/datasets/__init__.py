"""Data sets: handwritten digits, images of clothes and graphs, real ones only."""

from ppl_models.datasets.images import (
    Binarize,
    Folder,
    Labelled,
    Part,
    binarize,
    binary_mnist,
    digits,
    fashion_mnist,
    mnist,
)
from ppl_models.datasets.networks import Network, football, karate
from ppl_models.datasets.planetoid import Citations, planetoid

__all__ = [
    "Binarize",
    "Citations",
    "Folder",
    "Labelled",
    "Network",
    "Part",
    "binarize",
    "binary_mnist",
    "digits",
    "fashion_mnist",
    "football",
    "karate",
    "mnist",
    "planetoid",
]
