"""What an object is, in a line: the arguments that it was made with, as far as it keeps them.

An argument that an object keeps is an attribute of the same name, as in scikit-learn. Required ones
are said, others where they are not the default. Networks and programs are said by their class, of
which there are trees: `torch.nn.Module.__repr__(vae)` is that of a model.
"""

from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

NOT_KEPT = object()
LONG = 60  # letters of a value that is shortened
FEW = 10  # numbers of a tensor that are said


def in_a_line(self: Any) -> str:
    """The `__repr__` of models, guides, likelihoods and priors.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import FactorAnalysis
        >>> FactorAnalysis(num_features=5, num_factors=2)
        FactorAnalysis(num_features=5, num_factors=2, 19 free parameters)
        >>> AmortizedNormal(num_features=64, num_latents=8)
        AmortizedNormal(num_features=64, num_latents=8, encoder=MLP, 26,896 parameters)
    """
    said = []
    for name, parameter in signature(type(self)).parameters.items():
        value = getattr(self, name, NOT_KEPT)
        if _counts(value, parameter.default):
            said.append(f"{name}={shortened(value)}")
    return f"{type(self).__name__}({', '.join([*said, *_parameters(self)])})"


def in_words(self: Any) -> str:
    """The `__repr__` of results: the first words of what they print."""
    first = str(self).partition("\n")[0].partition(";")[0]
    return f"{type(self).__name__}({first})"


def shortened(value: Any) -> str:
    """A value in a few letters: its own, or its class, or how much it holds."""
    if isinstance(value, Tensor):
        return _numbers(value)
    if isinstance(value, (list, tuple, dict)) and len(value) > FEW:
        return f"{type(value).__name__} of {len(value):,}"
    if isinstance(value, tuple) and any(isinstance(x, Tensor) for x in value):
        return f"({', '.join(map(shortened, value))})"
    if isinstance(value, nn.Module) and not hasattr(value, "num_outputs"):  # unlike a likelihood
        return type(value).__name__
    text = "\n" if isinstance(value, type) else repr(value)
    if "\n" in text or " at 0x" in text or len(text) > LONG:
        return getattr(value, "__name__", type(value).__name__)
    return text


def _numbers(x: Tensor) -> str:
    if x.dim() > 1 or x.numel() > FEW or x.is_meta:
        return f"tensor of {tuple(x.shape)}"
    texts = [f"{number:g}" for number in x.flatten().tolist()]
    return f"[{', '.join(texts)}]" if x.dim() else texts[0]


def _counts(value: Any, default: Any) -> bool:
    """Whether there is something to say of an argument."""
    if value is NOT_KEPT or value is None or isinstance(value, nn.Parameter):
        return False  # what is learned is counted
    if default is Parameter.empty or callable(value):
        return True
    if isinstance(value, Tensor):
        known = isinstance(default, (int, float)) and not value.is_meta
        return not known or not bool(((value - default).abs() <= 1e-6 * abs(default)).all())
    try:
        return bool(value != default)
    except Exception:  # arrays and frames, which compare their entries
        return True


def _parameters(self: Any) -> list[str]:
    """How many there are: free ones, where a model counts them, as for its BIC."""
    if not isinstance(self, nn.Module):
        return []
    free = getattr(self, "num_parameters", None)
    counted = isinstance(free, int)  # in a class of the user's it may be anything
    count = free if counted else sum(p.numel() for p in self.parameters() if not is_lazy(p))
    kind = "free parameter" if counted else "parameter"
    return [f"{count:,} {kind}{'' if count == 1 else 's'}"] if count else []
