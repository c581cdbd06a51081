"""Of the rows: whether each counts as it should, whichever are beside it, and masks alike."""

from contextlib import suppress

import torch

from ppl_models.infer.diagnostics.doctor.exam import Exam
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.trials.independence import Pair, Trial, named_rows
from ppl_models.infer.trials.masks import follow_masks


def examine(exam: Exam, traces: Pair) -> None:
    """Takes note of plates that do not count rows, of rows that are not independent, of masks."""
    _examine_plates(exam, traces)
    whole = len(exam.batch[0]) == exam.size
    known = torch.arange(exam.size, device=exam.batch[0].device) if whole else None
    trial = Trial(exam.model, exam.guide, exam.batch, known, exam.size)
    if not named_rows(*traces, len(exam.batch[0])):
        _examine_independence(exam, trial, traces)
    exam.asks(follow_masks, exam.model, exam.guide, traces, trial, len(exam.batch[0]), True)


def _examine_plates(exam: Exam, traces: Pair) -> None:
    """Looks at half of the rows, which count twice each, in programs that take them.

    A model without an argument `size` is one of the whole data, unless the batch is a part of them.
    """
    rows = len(exam.batch[0])
    half = rows if rows < exam.size else rows // 2
    if not half or (rows == exam.size and not exam.model.takes_size):
        return
    some = traces
    if half < rows:
        try:
            some = exam.run(half)
        except Exception:  # whatever a program does that takes all its rows at once
            return
    takes_size, counted = exam.model.takes_size, checks.of_rows(traces.model)
    exam.asks(checks.check_scaling, some.model, half, exam.size, takes_size, program="model")
    for trace, program in zip(some, ("model", "guide"), strict=True):
        exam.asks_of_each(checks.check_plates, trace, program, half, exam.size, takes_size, counted)


def _examine_independence(exam: Exam, trial: Trial, traces: Pair) -> None:
    """Looks at rows beside others and in another order, in programs that take them."""
    found = None
    with suppress(Exception):  # as above
        found = trial.of_parts()
    for trace, program in zip(traces, ("model", "guide"), strict=True):
        for site in filter(sites.in_data_plate, sites.random_sites(trace)):
            if site["name"] not in exam.seen and found == f"site {site['name']!r} of the {program}":
                exam.note(
                    f"{found}: the log-density of a row depends on the other rows of its batch, "
                    f"on how many there are or on their order. Expected rows that are independent, "
                    f"as the plate 'data' promises. Try what a row needs to know of the others as "
                    f"a tensor beside it, data=(x, covariate), or a plate of another name.",
                    program,
                )
