"""Parameters that stay as they are while others learn, by name of module, parameter or site."""

from difflib import get_close_matches

from torch import Tensor, nn

from ppl_models.infer.programs.own import make_own, own_parameters


def freeze(module: nn.Module, *names: str) -> None:
    """Has parameters of a model or a guide stay as they are in `fit`.

    They are still in checkpoints and files. Buffers, such as the running means of batch
    normalisation, follow the data as before.

    Arguments:
        module: The model or the guide. An autoguide has parameters after its first call.
        names: What to freeze: a part of the module (`"decoder"`, `"decoder.0"`), a parameter
            (`"decoder.0.weight"`), or a latent site of a guide that has parameters for it alone
            (`"z"`). Default: all of it.

    Raises:
        TypeError: If `module` is none.
        ValueError: If a name does not exist: it says which are near.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> freeze(network, "0")
        >>> [name for name, p in network.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """
    _set(module, names, False)


def unfreeze(module: nn.Module, *names: str) -> None:
    """Has parameters learn again; the arguments are those of `freeze`.

    Example:
        >>> import torch
        >>> network = torch.nn.Linear(2, 3)
        >>> freeze(network)
        >>> unfreeze(network, "bias")
        >>> network.weight.requires_grad, network.bias.requires_grad
        (False, True)
    """
    _set(module, names, True)


def _set(module: nn.Module, names: tuple[str, ...], learns: bool) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"freeze: expected a module, got {type(module).__name__}. Try the model or the guide "
            f"whose parameters are to be held."
        )
    make_own(module)
    known = _by_name(module)
    for name in names:
        _check(name, known, module)
    chosen = names or tuple(known)
    for parameter in [p for name in chosen for p in known[name]]:
        parameter.requires_grad_(learns)


def _by_name(module: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters under each name: of themselves, of what holds them, and of their sites."""
    known: dict[str, list[Tensor]] = {}
    for name, parameter in [*module.named_parameters(), *own_parameters(module).items()]:
        # What Pyro constrains has a longer name than its users gave it.
        parts = [part.removesuffix("_unconstrained") for part in name.split(".")]
        places = [".".join(parts[: i + 1]) for i in range(len(parts))]
        for place in dict.fromkeys([*places, parts[-1]] if _is_site(parts) else places):
            known.setdefault(place, []).append(parameter)
    for part in module.modules():
        if isinstance(site := getattr(part, "site", None), str) and site not in known:
            known[site] = list(part.parameters())
    return known


def _is_site(parts: list[str]) -> bool:
    """Whether a parameter is one that `AutoNormal` or `AutoDelta` has for a site."""
    return len(parts) > 1 and parts[-2] in ("locs", "scales")


def _check(name: str, known: dict[str, list[Tensor]], module: nn.Module) -> None:
    if name in known:
        return
    near = get_close_matches(name, known, n=4, cutoff=0.5) or list(known)[:8]
    has = f"it has {', '.join(map(repr, near))}" if near else "it has no parameters yet"
    hint = "another name" if near else "guide(*batch) once, before"
    raise ValueError(
        f"freeze: {type(module).__name__} has no part, parameter or site {name!r}; {has}. "
        f"Try {hint}."
    )
