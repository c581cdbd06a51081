r"""Networks of rows that are tiled: each row goes through them once, whatever the number of draws.

`K` draws of `R` rows run as `K * R` rows. A network that is given these rows and nothing else, such
as an encoder, gives each row `K` times the same:

.. math:: f(x_1, \dots, x_R, x_1, \dots, x_R, \dots) = (f(x)_1, \dots, f(x)_R, f(x)_1, \dots)

where it treats rows one by one, and draws nothing. It is then run on `R` rows, and what it gives is
tiled. That it is so is not assumed: some draws are made in both ways, with the same random numbers,
and must be the same and leave the generators alike. A network that drops units, normalises by its
batch or samples sites is found by this, and runs on all rows.

Shapes: `K` draws of `R` rows.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ppl_models.infer.programs.program import Program
from ppl_models.scoped import get_rng_state, set_rng_state

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative
Places = tuple[int, ...]  # of arguments among the data


class Once:
    """Runs the networks of some programs once for each row, where only draws differ.

    Arguments:
        programs: What runs.
    """

    def __init__(self, *programs: Program) -> None:
        roots = [root for program in programs for root in program.modules().values()]
        owners = {id(program.owner) for program in programs}
        every = {id(m): m for root in roots for m in root.modules() if id(m) not in owners}
        self.modules = list(every.values())
        self.used: dict[int, nn.Module] = {}  # those that were given rows
        self.refused = False  # whether one gave something else than rows
        self._outputs: dict[tuple[int, Places], Any] = {}
        self._name: Hashable = None  # of the rows that these are of

    def forget(self) -> None:
        """Parameters may have moved, or other rows come."""
        self._outputs.clear()

    @contextmanager
    def given(
        self, tiled: tuple[Tensor, ...], rows: tuple[Tensor, ...], name: Hashable = None
    ) -> Iterator[None]:
        """A context for programs that are called with rows.

        Arguments:
            tiled: What they are called with, `(K * R, *)`.
            rows: The rows, `(R, *)`.
            name: Says which rows they are.
        """
        if name != self._name:
            self.forget()
            self._name = name
        with ExitStack() as stack:
            for module in self.modules:
                stack.enter_context(self._replaced(module, tiled, rows))
            yield

    @contextmanager
    def _replaced(
        self, module: nn.Module, tiled: tuple[Tensor, ...], rows: tuple[Tensor, ...]
    ) -> Iterator[None]:
        own = vars(module).get("forward")
        vars(module)["forward"] = partial(self._run, module, module.forward, tiled, rows)
        try:
            yield
        finally:
            vars(module).pop("forward")
            if own is not None:
                vars(module)["forward"] = own

    def _run(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        tiled: tuple[Tensor, ...],
        rows: tuple[Tensor, ...],
        *given: Any,
        **others: Any,
    ) -> Any:
        places = [next((n for n, y in enumerate(tiled) if y is x), None) for x in given]
        if not given or others or None in places:
            return forward(*given, **others)
        which = tuple(n for n in places if n is not None)
        key, count = (id(module), which), len(tiled[0]) // len(rows[0])
        if key not in self._outputs:
            before = _random_state()
            self._outputs[key] = forward(*(rows[n] for n in which))
            if _random_state() != before:  # noise that is switched on later: each draw has its own
                self._outputs[key] = None
        outputs = self._outputs[key]
        if not _are_rows(outputs, len(rows[0])):
            self.refused = True
            return forward(*given)
        self.used[id(module)] = module
        return _tiled(outputs, count)

    def holds(self, draw: Callable[[bool], Tensor], device: torch.device) -> bool:
        """Whether draws are the same in both ways; from then on only the networks used count.

        Arguments:
            draw: Makes some draws, with these networks run once if it is told so.
            device: Where it draws.
        """
        if not self.modules:
            return False
        before = get_rng_state(device)
        try:
            alike = self._is_alike(draw, before, device)
        except Exception:  # whatever a program does whose network is no function of rows
            alike = False
        finally:
            set_rng_state(before, device)
            self.forget()
        self.modules = list(self.used.values())
        return alike and not self.refused and bool(self.modules)

    def _is_alike(
        self, draw: Callable[[bool], Tensor], before: dict[str, Tensor], device: torch.device
    ) -> bool:
        ours = draw(True)
        if not self.used or self.refused:
            return False
        left = get_rng_state(device)
        set_rng_state(before, device)
        whole = draw(False)
        kinds = {p.dtype for module in self.used.values() for p in module.parameters()}
        tolerance = max((TOLERANCE.get(kind, 1e-2) for kind in kinds), default=1e-9)
        return _same(left, get_rng_state(device)) and torch.allclose(
            ours, whole, tolerance, tolerance, equal_nan=True
        )


def _random_state() -> bytes:
    """Where torch's generator on the CPU stands, also while a program is traced."""
    with _disable_current_modes():
        return torch.get_rng_state().numpy().tobytes()


def training_modes(modules: Iterable[nn.Module]) -> tuple[bool, ...]:
    """Which modules, and those in them, train."""
    return tuple(m.training for root in modules for m in root.modules())


def _are_rows(outputs: Any, count: int) -> bool:
    """Whether something is made of tensors with an entry for each row."""
    if isinstance(outputs, (tuple, list)):
        return type(outputs) in (tuple, list) and all(_are_rows(x, count) for x in outputs)
    return type(outputs) is Tensor and outputs.dim() > 0 and len(outputs) == count


def _tiled(outputs: Any, count: int) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.repeat(count, *[1] * (outputs.dim() - 1))
    return type(outputs)(_tiled(x, count) for x in outputs)


def _same(states: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(state, others[kind]) for kind, state in states.items())
