"""Samplers whose steps run as compiled code, many in one call.

The code is compared with the sampler's own steps in each draw, on the first and on the last of
them; where the two are not the same to rounding the sampler runs as it is written, and says so.
Denoisers with a small network gain most: of a large one the time is that of its arithmetic.

Shapes: `B` rows, `D` features, `N` steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_models.diffusion import samplers
from ppl_models.infer.compiled.code.repeat import by_code, repeat_of

Sampler = Callable[..., Tensor]

STEPS: dict[Sampler, Sampler] = {
    samplers.ancestral: samplers.ancestral_step,
    samplers.ddim: samplers.ddim_step,
    samplers.heun: samplers.heun_step,
    samplers.langevin: samplers.langevin_step,
}
FEW = 4  # stops for which no code is made
ROOM = 1024  # stops in a table, whose length the code depends on


def compiled(sampler: Sampler, diffusion: Any, y: Tensor | None, guidance: float | None) -> Sampler:
    """Returns a sampler that does as another does, by compiled code where that is the same.

    Arguments:
        sampler: One of `samplers`, or a `functools.partial` of one with settings by name.
        diffusion: A diffusion model, such as `Diffusion`.
        y: Labels, `(B,)`, or None.
        guidance: The strength of classifier-free guidance, or None.

    Raises:
        TypeError: If it is another sampler, whose steps are not known.
        ValueError: If the step size of `langevin` is not between 0 and 1.

    Example:
        >>> from ppl_models.diffusion.model import Diffusion
        >>> diffusion = Diffusion(num_features=3, num_steps=20)
        >>> diffusion.sample(5, samplers.ddim, compile=True).shape
        torch.Size([5, 3])
    """
    function, settings = sampler, {}
    if isinstance(sampler, partial) and not sampler.args:
        function, settings = sampler.func, sampler.keywords
    if function not in STEPS:
        raise TypeError(
            f"compile: expected ancestral, ddim, heun or langevin of ppl_models.diffusion."
            f"samplers, or a partial of one with settings by name, got {sampler!r}. Try "
            f"compile=False."
        )
    if "step_size" in settings:
        samplers.check_step_size(settings["step_size"])
    step = partial(STEPS[function], **settings)

    def sample(denoiser: samplers.Denoiser, z: Tensor, schedule: Any, num_steps: int) -> Tensor:
        log_snr = samplers.stops(denoiser, z, schedule, num_steps)
        if len(log_snr) <= FEW:
            return sampler(denoiser, z, schedule, num_steps)
        key = (function, *sorted(settings.items()), y is None, guidance is None)
        last = by_code(
            diffusion, key, z, lambda: _last(diffusion, step, key, z, log_snr, y, guidance)
        )
        if last is None:
            return sampler(denoiser, z, schedule, num_steps)
        return denoiser(last, log_snr[-1])

    return sample


def _last(
    diffusion: Any,
    step: Sampler,
    key: tuple,
    z: Tensor,
    log_snr: Tensor,
    y: Tensor | None,
    guidance: float | None,
) -> Tensor:
    """The noisy rows at the last stop, (B, D)."""
    given = {"y": y, "guidance": None if guidance is None else z.new_tensor(guidance)}
    table = z.new_zeros(-(-len(log_snr) // ROOM) * ROOM)
    table[: len(log_snr)] = log_snr
    tensors = {"z": z.clone(), "log_snr": table}
    tensors |= {name: x.clone() for name, x in given.items() if x is not None}

    def once(place: Tensor, now: dict[str, Tensor]) -> None:
        ends = now["log_snr"].index_select(0, torch.stack([place, place + 1]))
        denoiser = diffusion.denoiser(now.get("y"), now.get("guidance"))
        now["z"].copy_(step(denoiser, now["z"], *ends.unbind()))

    times = len(log_snr) - 1
    code = repeat_of(diffusion, key, once, 0, tensors)
    code(times - 2, 1, tensors)
    code.compared(once, times - 1, tensors)
    return tensors["z"]
