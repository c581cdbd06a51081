r"""Whether an adaptation is better than none, by the evidence of target rows that have no labels.

For the principal components :math:`Z` of the rows of the target and any labels :math:`Y` of them

.. math:: \log p(Z \mid \mathrm{source}) \ge \log p(Z, Y \mid \mathrm{source}),

a lower bound, in closed form, that is the higher the more probable the labels are: a method that
labels the target is a guide for them. The densities are those of `class_evidence`. They do not
change from method to method, as the evidence that a method maximises itself does: that one rises
by its very fit, and says nothing of labels.

Labels that part the rows well, other than by class, have a high evidence too: groups of their own,
one of two classes, say, and half of another under its name. Two witnesses of the source are asked.
Its labels, which are known: those of the target should tell them back, see `told_back`. And the
shares `s` of its classes, which methods other than label shift take to be those of the target, too:
labels should not depart from them, in nats per label,

.. math:: \mathrm{KL}(s' \,\|\, s) = \sum_c s'_c \log (s'_c / s_c)

Shapes: `N` rows of the target, `M` rows of the source, `D` features, `C` classes.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ppl_models.adaptation.class_evidence import class_evidence
from ppl_models.adaptation.coral import check_without_labels
from ppl_models.adaptation.reverse import told_back
from ppl_models.checks import check_finite, check_labels, check_rows
from ppl_models.prompt.lines import in_words
from ppl_models.user_line import warn

WHERE = "compare_labels"
# Standard errors that tell better from worse: many, as a method has chosen labels with the rows in
# view, and they fit these better than others like them.
ERRORS = 3


@dataclass(frozen=True)
class LabelComparison:
    """What `compare_labels` finds: log evidences, in nats per row of the target.

    Attributes:
        before: That of the rows with the labels of the source's classifier.
        after: That of the rows with the labels of the adapted one.
        standard_error: The error of the difference, as one over other rows like these.
        told_back: By how much better those after tell the labels of the source, in nats per label.
        told_back_error: The error of that.
        departed: By how much further their shares of classes are from those of the source, in nats
            per label.
        changed: How many rows have another label.
        num_rows: The number of rows, `N`.
        kind: `"lower bound"`, of the log evidence of the rows without labels.

    Example:
        >>> import torch
        >>> y = torch.arange(200) % 2
        >>> source = y[:, None] + 0.2 * torch.randn(200, 1), y
        >>> target = y[:, None] + 0.4 + 0.2 * torch.randn(200, 1)
        >>> before, after = (target[:, 0] > 0.5).long(), (target[:, 0] > 0.9).long()
        >>> found = compare_labels(target, before=before, after=after, source=source)
        >>> found.after > found.before, found.num_rows
        (True, 200)
    """

    before: float
    after: float
    standard_error: float
    told_back: float
    told_back_error: float
    departed: float
    changed: int
    num_rows: int
    kind: str = "lower bound"

    __repr__ = in_words

    @property
    def difference(self) -> float:
        """By how much the labels after it are better, in nats per row."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """`"better"` or `"worse"`, each by three standard errors of the evidence.

        They are no better where they tell the labels of the source worse by three, or have shares
        of classes further from those of the source. Else `"undecided"`, or `"unchanged"` where all
        labels are as before.
        """
        if not self.changed:
            return "unchanged"
        if self.difference < -ERRORS * self.standard_error:
            return "worse"
        told = self.told_back >= -ERRORS * self.told_back_error
        better = self.difference > ERRORS * self.standard_error and told and self.departed <= 0
        return "better" if better else "undecided"

    def __str__(self) -> str:
        return (
            f"log evidence of {self.num_rows} target rows by their labels, {self.kind}: "
            f"{self.before:.3f} nats per row before, {self.after:.3f} after, {self._found()}: "
            f"{self.verdict} ({self.changed} labels changed)"
        )

    def _found(self) -> str:
        return (
            f"a difference of {self.difference:+.3f} ± {self.standard_error:.3f}; labels of the "
            f"source are told back {self.told_back:+.3f} ± {self.told_back_error:.3f} nats better; "
            f"shares of classes are {self.departed:+.3f} nats further from those of the source"
        )


def compare_labels(
    target: Tensor, *, before: Tensor, after: Tensor, source: tuple[Tensor, Tensor]
) -> LabelComparison:
    r"""Compares labels of target rows before and after an adaptation, without knowing them.

    Those after it are better if the evidence of the rows is higher with them by three standard
    errors. They must not tell the labels of the source worse by as many, nor have shares of classes
    further from those of the source. It warns of all others: an adaptation that is worse than none,
    or cannot be told from it. Small gains are warned of as well.

    It is no proof: groups that are no classes may pass, too, if they are as many and as large.
    Where it is known that the shares of classes changed, as `LabelShift` takes them to, labels that
    follow are warned of as well: see `difference` and `told_back` then.

    Arguments:
        target: Rows of the target, `(N, D)`.
        before: The labels that a classifier of the source gives them, `(N,)`.
        after: Those of the adapted one.
        source: Rows of the source as they were before any map, `(M, D)`, and their labels.

    Raises:
        TypeError: If rows come with labels, or are no floating-point numbers.
        ValueError: If shapes or classes do not fit, numbers are not finite, or all rows of the
            source are the same.

    Example:
        >>> import torch
        >>> y = torch.arange(200) % 2
        >>> source = y[:, None] + 0.2 * torch.randn(200, 1), y
        >>> target = y[:, None] + 0.4 + 0.2 * torch.randn(200, 1)
        >>> before, after = (target[:, 0] > 0.5).long(), (target[:, 0] > 0.9).long()
        >>> compare_labels(target, before=before, after=after, source=source).verdict
        'better'
    """
    rows, labels, num_classes = _checked(target, source)
    for y, name in ((before, "before"), (after, "after")):
        check_labels(y, num_classes, len(target), f"{WHERE}, {name}", on_any_device=True)
    first, second = (
        class_evidence(target, y.long(), (rows, labels), num_classes) for y in (before, after)
    )
    back = [told_back(target, y.long(), (rows, labels), num_classes) for y in (before, after)]
    found = LabelComparison(
        before=first.total.item() / len(target),
        after=second.total.item() / len(target),
        standard_error=_error(second.rows - first.rows),
        told_back=(back[1] - back[0]).mean().item(),
        told_back_error=_error(back[1] - back[0]),
        departed=(_departure(after, labels, num_classes) - _departure(before, labels, num_classes)),
        changed=int((before != after).sum()),
        num_rows=len(target),
    )
    if found.verdict in ("worse", "undecided"):
        warn(_warning(found))
    return found


def _checked(target: Tensor, source: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, int]:
    """The rows and the labels of the source, and the number of classes."""
    check_without_labels(target, f"{WHERE}, target")
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise TypeError(
            f"{WHERE}, source: expected rows and their labels, got {type(source).__name__}. Try "
            f"source=(x, y)."
        )
    rows, labels = source
    num_features = target.shape[1] if isinstance(target, Tensor) and target.ndim == 2 else 0
    check_rows(target, num_features, f"{WHERE}, target")
    check_rows(rows, num_features, f"{WHERE}, source")
    check_finite(target, f"{WHERE}, target", minimum=2)
    check_finite(rows, f"{WHERE}, source", minimum=2)
    if bool((rows == rows[0]).all()):
        raise ValueError(
            f"{WHERE}, source: expected rows that differ, got {len(rows)} that are all the same."
        )
    num_classes = int(labels.max()) + 1 if isinstance(labels, Tensor) and labels.numel() else 1
    check_labels(labels, max(num_classes, 1), len(rows), f"{WHERE}, source", on_any_device=True)
    return rows, labels.long(), num_classes


def _departure(y: Tensor, labels: Tensor, num_classes: int) -> float:
    """How far the shares of classes are from those of the source, in nats per label."""
    own, source = (
        (known.long().bincount(minlength=num_classes).double() + 1) / (len(known) + num_classes)
        for known in (y, labels)
    )
    return (own * (own / source).log()).sum().item()


def _error(differences: Tensor) -> float:
    return differences.std().item() / math.sqrt(len(differences))


def _warning(found: LabelComparison) -> str:
    worse = (
        "worse than none" if found.verdict == "worse" else "not better than none, as far as told"
    )
    return (
        f"{WHERE}: the adaptation is {worse}: the log evidence of the target rows by their labels "
        f"is {found.before:.3f} nats per row without it, {found.after:.3f} with it, "
        f"{found._found()}. Try the labels before it, a stronger ridge or a weaker weight, or rows "
        f"that are cropped and scaled alike."
    )
