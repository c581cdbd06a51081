"""The modules that programs run: their mode and their device."""

from collections.abc import Iterable

from torch import Tensor, nn


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
