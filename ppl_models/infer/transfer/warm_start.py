r"""Parameters of an earlier fit as the start of another, by their names.

.. math:: \theta_i \leftarrow \theta'_i \quad \text{for each name } i \text{ that both have}

References:
    | How transferable are features in deep neural networks? (Yosinski et al., 2014)
    | https://arxiv.org/abs/1411.1792
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ppl_models.infer.programs.own import make_own
from ppl_models.infer.training.files import fill, module_tensors, read
from ppl_models.prompt.lines import in_words
from ppl_models.prompt.tables import table


@dataclass(frozen=True)
class WarmStart:
    """What a warm start took, and what not; it prints itself as a table.

    Attributes:
        taken: The shapes of the tensors that were taken, by name.
        kept: Those that the model keeps as they were, as the source has none of the name.
        left: Those of the source that the model has not.

    Example:
        >>> start = WarmStart(taken={"weight": (3, 2)}, kept={"bias": (3,)}, left={})
        >>> print(start)
        1 of 2 tensors taken
          weight  (3, 2)  taken
          bias    (3,)    kept, as from_ has none of this name
    """

    taken: dict[str, tuple[int, ...]]
    kept: dict[str, tuple[int, ...]]
    left: dict[str, tuple[int, ...]]

    __repr__ = in_words

    def _repr_html_(self) -> str:
        return table(["tensor", "shape", ""], self._rows(), above=self._head())

    def _head(self) -> str:
        return f"{len(self.taken)} of {len(self.taken) + len(self.kept)} tensors taken"

    def _rows(self) -> list[tuple[str, str, str]]:
        """What was done with each tensor, and why."""
        parts = (
            (self.taken, "taken"),
            (self.kept, "kept, as from_ has none of this name"),
            (self.left, "left, as the model has none of this name"),
        )
        return [(name, str(shape), why) for part, why in parts for name, shape in part.items()]

    def __str__(self) -> str:
        rows = self._rows()
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"  {name:{first}}  {shape:{second}}  {why}" for name, shape, why in rows]
        return "\n".join([self._head(), *lines])


def warm_start(model: nn.Module, from_: nn.Module | str | Path) -> WarmStart:
    """Fills a module with the tensors of another that have the same names.

    Buffers go along, such as the running means of batch normalisation. Either all that both have
    is taken, or, in an error, nothing.

    Arguments:
        model: The module to start: a model, a guide, or a part of one.
        from_: A module, or a file written by `save`. Of several modules in a file it is the one
            that has names in common.

    Raises:
        TypeError: If `model` or `from_` is neither.
        FileNotFoundError: If there is no such file.
        ValueError: If no name is in common, or a shape is another: both are listed then.

    Example:
        >>> import torch
        >>> old = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> new = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> print(warm_start(new, from_=old))
        2 of 4 tensors taken
          0.weight  (3, 2)  taken
          0.bias    (3,)    taken
          2.weight  (1, 3)  kept, as from_ has none of this name
          2.bias    (1,)    kept, as from_ has none of this name
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"warm_start: expected a module to fill, got {type(model).__name__}. Try "
            f"warm_start(model, from_=fitted)."
        )
    targets = module_tensors(model)
    source = _tensors(from_, targets)
    common = [name for name in targets if name in source]
    if not common:
        raise ValueError(
            f"warm_start: nothing in common. The model has {_listed(targets)}; from_ has "
            f"{_listed(source)}. Try the parts that match, as in "
            f"warm_start(new.decoder, from_=old.decoder), and an autoguide once it was called."
        )
    if wrong := [name for name in common if not _fits(targets[name], source[name])]:
        listed = "; ".join(f"{n}: {_kind(targets[n])} and {_kind(source[n])}" for n in wrong)
        raise ValueError(
            f"warm_start: {len(wrong)} tensors have one name and differ, in the model and in "
            f"from_: {listed}. Try the parts that match, as in "
            f"warm_start(new.encoder, from_=old.encoder)."
        )
    make_own(model)
    targets = module_tensors(model)
    fill({name: targets[name] for name in common}, source)
    return WarmStart(
        taken=_shapes(targets, common),
        kept=_shapes(targets, [name for name in targets if name not in source]),
        left=_shapes(source, [name for name in source if name not in targets]),
    )


def _tensors(from_: nn.Module | str | Path, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, or of the one in a file that has some of the names."""
    if isinstance(from_, nn.Module):
        return module_tensors(from_)
    if not isinstance(from_, (str, Path)):
        raise TypeError(
            f"from_: expected a module, or a file written by save(), got {type(from_).__name__}."
        )
    tree = read(from_)
    if tree.get("kind") != "weights":
        raise ValueError(
            f"{from_}: expected weights, as written by save(), got a {tree.get('kind')}. Try "
            f"fit(..., checkpoint={str(from_)!r}, resume=True), and then the modules as from_."
        )
    fitting = [name for name, held in tree["modules"].items() if held.keys() & targets.keys()]
    if len(fitting) > 1:
        raise ValueError(
            f"{from_}: expected one module with names of this one, got "
            f"{', '.join(map(repr, fitting))}. Try load({str(from_)!r}, {fitting[0]}=old), and "
            f"then from_=old."
        )
    if not fitting:
        return {f"{k} {n}": x for k, held in tree["modules"].items() for n, x in held.items()}
    return tree["modules"][fitting[0]]


def _fits(target: Tensor, source: Tensor) -> bool:
    """Whether one can be filled with the other, with nothing lost but digits."""
    same = target.is_floating_point() == source.is_floating_point()
    return target.shape == source.shape and same and target.is_complex() == source.is_complex()


def _shapes(tensors: dict[str, Tensor], names: list[str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensors[name].shape) for name in names}


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _listed(tensors: dict[str, Tensor]) -> str:
    some = [f"{name} {tuple(x.shape)}" for name, x in list(tensors.items())[:8]]
    more = [f"{len(tensors) - 8} more"] if len(tensors) > 8 else []
    return ", ".join(some + more) or "no tensors"
