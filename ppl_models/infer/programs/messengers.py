r"""Guides that run their model, as `AutoNormalMessenger` does: what is theirs, and what is not.

.. math::
    q(z) = \prod_i q_i(z_i \mid z_{<i})

A messenger guide runs its model on the data, and gives each latent another distribution on the
way. What the model observes meanwhile is no factor of the guide, and is hidden from whoever looks
at it. The model finds the parameters that it has elsewhere, the guide its own.

References:
    | https://docs.pyro.ai/en/stable/infer.autoguide.html#effect-autoguides
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro import poutine
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger

from ppl_models.infer.programs.own import running
from ppl_models.infer.programs.pyro_internals import (
    active_handlers,
    registered_parameters,
    run_model_as,
)
from ppl_models.infer.programs.rows import Rows

_REPLAYED = "_replayed"
_TRY = "Try the rows it was fitted to, or an amortised guide, which takes any."


class Statements(Messenger):
    """A handler around the model of a messenger guide, which tells its statements from the guide's.

    The guide's come while a site of the model is on its way to the guide. They run in the store
    of the guide, if it has one, and its parameters of single rows are checked to be of those.

    Arguments:
        guide: The guide.
        takes_size: Whether its model has an argument `size`. One without may draw rows of its own.
    """

    def __init__(self, guide: GuideMessenger, takes_size: bool) -> None:
        super().__init__()
        self.guide, self.takes_size = guide, takes_size
        self.depth = 0
        self.elsewhere: dict | None = None  # the state of the other store

    def swap(self) -> None:
        """Puts the other store in place of the one that is."""
        if self.elsewhere is not None:
            store = pyro.get_param_store()
            here = store.get_state()
            store.clear()
            store.set_state(self.elsewhere)
            self.elsewhere = here

    def __exit__(self, *error: Any) -> None:
        if self.depth:  # an error on the way
            self.depth = 0
            self.swap()
        super().__exit__(*error)

    def _pyro_sample(self, message: dict) -> None:
        if not self.depth:
            self.swap()
            if message["is_observed"]:
                message["infer"] = {**(message["infer"] or {}), _REPLAYED: True}
        self.depth += 1

    def _pyro_post_sample(self, message: dict) -> None:
        self.depth -= 1
        if not self.depth:
            self.swap()

    def _pyro_post_param(self, message: dict) -> None:
        event_dim = message["kwargs"].get("event_dim")
        frame = next((f for f in message["cond_indep_stack"] if f.name == "data"), None)
        if not self.depth or event_dim is None or frame is None:
            return
        shape, dim = message["value"].shape, frame.dim - event_dim
        held, size = shape[dim] if len(shape) >= -dim else 1, frame.full_size or frame.size
        if held == 1 and not self._is_of_rows(message["name"]):
            return
        if held != size:
            raise ValueError(f"{self._has(held)}, but there are {size} in all. {_TRY}")
        told = any(isinstance(handler, Rows) for handler in active_handlers())
        if self.takes_size and frame.size != size and not told:
            raise ValueError(
                f"{self._has(held)}, and was called with {frame.size} rows that it cannot place. "
                f"{_TRY}"
            )

    def _has(self, held: int) -> str:
        kind = type(self.guide).__name__
        return f"{kind}: it has parameters for each of {held} rows"

    def _is_of_rows(self, name: str) -> bool:
        """Whether a parameter is one that the autoguide made for each row, if only for one."""
        guide = self.guide
        if not isinstance(guide, AutoMessenger) or "data" in guide.amortized_plates:
            return False
        return name in registered_parameters(guide)


@contextmanager
def guide_alone(
    guide: GuideMessenger, model: Callable[..., Any], statements: Statements, has_store: bool
) -> Iterator[None]:
    """A context in which a messenger guide shows what it draws, not what its model observes.

    Arguments:
        guide: The guide.
        model: What it runs as its model, with `statements` around it.
        statements: Tells the statements of the model from those of the guide.
        has_store: Whether the guide runs in a store of its own.
    """

    def inside(*args: Any, **kwargs: Any) -> Any:
        if not has_store:
            return model(*args, **kwargs)
        statements.elsewhere = running[-1].suspended
        statements.swap()
        try:
            return model(*args, **kwargs)
        finally:
            statements.swap()
            running[-1] = running[-1]._replace(suspended=statements.elsewhere)
            statements.elsewhere = None

    with run_model_as(guide, inside), poutine.block(hide_fn=_is_replayed):
        yield


def _is_replayed(site: dict) -> bool:
    return site["type"] == "sample" and bool((site["infer"] or {}).get(_REPLAYED))
