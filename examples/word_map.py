r"""
A map of Shakespeare's words
============================

Can words be told apart by the company they keep, if nothing but the text is known?

Each word of a text is hidden in turn, and predicted from the four words on either side:

.. math::
    \mathrm{PL}(x) = \prod_i p(x_i \mid x_{i-4}, \dots, x_{i-1}, x_{i+1}, \dots, x_{i+4})

Nothing else teaches the vectors of the words, and yet words of one kind end side by side. What is
raised is a pseudo-likelihood [1]_, which is no density of rows, and says so.

Takes 2 minutes on two cores, and needs data, TinyShakespeare:
``python examples/word_map.py --data-root data``. Pictures go into ``outputs/``.

.. [1] Statistical Analysis of Non-Lattice Data (Besag, 1975), https://doi.org/10.2307/2987782
"""

# %%
# The text
# --------
# Rows are 64 words long, one after the other. A word that occurs fewer than five times is unknown.

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import MaskedWords, Vocabulary, elbo, fit, log_evidence
from ppl_models.datasets import tiny_shakespeare
from ppl_models.embeddings.neighbours import Neighbours
from ppl_models.metrics import trustworthiness

parser = argparse.ArgumentParser(description="A map of Shakespeare's words.")
parser.add_argument("--data-root", default="data", help="the folder with TinyShakespeare")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--rows", type=int, help="how many rows of 64 words to learn from")
parser.add_argument("--test-rows", type=int, help="how many rows to test with")
parser.add_argument("--words", type=int, default=220, help="how many are drawn")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

LENGTH = 64

try:
    train, test = tiny_shakespeare(args.data_root)
except FileNotFoundError as error:  # no data: one line says where they should be
    raise SystemExit(f"error: {error}") from None
vocabulary = Vocabulary.of([train], min_count=5)
x, x_test = (
    numbers[: len(numbers) // LENGTH * LENGTH].view(-1, LENGTH)
    for numbers in (vocabulary.encode([part])[0] for part in (train, test))
)
print(f"{len(train)} words to learn from, {len(test)} to test, {len(vocabulary)} known")

# %%
# The fit
# -------
# The network has a vector for each word, and a matrix for each of the eight places around a hidden
# one: what is predicted is linear in the vectors of its neighbours.

torch.manual_seed(args.seed)
network = Neighbours(len(vocabulary))
model = MaskedWords(len(vocabulary), LENGTH, network)
fit(
    elbo(model),
    x[: args.rows],
    epochs=args.epochs,
    batch_size=8,
    lr=2e-3,
    schedule=CosineAnnealingLR,
    seed=args.seed,
)
evidence = log_evidence(model, None, x_test[: args.test_rows], batch_size=32)
print(f"test rows of {LENGTH} words: {evidence}")
print(f"perplexity of a hidden word: {math.exp(-evidence.mean / LENGTH):.1f}")

# %%
# The perplexity is how many words, all equally likely, would be as hard to predict as the hidden
# one. A guess among all known words has some three thousand.
#
# Which words are near
# --------------------
# The angle between two vectors says how alike the company of their words is.


def frequent(count):
    """The numbers of the most frequent words, without marks and what is not known."""
    known = [i for i, word in enumerate(vocabulary.words, 1) if word[0].isalpha()]
    return torch.tensor(known[:count])


@torch.no_grad()
def directions(numbers):
    """Word vectors of length 1, around the mean of all."""
    every = network.vectors.weight[1:]
    return torch.nn.functional.normalize(network.vectors.weight[numbers] - every.mean(0), dim=1)


some = frequent(1000)
for word in ("king", "is", "my", "come", "father"):
    own = directions(torch.tensor([vocabulary.numbers[word]]))
    order = (directions(some) @ own[0]).argsort(descending=True)
    near = [other for other in vocabulary.decode(some[order]) if other != word][:6]
    print(f"near {word!r}: {', '.join(near)}")

# %%
# The map
# -------
# t-SNE puts words whose vectors have a small angle side by side. Its axes have no meaning; colours
# are groups of vectors that k-means finds, and tell nothing that the places do not.

# sphinx_gallery_thumbnail_path = '_static/gallery/word_map-thumb.png'
shown = frequent(args.words)
vectors = directions(shown)
angles = (1 - vectors @ vectors.T).clamp(min=0).fill_diagonal_(0)
layout = TSNE(
    metric="precomputed",
    init="random",
    perplexity=12,
    early_exaggeration=20,
    random_state=args.seed,
)
place = torch.from_numpy(layout.fit_transform(angles.numpy()))
print(f"map of {len(place)} words: trustworthiness {trustworthiness(angles, place, 10):.3f}")

figure, axes = plt.subplots(figsize=(10, 8))
kinds = KMeans(7, n_init=10, random_state=0).fit_predict(vectors.numpy())
axes.plot(*place.T, ",", alpha=0)
for name, at, kind in zip(vocabulary.decode(shown), place.tolist(), kinds, strict=True):
    axes.text(*at, name, color=f"C{kind}", ha="center", va="center", fontsize=9)
axes.set(xticks=[], yticks=[], title="Words of Shakespeare by the company they keep")
axes.spines[:].set_visible(False)
figure.savefig(args.outdir / "words-map.png")

# %%
# What is predicted
# -----------------
# In lines that were made up each word is hidden in turn. The four most likely words of each place
# stand below it, dark where they are likely, bold where one is the word itself.

LINES = (
    "the king is dead , and i am thy friend",
    "my lord , what news from the duke of york ?",
    "i pray thee , good sir , come to the house of my father",
)

figure, panels = plt.subplots(len(LINES), 1, figsize=(10, 6))
for axes, line in zip(panels, LINES, strict=True):
    words = line.split()
    with torch.no_grad():
        p, order = network(vocabulary.encode([words])).softmax(-1)[0].topk(4)  # (L, 4)
    axes.imshow(p.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, (numbers, shares) in enumerate(zip(order + 1, p.tolist(), strict=True)):
        for j, word in enumerate(vocabulary.decode(numbers)):
            color = "w" if shares[j] > 0.6 else "k"
            weight = "bold" if word == words[i] else "normal"
            style = {"color": color, "weight": weight, "fontsize": 8}
            axes.text(i, j, word, ha="center", va="center", **style)
    axes.set_xticks(range(len(words)), words)
    axes.set(yticks=[])
    axes.xaxis.tick_top()
figure.suptitle("What is predicted where a word is hidden; dark: likely")
figure.savefig(args.outdir / "words-hidden.png")

# %%
# What it printed
# ---------------
# Here is what this script printed with the whole text, and its map. Names, auxiliary verbs, verbs,
# pronouns and prepositions each have a place of their own, and so have kin and titles.
#
# .. code-block:: text
#
#     228233 words to learn from, 25360 to test, 3099 known
#     test rows of 64 words: log evidence -242.928 ± 1.351 nats per row,
#     pseudo-likelihood (of each feature given all others: no density of
#     rows), 5.4761 bits/dim
#     perplexity of a hidden word: 44.5
#     near 'king': prince, duke, dead, grace, here, queen
#     near 'is': was, were, hath, has, says, lies
#     near 'my': thy, his, your, our, the, this
#     near 'come': go, look, speak, live, stand, now
#     near 'father': son, mother, lady, brother, friends, lord
#     map of 220 words: trustworthiness 0.935
#
# .. image:: /_static/gallery/word_map.png
#     :alt: A map of 220 words, with names, verbs, pronouns and so on in groups

# %%
# To try next
# -----------
# - ``BagOfNeighbours`` forgets the order of the neighbours: what does that cost, in nats?
# - :class:`ppl_models.AnyOrderWords` has the same network and a bound on the log evidence of whole
#   rows: :doc:`/families/embeddings`.
