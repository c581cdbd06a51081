"""Fresh rows of any generator, in batches, which several processes take in turn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.processes import Processes, in_turn, together
from ppl_models.prompt.bars import progress_bar
from ppl_models.scoped import kept_host_rng, mix, own_draws, seed_of

ALIKE = 1e-3  # of a row that two processes draw with the same random numbers
WHERE = "draw_rows"


@torch.no_grad()
def draw_rows(
    draw: Callable[[Tensor], Tensor],
    size: int,
    batch_size: int = 1000,
    seed: int | None = None,
    progress: bool = True,
) -> Tensor:
    r"""Returns fresh rows, drawn in batches: what one process draws, any number of processes draw.

    Each batch has a seed of its own. Under `torchrun` the processes take the batches in turn, and
    all of them get all rows, so that each calls this. A batch that is drawn alike by each process
    is no bit different from one that a single process draws.

    Arguments:
        draw: Returns rows, with shape `(B, \*)`, for their numbers, a tensor of `B` integers: by
            these it finds their labels, where it needs any.
        size: The number of rows, `N`.
        batch_size: How many are drawn at once, `B`; the last batch may be smaller.
        seed: Seeds draws of their own; by default they come from torch's generator.
        progress: Whether to show a progress bar (on a terminal), if it takes more than a second.

    Returns:
        The rows, with shape `(N, \*)`.

    Raises:
        TypeError: If what is drawn is no tensor.
        ValueError: If it has another number of rows, or several processes draw different ones.
        ProcessError: If another process failed.

    Example:
        >>> from ppl_models import VAE, Diffusion
        >>> vae = VAE(4, num_latents=2)
        >>> draw_rows(lambda rows: vae(size=len(rows)), size=2500).shape
        torch.Size([2500, 4])
        >>> from ppl_models.diffusion.samplers import heun
        >>> diffusion = Diffusion(num_features=3)
        >>> draw_rows(lambda rows: diffusion.sample(len(rows), heun, num_steps=4), size=10).shape
        torch.Size([10, 3])
    """
    check_count(size=size, batch_size=batch_size)
    here, seed = together(), seed_of(seed)
    if not here.alone:
        advice = "Try the same lines on all processes, and rows that a loaded model draws."
        here.check_agree(WHERE, advice, size=size, batch_size=batch_size, seed=seed)
        _check_alike(here, draw, seed)
    batches = [*enumerate(torch.arange(size).split(batch_size))]
    parts = []
    with kept_host_rng(), progress_bar(WHERE, size, progress, unit="row") as advance:
        of = partial(_drawn, draw, seed)
        for (_, rows), results in in_turn(here, WHERE, batches, of, _device()):
            parts.append(results["x"])
            advance(len(rows))
    return torch.cat(parts)


def _device() -> torch.device:
    """Where rows may be drawn, besides the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def _drawn(
    draw: Callable[[Tensor], Tensor], seed: int, batch: tuple[int, Tensor]
) -> dict[str, Tensor]:
    """A batch of rows, with random numbers of its own."""
    number, rows = batch
    with own_draws(WHERE, mix(seed, number), _device()):
        x: Any = draw(rows)
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{WHERE}: expected draw(rows) to return a tensor, got {type(x).__name__}. Try "
            f"draw=lambda rows: model(size=len(rows))."
        )
    if x.dim() == 0 or len(x) != len(rows):
        raise ValueError(
            f"{WHERE}: expected {len(rows)} rows for as many numbers of rows, got shape "
            f"{tuple(x.shape)}. Try draw=lambda rows: model(size=len(rows))."
        )
    return {"x": x}


def _check_alike(here: Processes, draw: Callable[[Tensor], Tensor], seed: int) -> None:
    """Raises where the processes draw different rows from the same random numbers."""
    with here.all_or_none(f"{WHERE}: a first row"):
        own = _drawn(draw, seed, (0, torch.arange(1)))["x"].cpu().double()
    for rank, other in enumerate(here.gather(own)):
        if other.shape != own.shape or not torch.allclose(other, own, ALIKE, ALIKE, equal_nan=True):
            raise ValueError(
                f"{WHERE}: expected the same rows of the same random numbers on all processes, got "
                f"others on process {rank} than on process {here.rank}. Try the same model on all, "
                f"as after fit or load, which keeps nothing from one batch to the next."
            )
