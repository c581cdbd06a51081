"""Data sets, real ones only: images, sentences, ratings of films, graphs, distances of cities."""

from ppl_models.datasets.cities import eurodist
from ppl_models.datasets.films import MovieLens, movielens

# Hints of types, which are no use at a prompt.
from ppl_models.datasets.images import Binarize as Binarize
from ppl_models.datasets.images import Folder as Folder
from ppl_models.datasets.images import Labelled as Labelled
from ppl_models.datasets.images import Part as Part
from ppl_models.datasets.images import (
    binarize,
    binary_mnist,
    digits,
    fashion_mnist,
    mnist,
)
from ppl_models.datasets.networks import Network, football, karate
from ppl_models.datasets.planetoid import Citations, planetoid
from ppl_models.datasets.semeion import boxed, cropped, semeion
from ppl_models.datasets.sentences import Sentences, sst2, tiny_shakespeare, trec

__all__ = [
    "Citations",
    "MovieLens",
    "Network",
    "Sentences",
    "binarize",
    "binary_mnist",
    "boxed",
    "cropped",
    "digits",
    "eurodist",
    "fashion_mnist",
    "football",
    "karate",
    "mnist",
    "movielens",
    "planetoid",
    "semeion",
    "sst2",
    "tiny_shakespeare",
    "trec",
]


def __dir__() -> list[str]:
    return __all__
