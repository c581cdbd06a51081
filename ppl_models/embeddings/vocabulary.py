"""Words and their numbers: what a row of words is made of.

Number 0 is no word at all: what is beyond the end of a sentence, or hidden. The words of a
vocabulary of `V` are numbered from 1 to `V`.

Shapes: `B` sentences, `L` words of the longest, `V` words known.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ppl_models.checks import check_count, listed
from ppl_models.prompt.lines import in_a_line

NO_WORD = 0


class Vocabulary:
    """The words that are known.

    Arguments:
        words: All of them, each once; the first is number 1.
        unknown: Which of them stands for any that is not known. Default: there is none, and a word
            that is not known is an error.

    Raises:
        ValueError: If there is no word, one comes twice, or `unknown` is none of them.

    Example:
        >>> vocabulary = Vocabulary.of([["to", "be"], ["not", "to", "be"]])
        >>> vocabulary.words
        ['<unk>', 'to', 'be', 'not']
        >>> vocabulary.encode([["to", "see"], ["to", "be", "not"]]).tolist()
        [[2, 1, 0], [2, 3, 4]]
    """

    __repr__ = in_a_line

    def __init__(self, words: Sequence[str], unknown: str | None = None) -> None:
        self.words, self.unknown = list(words), unknown
        self.numbers = {word: i for i, word in enumerate(self.words, 1)}
        if not self.words or len(self.numbers) < len(self.words):
            raise ValueError(
                f"Vocabulary: expected one word or more, each once, got {len(self.words)} of which "
                f"{len(self.words) - len(self.numbers)} came before. Try Vocabulary.of(sentences)."
            )
        if unknown is not None and unknown not in self.numbers:
            raise ValueError(
                f"Vocabulary: expected {unknown!r}, which is to stand for words that are not "
                f"known, among the words. Try Vocabulary([{unknown!r}, *words], {unknown!r})."
            )

    @classmethod
    def of(
        cls, sentences: Iterable[Sequence[str]], min_count: int = 1, unknown: str | None = "<unk>"
    ) -> "Vocabulary":
        """Makes one of the words of sentences, the most frequent first.

        Arguments:
            sentences: Lists of words.
            min_count: How often a word must come in them to be known.
            unknown: What stands for any other word; None for nothing.
        """
        check_count(min_count=min_count)
        counts = Counter(word for sentence in sentences for word in _checked(sentence))
        counts.pop(unknown or "", None)
        known = [word for word, count in counts.most_common() if count >= min_count]
        return cls(known if unknown is None else [unknown, *known], unknown)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.numbers

    def encode(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Returns the numbers of the words of sentences, `(B, L)`, with zeros after the last.

        Raises:
            TypeError: If a sentence is text instead of a list of words.
            ValueError: If a sentence is empty, or a word is not known and nothing stands for it.
        """
        empty = [i for i, sentence in enumerate(sentences) if len(_checked(sentence)) == 0]
        if empty or not sentences:
            raise ValueError(
                f"sentences: expected one or more, of one word or more each, got {len(empty)} of "
                f"{len(sentences)} without any (rows {listed(empty)}). Try leaving them out."
            )
        if self.unknown is None:
            self._check_known(sentences)
        other = self.numbers.get(self.unknown or "", NO_WORD)
        rows = torch.full((len(sentences), max(map(len, sentences))), NO_WORD)
        for row, sentence in zip(rows, sentences, strict=True):
            found = [self.numbers.get(word, other) for word in sentence]
            row[: len(found)] = torch.tensor(found)
        return rows

    def decode(self, row: Tensor) -> list[str]:
        """Returns the words of a row of numbers, without what is no word."""
        return [self.words[number - 1] for number in row.tolist() if number != NO_WORD]

    def _check_known(self, sentences: Sequence[Sequence[str]]) -> None:
        words = [word for sentence in sentences for word in sentence]
        strange = Counter(word for word in words if word not in self.numbers)
        if strange:
            some = ", ".join(repr(word) for word, _ in strange.most_common(3))
            raise ValueError(
                f"sentences: {strange.total()} of {len(words)} words ({len(strange)} different "
                f"ones) are not in the vocabulary of {len(self)}, such as {some}. Try "
                f"Vocabulary.of(sentences, unknown='<unk>'), whose unknown token stands for them."
            )


def ngrams(sentences: Iterable[Sequence[str]], most: int = 2) -> list[list[str]]:
    """Returns sentences as their words, and then their pairs of words, up to `most` in a row.

    The first word makes a pair with the beginning, `<s>`.

    Example:
        >>> ngrams([["who", "was", "Galileo"]])
        [['who', 'was', 'Galileo', '<s> who', 'who was', 'was Galileo']]
    """
    check_count(most=most)
    found = []
    for sentence in sentences:
        words = ["<s>", *_checked(sentence)] if len(sentence) else []
        pairs = [
            " ".join(words[i : i + n])
            for n in range(2, most + 1)
            for i in range(len(words) - n + 1)
        ]
        found.append([*words[1:], *pairs])
    return found


def _checked(sentence: Sequence[str]) -> Sequence[str]:
    if isinstance(sentence, str):
        raise TypeError(
            f"sentences: expected lists of words, got the text {sentence[:20]!r}, whose letters "
            f"would be its words. Try text.split()."
        )
    return sentence
