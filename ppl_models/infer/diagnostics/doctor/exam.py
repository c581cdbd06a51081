"""Runs of a model and its guide to be looked at, each with the lines of its statements."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.infer.diagnostics.doctor.finding import Finding, from_text, program_of
from ppl_models.infer.diagnostics.doctor.lines import Lines
from ppl_models.infer.programs.checks import noting_batch
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.rows import Rows
from ppl_models.infer.programs.sites import random_sites
from ppl_models.infer.trials.independence import Pair
from ppl_models.scoped import modes, own_rng
from ppl_models.user_line import call_of, statement_of

ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, NotImplementedError)


class Exam:
    """A model and its guide on a batch, and what was found so far.

    Arguments:
        model: The model.
        guide: Its guide.
        batch: Some rows.
        size: The number of rows in all.
    """

    def __init__(
        self, model: Program, guide: Program, batch: tuple[Tensor, ...], size: int
    ) -> None:
        self.model, self.guide, self.batch, self.size = model, guide, batch, size
        self.lines = {"model": Lines(), "guide": Lines()}
        self.findings: list[Finding] = []

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of both, by name."""
        return {
            f"{program.name}.{name}".rstrip("."): module
            for program in (self.model, self.guide)
            for name, module in program.modules().items()
        }

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """A context in which runs leave nothing behind, but the parameters of a first one."""
        with (
            own_rng("doctor", 0, self.batch[0].device),
            modes(self.modules.values(), training=False),
            pyro.validation_enabled(False),
        ):
            yield

    def rows(self, count: int | None = None) -> Rows:
        """A handler that says which rows the first so many of the batch are."""
        count = len(self.batch[0]) if count is None else count
        whole = len(self.batch[0]) == self.size
        known = torch.arange(count, device=self.batch[0].device) if whole else None
        return Rows(known, self.size, count)

    def run(self, count: int | None = None) -> Pair:
        """The traces of both, on the first so many rows."""
        guide = self.trace(self.guide, count=count)
        return Pair(self.trace(self.model, guide, count), guide)

    def trace(
        self, program: Program, given: poutine.Trace | None = None, count: int | None = None
    ) -> poutine.Trace:
        """A trace of one program, with latents that are given, or its own."""
        batch = tuple(x[:count] for x in self.batch)
        run: Callable[..., Any] = self.lines[program.name](program)
        run = run if given is None else poutine.replay(run, trace=given)
        with self.rows(count), noting_batch(batch), program.noticing(), torch.no_grad():
            return poutine.trace(run).get_trace(*batch, size=self.size)

    def tries(self, program: Program, given: poutine.Trace | None = None) -> poutine.Trace | None:
        """A trace of one program, or None, where it takes note of the error that it ends in."""
        try:
            return self.trace(program, given)
        except Exception as error:  # whatever a program does
            place = call_of(error.__traceback__)
            text = str(error).partition("\n")[0].removeprefix(f"{place}: ")
            known = text.startswith(("site ", f"{program.name}: "))
            text = (
                text if known else f"{program.name}: it fails with {type(error).__name__}: {text}"
            )
            self.note(text, program.name, statement_of(error.__traceback__))
            return None

    def asks(self, check: Callable[..., Any], *args: Any, program: str = "") -> bool:
        """Takes note of what a check raises; returns whether it did.

        Arguments:
            check: What raises an error where something is wrong.
            args: Its arguments.
            program: The program that it is about, `"model"` or `"guide"`, if one.
        """
        try:
            check(*args)
        except ERRORS as error:
            self.note(str(error), program, statement_of(error.__traceback__))
            return True
        return False

    def asks_of_each(self, check: Callable[..., Any], trace: poutine.Trace, *args: Any) -> None:
        """Asks of each site of a trace by itself, as checks end at the first."""
        program = args[0] if args and args[0] in self.lines else "model"
        for site in random_sites(trace):
            alone = poutine.Trace()
            alone.add_node(site["name"], **site)
            self.asks(check, alone, *args, program=program)

    def note(self, text: str, program: str = "", line: str | None = None) -> None:
        """Takes note of something that is wrong, once."""
        found = from_text(text)
        line = self._line(found.site, program or program_of(text)) or line
        found = Finding(found.what, found.site, line, found.expected, found.got, found.remedy)
        if found not in self.findings:
            self.findings.append(found)

    def line(self, name: str, program: str) -> str | None:
        """Where the statement of a name is."""
        return self.lines[program].found.get(name)

    def _line(self, site: str | None, program: str | None) -> str | None:
        """Where a site is: in its program, or in the first of both that has it."""
        programs = [program, "model", "guide"] if program else ["model", "guide"]
        return next(filter(None, (self.line(site, p) for p in programs)), None) if site else None

    @property
    def seen(self) -> set[str | None]:
        """The sites about which something was found."""
        return {found.site for found in self.findings}
