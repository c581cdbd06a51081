"""Whether the steps to come are the programs' own, or blocks of compiled code."""

from functools import partial

from torch import Tensor

from ppl_models.infer.compiled.graph import CHANGES
from ppl_models.infer.compiled.watch import holds
from ppl_models.infer.compiled.worth import LEAST, Operations, pays
from ppl_models.infer.training.batches import Batch, Chosen, Source
from ppl_models.infer.training.blocks import blocks_of
from ppl_models.infer.training.progress import Progress

ONE_BY_ONE = "steps on such data, or of such an objective, come one by one"
SEVERAL = "steps of several processes come one by one"


class Choice:
    """Takes the single steps of a run, and decides with `compile="auto"` what those to come are.

    Arguments:
        progress: Where the run is.
        train: Its rows.
        whole_epochs: Whether a block must end with an epoch.
    """

    def __init__(self, progress: Progress, train: Source, whole_epochs: bool) -> None:
        self.progress, self.descent = progress, progress.descent
        self._made = partial(blocks_of, progress, train, whole_epochs)
        self.blocks = self._made()
        # Whether it may still come to compiled steps, and why it does not.
        self.undecided = progress.settings["compile"] == "auto" and progress.eager_because is None
        self.eager_because = progress.eager_because
        self.act()

    def step(self, batch: Batch | Chosen, total: int) -> dict[str, Tensor]:
        """Takes a step, and decides by its counts whether those to come are compiled."""
        if not self.undecided or self.descent.step_number == 0:  # which has checks of its own
            return self.descent.step(batch)
        kept = [entry for compiled in self.descent.compiled for entry in compiled.watch()]
        with Operations() as found:
            losses = self.descent.step(batch)
        to_come = total - self.descent.step_number
        if not holds(kept):  # nothing is tried with a program that counts
            self._stay_eager(CHANGES)
        elif pays(to_come, found.count, found.arithmetic):
            self.progress.compiled_since = self.descent.step_number
        else:
            counts = f"{to_come} steps to come of {found.count} operations"
            self._stay_eager(f"{counts} are not worth a compilation")
        return losses

    def look_ahead(self, total: int) -> None:
        """Leaves steps as they are that no count of operations could make worth it."""
        to_come, device = total - self.descent.step_number, self.descent.device.type
        if self.undecided and device != "cpu":
            self._stay_eager(f"steps on the device {device} are compiled by compile=True alone")
        elif self.undecided and self.descent.exchange is not None:
            self._stay_eager(SEVERAL)
        elif self.undecided and to_come <= LEAST:
            self._stay_eager(f"{to_come} steps to come are not worth a compilation")

    def _stay_eager(self, reason: str) -> None:
        self.undecided, self.eager_because = False, reason

    def act(self) -> None:
        """Goes on compiled, where that was just decided: the step is recorded by now."""
        if self.undecided and self.progress.compiled_since is not None:
            self._compile()

    def _compile(self) -> None:
        """Goes on by blocks of compiled steps, as far as there are any, without a warning."""
        self.undecided, self.descent.compile = False, True
        for compiled in self.descent.compiled:
            compiled.quiet = True
        self.blocks = self._made()
        if self.blocks is None:
            self._give_up(ONE_BY_ONE if self.descent.exchange is None else SEVERAL)

    def give_up_closed(self) -> None:
        """Goes on without compiled code where it was found to be none of the program."""
        if self.progress.compiled_since and self.blocks is not None and not self.blocks.open:
            reasons = [compiled.reason for compiled in self.descent.compiled]
            self._give_up(str(next(filter(None, reasons), self.blocks.loop.refused)))

    def why_eager(self) -> str | None:
        """Why the last steps were the programs' own, of a run that was to be compiled."""
        if self.eager_because is not None or not self.descent.compile:
            return self.eager_because
        return next(filter(None, (compiled.reason for compiled in self.descent.compiled)), None)

    def _give_up(self, reason: str) -> None:
        self.descent.compile, self.blocks = False, None
        self.progress.compiled_since, self.progress.eager_because = None, reason
        self._stay_eager(reason)
