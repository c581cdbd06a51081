"""Numbers that are followed through a program while it is traced.

A graph has the value of a number written into it, and not where it came from. So for a trace
numbers that change take the place of those of the program, floats that know how they came about:
what is computed from one is one again, with its formula; what is compared, or read in any other
way, is noted as a condition. Under other numbers the same graph stands for the program where the
conditions come out as they did, with what the formulas give in place of its constants.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

# A number by its place, a constant, or an operation and what it is of.
Formula = int | float | tuple[Any, ...]

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
SIGNS = ("neg", "pos", "abs")
# What gives something else than a number that can be followed further.
OTHER = (
    *("__float__", "__int__", "__trunc__", "__floor__", "__ceil__", "__round__", "__hash__"),
    *("__str__", "__repr__", "__format__", "__divmod__", "__rdivmod__"),
    *("as_integer_ratio", "conjugate", "hex", "is_integer"),
)


class Condition(NamedTuple):
    """What a program asked, and the answer."""

    formula: Formula
    answer: Any


class Constant(NamedTuple):
    """A number in a formula that is always the same."""

    value: float


class Record:
    """What became of numbers in a trace."""

    def __init__(self) -> None:
        self.formulas: dict[Formula, float] = {}  # and what they gave
        self.conditions: list[Condition] = []
        self.open = True

    def follow(self, value: float, formula: Formula) -> "Followed":
        """A number that stands for the value of a formula."""
        self.formulas[formula] = value
        number = Followed(value)
        number.formula, number.record = formula, self
        return number

    def ask(self, formula: Formula, answer: Any) -> None:
        """Takes note of a question, and of its answer."""
        if self.open:
            self.conditions.append(Condition(formula, answer))


class Followed(float):
    """A float that knows how it came about."""

    __slots__ = ("formula", "record")
    formula: Formula
    record: Record
    __array_ufunc__ = None  # NumPy would read it unseen

    def fix(self) -> float:
        """Its value, which is from now on a condition."""
        value = float.__float__(self)
        self.record.ask(self.formula, value)
        return value

    @property
    def real(self) -> float:
        return self.fix()

    @property
    def imag(self) -> float:
        return self.fix() * 0.0

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("an array of numbers that are followed")

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (self.fix(),)

    def __bool__(self) -> bool:
        answer = float.__bool__(self)
        self.record.ask((operator.truth, self.formula), answer)
        return answer


def value_of(formula: Formula, numbers: Sequence[float]) -> Any:
    """What a formula gives for numbers."""
    if isinstance(formula, int):
        return numbers[formula]
    if isinstance(formula, Constant):
        return formula.value
    assert isinstance(formula, tuple)
    return formula[0](*(value_of(part, numbers) for part in formula[1:]))


def _formula(value: Any) -> Formula:
    return value.formula if isinstance(value, Followed) else Constant(value)


def _plain(value: Any) -> Any:
    return float.__float__(value) if isinstance(value, Followed) else value


def _result(operation: Callable[..., Any], record: Record, *values: Any) -> Any:
    """What an operation gives: a number that is followed on, or the answer to a question."""
    result = operation(*map(_plain, values))
    formula = (operation, *map(_formula, values))
    if type(result) is float and record.open:
        return record.follow(result, formula)
    record.ask(formula, result)
    return result


def _binary(operation: Callable[..., Any], reflected: bool) -> Callable[..., Any]:
    def method(self: Followed, other: Any) -> Any:
        if type(other) not in (float, int, bool, Followed):
            if not isinstance(other, Tensor):  # which reads it where the trace shows it
                self.fix()
            return NotImplemented
        values = (other, self) if reflected else (self, other)
        return _result(operation, self.record, *values)

    return method


def _unary(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: _result(operation, self.record, self)


def _other(name: str) -> Callable[..., Any]:
    return lambda self, *rest: getattr(self.fix(), name)(*rest)


for _name in ARITHMETIC:
    setattr(Followed, f"__{_name}__", _binary(getattr(operator, _name), reflected=False))
    setattr(Followed, f"__r{_name}__", _binary(getattr(operator, _name), reflected=True))
for _name in COMPARISONS:
    setattr(Followed, f"__{_name}__", _binary(getattr(operator, _name), reflected=False))
for _name in SIGNS:
    setattr(Followed, f"__{_name}__", _unary(getattr(operator, _name)))
for _name in OTHER:
    setattr(Followed, _name, _other(_name))
