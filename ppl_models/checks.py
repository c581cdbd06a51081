"""What arguments and rows must be: each check once, raised before any work is lost.

An error says where, what was expected, what came, and what to try.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def check_count(**counts: int) -> None:
    """Raises a ValueError unless all are positive whole numbers.

    Example:
        >>> check_count(num_features=3, num_components=2)
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a positive whole number, got {value!r}.")


def check_at_least(minimum: int, /, **counts: int) -> None:
    """Raises a ValueError unless all are whole numbers, the minimum or more.

    Example:
        >>> check_at_least(2, num_classes=10)
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name}: expected a whole number, {minimum} or more, got {value!r}.")


def check_positive(**numbers: float) -> None:
    """Raises a ValueError unless all are positive and finite.

    Example:
        >>> check_positive(scale=0.1)
    """
    for name, value in numbers.items():
        if (isinstance(value, Tensor) and value.ndim) or not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them.

    Example:
        >>> check_choice("missing", "error", ["error", "marginalise"])
    """
    known = list(choices)
    if value not in known:
        listing = " or " if len(known) == 2 else ", "
        one = "" if len(known) == 2 else "one of "
        raise ValueError(f"{name}: expected {one}{listing.join(map(repr, known))}, got {value!r}.")


def check_rows(
    x: Tensor | None, num_features: int, where: str, model: nn.Module | None = None
) -> None:
    """Raises an error unless `x` is None or holds rows of `num_features` floating-point numbers.

    Arguments:
        x: The rows.
        num_features: How many numbers each has.
        where: What to call the model in errors.
        model: What computes with them, where they must be of its precision.

    Raises:
        TypeError: If it is no tensor, the numbers are integers, as in raw images, or of another
            precision than the model.
        ValueError: If the shape is not `(B, num_features)`.
    """
    if x is None:
        return
    if not isinstance(x, Tensor):
        raise TypeError(_no_tensor(x, where))
    if not x.is_floating_point():
        raise TypeError(
            f"{where}: expected rows of floating-point numbers, got {x.dtype}. "
            f"Try x.float() / 255 for images of bytes, x.float() for numbers."
        )
    if x.ndim != 2 or x.shape[1] != num_features:
        raise ValueError(
            f"{where}: expected rows of {num_features} features, with shape "
            f"(B, {num_features}), got {tuple(x.shape)}. Try x.flatten(1) for images, "
            f"or num_features={x[0].numel() if len(x) else 'D'}."
        )
    if model is not None:
        _check_precision(x, model, where)


def check_no_array(x: object, where: str) -> None:
    """Raises a TypeError where batches of rows are an array or a frame, whose items are rows."""
    if hasattr(x, "__array__") and not isinstance(x, Tensor):
        raise TypeError(_no_tensor(x, where))


def _no_tensor(x: object, where: str) -> str:
    return (
        f"{where}: expected a tensor of rows, got {type(x).__name__}. Try "
        f"torch.tensor(numpy.asarray(x), dtype=torch.float32)."
    )


def _check_precision(x: Tensor, model: nn.Module, where: str) -> None:
    """Raises where a model has numbers, and none of the precision of the rows."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    others = []
    for own in (t.dtype for t in tensors if t.is_floating_point()):
        if own == x.dtype:  # mostly the first
            return
        others.append(own)
    if others:
        raise TypeError(
            f"{where}: expected rows of {others[0]}, as the model, got {x.dtype}. Try "
            f"x.to({others[0]}), or model.to({x.dtype})."
        )


def check_tensors(
    tensors: tuple[Tensor, ...], missing: bool = False, numbers: Tensor | None = None
) -> None:
    """Raises where tensors are empty, of different lengths, or not finite.

    With `missing`, NaN stands for what was not observed, and is let through. Of a batch
    `numbers` says which rows it holds.
    """
    check_lengths(tensors)
    for i, x in enumerate(tensors):
        if x.is_floating_point():
            check_finite(x, f"data[{i}]", missing=missing, numbers=numbers)


def check_lengths(tensors: tuple[Tensor, ...]) -> None:
    """Raises where tensors are empty, or of different lengths."""
    for i, x in enumerate(tensors):
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(
                f"data[{i}]: expected at least one row, got none: its shape is {tuple(x.shape)}."
            )
    lengths = [len(x) for x in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"data: expected tensors with the same number of rows, got {lengths}. "
            f"Try data=(x, y) with one label for each row."
        )


def check_whole(modules: Iterable[object], data: tuple[Tensor, ...]) -> None:
    """Lets modules look at all the data together, by `check_data(*data)`, where they have it.

    What no single batch shows, such as a row that comes twice, is found before the first step.
    """
    for module in modules:
        if hasattr(module, "check_data"):
            module.check_data(*data)


def check_finite(
    x: Tensor,
    where: str,
    minimum: int = 1,
    missing: bool = False,
    numbers: Tensor | None = None,
) -> None:
    """Raises a ValueError unless there are enough rows, and all are finite.

    Arguments:
        x: Numbers of rows, `(B, *)`.
        where: What to call them in errors.
        minimum: The fewest rows that will do.
        missing: Whether NaN stands for what was not observed, and is let through.
        numbers: Those of the rows, `(B,)`, of a batch of them. Default: from 0 on.
    """
    if len(x) < minimum:
        needed = {1: "one row", 2: "two rows"}.get(minimum, f"{minimum} rows")
        raise ValueError(
            f"{where}: expected at least {needed} of finite numbers, got {len(x)}. "
            f"Try more rows, or a smaller model."
        )
    if x.sum().isfinite():  # as it is not where one of them is none, and seldom else: a short way
        return
    finite = ~x.isinf() if missing else x.isfinite()
    if not finite.all():
        bad = (~finite).flatten(1).any(1) if x.ndim > 1 else ~finite
        rows = (
            bad.nonzero().flatten() if numbers is None else numbers.to(bad.device)[bad]
        ).tolist()
        noun = "row" if len(rows) == 1 else "rows"
        raise ValueError(
            f"{where}: {len(rows)} of {len(x)} rows hold NaN or infinity ({noun} {listed(rows)}). "
            f"Try leaving them out, x[x.isfinite().all(1)], or a model with "
            f"missing='marginalise' where NaN stands for what was not observed."
        )


def listed(numbers: Sequence[object], most: int = 5) -> str:
    """The first of many numbers or names, for errors.

    Example:
        >>> listed(range(100))
        '0, 1, 2, 3, 4, ...'
    """
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def check_float64(x: Tensor, where: str) -> None:
    """Raises a TypeError where rows are on a device without double precision: Apple's."""
    if x.device.type == "mps":
        raise TypeError(
            f"{where}: this is computed in double precision, which the device {x.device} has not. "
            f"Try .cpu() of the model and of the rows."
        )


def check_means_and_scales(outputs: Tensor, num_latents: int, where: str, network: str) -> Tensor:
    """Returns the outputs of a network after a look at their shape, as any can be halved.

    Arguments:
        outputs: What it gave for a row each, `(*, 2 * K)` as it should be.
        num_latents: The length of a latent vector, `K`.
        where: What to call its owner in errors.
        network: What to call the network.

    Raises:
        ValueError: If there is not a mean and a log-scale for each latent.
    """
    if outputs.ndim < 2 or outputs.shape[-1] != 2 * num_latents:
        got = outputs.shape[-1] if outputs.ndim else 0
        even = f", or num_latents={got // 2}" if got and got % 2 == 0 else ""
        raise ValueError(
            f"{where}: expected its {network} to give a mean and a log-scale for each of "
            f"num_latents={num_latents}, with shape (B, {2 * num_latents}), got "
            f"{tuple(outputs.shape)}. Try a network with {2 * num_latents} outputs{even}."
        )
    return outputs


def check_resolution(loc: Tensor, scale: Tensor, dtype: torch.dtype, where: str) -> None:
    """Raises a ValueError where a model cannot hold where its rows are: they are too far from zero.

    Arguments:
        loc: The means of the features, `(D,)`.
        scale: Their standard deviations, `(D,)`; 0 for a constant one, which is let through.
        dtype: The precision of the model's parameters.
        where: The name of the model.

    Example:
        >>> check_resolution(torch.tensor([1e4]), torch.tensor([1.0]), torch.float32, "model")
    """
    far = (torch.finfo(dtype).eps * loc.abs() > 0.1 * scale) & (scale > 0)
    if far.any():
        d = int((loc.abs() / scale).where(far, 0.0).argmax())
        raise ValueError(
            f"{where}: expected rows near zero, beside their spread, got column {d} with a mean of "
            f"{loc[d].item():.3g} and a standard deviation of {scale[d].item():.3g}: numbers of "
            f"{str(dtype).removeprefix('torch.')} near there are too far apart for a model of it. "
            f"Try x - x.mean(0) in double precision, or model.double() and x.double()."
        )


def check_labels(
    y: Tensor | None,
    num_classes: int,
    num_rows: int | None,
    where: str,
    on_any_device: bool = False,
) -> None:
    """Raises an error unless `y` is None or holds one label for each row.

    Arguments:
        y: Labels 0 to `num_classes - 1`, as integers or whole floating-point numbers, `(B,)`.
        num_classes: The number of classes.
        num_rows: The number of rows, `B`; None where there are no rows besides the labels.
        where: What to call the model in errors.
        on_any_device: Whether to look at their values on a GPU too, which makes it wait.

    Raises:
        TypeError: If the labels are no numbers.
        ValueError: If there is not one for each row, or one is not of a class.

    Example:
        >>> check_labels(torch.tensor([0, 2, 1]), num_classes=3, num_rows=3, where="model")
    """
    if y is None:
        return
    if not isinstance(y, Tensor) or y.dtype == torch.bool or y.is_complex():
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{where}: expected a tensor of labels, got {kind}. Try y.long().")
    if y.ndim != 1 or num_rows not in (None, len(y)):
        raise ValueError(
            f"{where}: expected one label for each row, with shape "
            f"({'B' if num_rows is None else num_rows},), got {tuple(y.shape)}. "
            f"Try y.flatten(), or y.argmax(1) for one-hot labels."
        )
    # Reading from another device would make it wait at every step, and no graph can hold a check;
    # there inference's check of the support finds such labels, before the first step.
    if (on_any_device or y.device.type == "cpu") and get_proxy_mode() is None:
        check_classes(y, num_classes, where)


def check_classes(y: Tensor, num_classes: int, where: str) -> None:
    """Raises a ValueError unless all labels are whole numbers from 0 to `num_classes - 1`."""
    inside = (y >= 0) & (y < num_classes) & (y == y.round() if y.is_floating_point() else True)
    if not inside.all():
        outside = y[~inside]
        raise ValueError(
            f"{where}: expected labels that are whole numbers from 0 to {num_classes - 1}, got "
            f"{len(outside)} of {len(y)} others, such as {outside[0].item():g}. "
            f"Try num_classes as the number of classes, or y.unique(return_inverse=True)[1], "
            f"which numbers the labels from 0 on."
        )


def allows_missing(modules: Iterable[object]) -> bool:
    """Whether NaN stands for what was not observed: `module.missing == "marginalise"`."""
    return any(getattr(module, "missing", None) == "marginalise" for module in modules)


def check_devices(
    modules: dict[str, nn.Module], data: tuple[Tensor, ...], hint: str = "fit(..., device='auto')"
) -> None:
    """Raises where the model and the data are on different devices, with what else to try."""
    there = {x.device for x in data}
    for root, module in modules.items():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if {tensor.device} != there:
                devices = ", ".join(sorted(map(str, there)))
                raise ValueError(
                    f"device: the data are on {devices}, but {f'{root}.{name}'.lstrip('.')} is on "
                    f"{tensor.device}. Try .to({devices!r}), or {hint}."
                )
