"""Questions by what they ask for: word vectors learned with labels, beside a logistic regression.

python -m benchmarks.quality.sentences --data-root ../shared/data

Protocol: TREC, 5452 questions to learn from and 500 to test, of 6 classes; small letters. Averaged
embeddings are of words and pairs of words (1-2-grams) in the questions to learn from; what the test
has beside them is left out. The text CNN sees single words. The logistic regression (scikit-learn,
C = 10) sees counts of 1-2-grams. The settings of the averaged embeddings were chosen by the nats of
five-fold cross-validation over the questions to learn from (`--folds 5` repeats it with others),
those of the others on a fifth of them. Evidence is exact: nats of a label given its question; the
error is that over questions.
"""

import argparse
import math
import time
from functools import partial

import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import SentenceClassifier, Vocabulary, elbo, fit, log_evidence, ngrams
from ppl_models.datasets import Sentences, trec
from ppl_models.embeddings.networks import AveragedWords, TextCNN

CLASSES = 6
SHORT = 7  # words or fewer, as most test questions have
WIDTH = {"averaged": 128, "CNN": 100}
# Adam moves a pair of words seen once, of gradients near 2e-5, as far as a word of every question
# (3e-3), and is soon sure of it. An `eps` between the two moves the rare ones less, as SGD would.
TRAINING = {
    "averaged": {
        "epochs": 15,
        "lr": 1.4e-2,
        "optimizer": partial(AdamW, eps=3e-5, weight_decay=0.2, fused=True),
    },
    "CNN": {"epochs": 8, "lr": 2e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["logistic", "averaged", "CNN"])
    parser.add_argument("--folds", type=int, help="cross-validate instead, without the test")
    args = parser.parse_args()
    train, test = (lowered(part) for part in trec(args.data_root))
    if args.folds:
        cross_validate(args.models, train, args.folds)
        return
    print(f"TREC: {len(train.words)} questions to learn from, {len(test.words)} to test\n")
    print(f"{'':12}{'seed':>4}{'right':>9}{'nats a question':>22}{'seconds':>9}")
    if "logistic" in args.models:
        show("logistic", logistic(train, test), test.y)
    for name in ("averaged", "CNN"):
        if name in args.models:
            report(name, [run(name, train, test, seed) for seed in range(args.seeds)], test.y)


def lowered(part: Sentences) -> Sentences:
    return Sentences([[word.lower() for word in words] for words in part.words], part.y)


def encoded(name: str, train: Sentences, test: Sentences) -> tuple[Tensor, Tensor, int]:
    """Rows of both parts, and how many words or pairs of them are known."""
    if name == "CNN":
        vocabulary = Vocabulary.of(train.words)
        parts = train.words, test.words
    else:
        pairs = ngrams(train.words), ngrams(test.words)
        vocabulary = Vocabulary.of(pairs[0])
        parts = tuple(
            [[w for w in words if w in vocabulary] or ["<unk>"] for words in part] for part in pairs
        )
    return vocabulary.encode(parts[0]), vocabulary.encode(parts[1]), len(vocabulary)


def run(name: str, train: Sentences, test: Sentences, seed: int) -> Tensor:
    """The log-probabilities of the classes of test questions, (N, C)."""
    x, x_test, num_words = encoded(name, train, test)
    torch.manual_seed(seed)
    width = WIDTH[name]
    network = TextCNN(width) if name == "CNN" else AveragedWords(width, 0.8, 0.0)
    model = SentenceClassifier(num_words, CLASSES, width, network)
    began = time.perf_counter()
    fit(
        elbo(model),
        (x, train.y),
        batch_size=100,
        **TRAINING[name],
        schedule=CosineAnnealingLR,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - began
    with torch.no_grad():
        logits = model.conditional(x_test).logits.double()
    right = score(logits, test.y)[0]
    evidence = log_evidence(model, None, x_test, test.y)
    value = f"{-evidence.mean:.4f} ± {evidence.standard_error:.4f}"
    print(f"{name:12}{seed:>4}{right:>9.1%}{value:>22}{seconds:>9.0f}", flush=True)
    return logits


def score(log_p: Tensor, y: Tensor) -> tuple[float, float]:
    """The share of questions in the right class, and nats a question."""
    right = (log_p.argmax(1) == y).double().mean().item()
    return right, -log_p.gather(1, y[:, None]).mean().item()


def report(name: str, found: list[Tensor], y: Tensor) -> None:
    right, nats = torch.tensor([score(log_p, y) for log_p in found]).double().unbind(1)
    spread = [x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan for x in (right, nats)]
    print(
        f"{name:12}mean{right.mean():>9.2%}{nats.mean():>13.4f}   (± {spread[0]:.2%}, "
        f"{spread[1]:.4f} over seeds; ± 1.3 % over questions)"
    )
    together = torch.stack(found).logsumexp(0) - math.log(len(found))
    right, nats = score(together, y)
    print(f"{name:12}{'all':>4}{right:>9.1%}{nats:>13.4f}   (the mean of their probabilities)\n")


def logistic(train: Sentences, test: Sentences) -> Tensor:
    """The peer's log-probabilities of the classes of test questions, (N, C)."""
    counts = CountVectorizer(analyzer=lambda words: words)
    x = counts.fit_transform(ngrams(train.words))
    peer = LogisticRegression(C=10.0, max_iter=1000).fit(x, train.y)
    return torch.from_numpy(peer.predict_log_proba(counts.transform(ngrams(test.words))))


def show(name: str, log_p: Tensor, y: Tensor) -> None:
    right, nats = score(log_p, y)
    print(f"{name:12}{'':4}{right:>9.2%}{nats:>13.4f}\n", flush=True)


def cross_validate(models: list[str], train: Sentences, folds: int) -> None:
    """Prints what models give held-out questions, and short ones of them, such as the test has."""
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(7))
    parts = [order[k::folds] for k in range(folds)]
    short = torch.tensor([len(words) <= SHORT for words in train.words])
    for name in models:
        log_p = torch.empty(len(train.y), CLASSES, dtype=torch.float64)
        for held in parts:
            rest = torch.ones(len(order), dtype=torch.bool).index_fill(0, held, False)
            seen, other = chosen(train, rest.nonzero()[:, 0]), chosen(train, held)
            found = logistic(seen, other) if name == "logistic" else run(name, seen, other, 0)
            log_p[held] = found.log_softmax(1)
        show(name, log_p, train.y)
        show(f"  {SHORT} words", log_p[short], train.y[short])


def chosen(part: Sentences, rows: Tensor) -> Sentences:
    return Sentences([part.words[i] for i in rows], part.y[rows])


if __name__ == "__main__":
    main()
