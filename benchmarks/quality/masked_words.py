"""Words of TinyShakespeare, each given those around it: with their places, and as a bag.

python -m benchmarks.quality.masked_words --data-root ../shared/data

Protocol: 40000 lines, small letters, marks are words; the first 90 % of the words to learn from,
the last tenth to test. Words that come 5 times or more in the first part are known, all others are
one word, "<unk>". Rows are 64 words in a row; a word at the end of a row sees fewer neighbours.
Perplexity is the exponential of minus the log pseudo-likelihood in nats per word: words on both
sides are given, so that it does not compare with that of a model from left to right. Widths,
dropout and rates were chosen on the last tenth of the first part. One thread.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import Evidence, MaskedWords, Vocabulary, elbo, fit, log_evidence
from ppl_models.datasets import tiny_shakespeare
from ppl_models.embeddings.neighbours import BagOfNeighbours, Neighbours, SelfMaskedTransformer

LENGTH = 64
EPOCHS = {"neighbours": 8, "bag": 4, "transformer": 6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--models", nargs="+", default=list(EPOCHS))
    parser.add_argument("--epochs", type=int, help="default: of each model its own")
    parser.add_argument("--checkpoint", type=Path, help="a folder, to go on after a stop")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    words, test_words = tiny_shakespeare(args.data_root)
    vocabulary = Vocabulary.of([words], min_count=5)
    x, x_test = (vocabulary.encode([part])[0] for part in (words, test_words))
    share = (x_test == vocabulary.numbers["<unk>"]).double().mean()
    print(f"TinyShakespeare: {len(x)} words to learn from, {len(x_test)} to test")
    print(f"vocabulary {len(vocabulary)} words, {share:.1%} of the test others (one of them)")
    print(f"unigram perplexity {unigram(x, x_test, len(vocabulary)):.1f}\n")
    print(f"{'':14}{'perplexity':>12}{'error':>8}{'seconds':>9}")
    for name in args.models:
        run(name, rows(x), rows(x_test), len(vocabulary), args)


def unigram(x: Tensor, x_test: Tensor, num_words: int) -> float:
    share = x.bincount(minlength=num_words + 1).double() / len(x)
    return math.exp(-share[x_test].log().mean())


def rows(x: Tensor) -> Tensor:
    """As many rows as there are whole ones."""
    return x[: len(x) // LENGTH * LENGTH].view(-1, LENGTH)


def network(name: str, num_words: int) -> nn.Module:
    if name == "bag":
        return BagOfNeighbours(num_words)
    return Neighbours(num_words) if name == "neighbours" else SelfMaskedTransformer(num_words, 64)


def run(name: str, x: Tensor, x_test: Tensor, num_words: int, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model = MaskedWords(num_words, LENGTH, network(name, num_words))
    began = time.perf_counter()
    fit(
        elbo(model),
        x,
        epochs=args.epochs or EPOCHS[name],
        batch_size=8,
        lr=2e-3,
        schedule=CosineAnnealingLR,
        seed=args.seed,
        checkpoint=args.checkpoint and args.checkpoint / name,
        resume=args.checkpoint is not None,
        progress=False,
    )
    seconds = time.perf_counter() - began
    evidence = log_evidence(model, None, x_test, batch_size=32)
    perplexity, error = of_words(evidence)
    print(f"{name:14}{perplexity:>12.2f}{error:>8.2f}{seconds:>9.0f}   {evidence}", flush=True)


def of_words(evidence: Evidence) -> tuple[float, float]:
    """Perplexity, and its error over rows."""
    perplexity = math.exp(-evidence.mean / LENGTH)
    return perplexity, perplexity * evidence.standard_error / LENGTH


if __name__ == "__main__":
    main()
