r"""A map of Shakespeare's words, by the company they keep.

    python examples/word_map.py --data-root data           # TinyShakespeare, some minutes

Each word of a text is hidden in turn, and foreseen from the four words on either side:

    PL(x) = prod_i p(x_i | x_(i-4), ..., x_(i-1), x_(i+1), ..., x_(i+4))

Nothing but the text teaches the word vectors, and yet words of one kind end side by side. The
evidence is a pseudo-likelihood, and says so. The map of the most frequent words is t-SNE's,
of the angles between their vectors; the second picture shows what is foreseen where a word of
lines that were made up is hidden.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import MaskedWords, Vocabulary, elbo, fit, log_evidence
from ppl_models.datasets import tiny_shakespeare
from ppl_models.embeddings.neighbours import Neighbours
from ppl_models.metrics import trustworthiness

LENGTH = 64
LINES = (
    "the king is dead , and i am thy friend",
    "my lord , what news from the duke of york ?",
    "i pray thee , good sir , come to the house of my father",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data", help="the folder with TinyShakespeare")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, help="how many rows of 64 words to learn from")
    parser.add_argument("--words", type=int, default=220, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    train, test = tiny_shakespeare(args.data_root)
    vocabulary = Vocabulary.of([train], min_count=5)
    x, x_test = (rows(vocabulary.encode([part])[0]) for part in (train, test))
    print(f"{len(train)} words to learn from, {len(test)} to test, {len(vocabulary)} known\n")

    torch.manual_seed(args.seed)
    network = Neighbours(len(vocabulary))
    model = MaskedWords(len(vocabulary), LENGTH, network)
    options = {"schedule": CosineAnnealingLR, "seed": args.seed}
    fit(elbo(model), x[: args.rows], epochs=args.epochs, batch_size=8, lr=2e-3, **options)
    evidence = log_evidence(model, None, x_test, batch_size=32)
    print(f"test rows of {LENGTH} words: {evidence}")
    print(f"perplexity of a hidden word: {math.exp(-evidence.mean / LENGTH):.1f}\n")

    shown = frequent(vocabulary, args.words)
    vectors = unit(network, shown)
    for word in ("king", "is", "my", "come", "father"):
        print(f"near {word!r}: {', '.join(near(word, vocabulary, network))}")
    angles = (1 - vectors @ vectors.T).clamp(min=0).fill_diagonal_(0)
    place = layout(angles, args.seed)
    print(f"\nmap of {len(place)} words: trustworthiness {trustworthiness(angles, place, 10):.3f}")

    names = [vocabulary.words[i - 1] for i in shown.tolist()]
    figures = {"map": draw_map(names, place, vectors), "hidden": draw_hidden(vocabulary, network)}
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"words-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def rows(x: Tensor) -> Tensor:
    return x[: len(x) // LENGTH * LENGTH].view(-1, LENGTH)


def frequent(vocabulary: Vocabulary, count: int) -> Tensor:
    """The numbers of the most frequent words, without marks and what is not known."""
    known = [i for i, word in enumerate(vocabulary.words, 1) if word[0].isalpha()]
    return torch.tensor(known[:count])


@torch.no_grad()
def unit(network: Neighbours, numbers: Tensor) -> Tensor:
    """Word vectors of length 1, around the mean of all."""
    every = network.vectors.weight[1:]
    return torch.nn.functional.normalize(network.vectors.weight[numbers] - every.mean(0), dim=1)


def near(word: str, vocabulary: Vocabulary, network: Neighbours, count: int = 6) -> list[str]:
    """The words whose vectors are nearest by their angle, of the thousand most frequent ones."""
    some = frequent(vocabulary, 1000)
    own = unit(network, torch.tensor([vocabulary.numbers[word]]))
    order = (unit(network, some) @ own[0]).argsort(descending=True)
    words = vocabulary.decode(some[order])
    return [other for other in words if other != word][:count]


def layout(angles: Tensor, seed: int) -> Tensor:
    found = TSNE(
        metric="precomputed", init="random", perplexity=12, early_exaggeration=20, random_state=seed
    )
    return torch.from_numpy(found.fit_transform(angles.numpy()))


@torch.no_grad()
def foreseen(vocabulary: Vocabulary, network: Neighbours, line: str) -> Tensor:
    """Probabilities of all words at each place of a line, (L, V)."""
    return network(vocabulary.encode([line.split()])).softmax(-1)[0]


def draw_map(names: list[str], place: Tensor, vectors: Tensor) -> Figure:
    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots()
    kinds = KMeans(10, n_init=10, random_state=0).fit_predict(vectors.numpy())
    axes.plot(*place.T, ",", alpha=0)
    for name, at, kind in zip(names, place.tolist(), kinds, strict=True):
        axes.text(*at, name, color=f"C{kind}", ha="center", va="center", fontsize=9)
    axes.set(xticks=[], yticks=[])
    figure.suptitle("Words of Shakespeare by the company they keep; colours: k-means of vectors")
    return figure


def draw_hidden(vocabulary: Vocabulary, network: Neighbours, best: int = 4) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    figure.suptitle("What is foreseen where a word is hidden; dark: likely")
    for axes, line in zip(figure.subplots(len(LINES), 1), LINES, strict=True):
        words = line.split()
        p, order = foreseen(vocabulary, network, line).topk(best)  # (L, best)
        axes.imshow(p.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, (numbers, shares) in enumerate(zip(order + 1, p.tolist(), strict=True)):
            for j, word in enumerate(vocabulary.decode(numbers)):
                dark = "w" if shares[j] > 0.6 else "k"
                weight = "bold" if word == words[i] else "normal"
                axes.text(i, j, word, ha="center", va="center", color=dark, weight=weight)
        axes.set_xticks(range(len(words)), words)
        axes.set(yticks=[])
        axes.xaxis.tick_top()
    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
