r"""The loss of an autoencoder, as an objective.

.. math:: \frac{1}{B} \sum_b \ell(x_b, \mathrm{decoder}(\mathrm{encoder}(x_b)))
"""

from collections.abc import Iterator
from typing import Protocol

import pyro
import torch
from torch import Tensor, nn

from ppl_models.infer.objectives.objective import Objective


class HasReconstruction(Protocol):
    """A module with `reconstruction_loss(x)`: one number for each row, `(B,)`."""

    def reconstruction_loss(self, x: Tensor) -> Tensor: ...


def reconstruction(autoencoder: HasReconstruction) -> "Reconstruction":
    """The mean loss of rows that an autoencoder has coded and decoded, as an objective.

    Its unit is that of `autoencoder.reconstruction_loss`: of an `AutoEncoder` squared errors,
    summed over the features of a row, or, with a likelihood, nats per row. It is no evidence, and
    no bound on one.

    Arguments:
        autoencoder: A module with `reconstruction_loss(x)`, such as `AutoEncoder`.

    Raises:
        TypeError: If it has none.

    Example:
        >>> from ppl_models.autoencoders.autoencoder import AutoEncoder
        >>> from ppl_models.infer.training.fit import fit
        >>> autoencoder = AutoEncoder(num_features=4, num_latents=1)
        >>> run = fit(reconstruction(autoencoder), torch.ones(20, 4), epochs=50, lr=1e-2, seed=0)
        >>> run.history["loss"][-1] < 0.1 < run.history["loss"][0]  # squared error of a row
        True
    """
    return Reconstruction(autoencoder)


class Reconstruction(Objective):
    """The objective that `reconstruction` returns."""

    name = "reconstruction"

    def __init__(self, autoencoder: HasReconstruction) -> None:
        good = isinstance(autoencoder, nn.Module) and hasattr(autoencoder, "reconstruction_loss")
        if not good:
            got = (
                f"the class {autoencoder.__name__}"
                if isinstance(autoencoder, type)
                else type(autoencoder).__name__
            )
            raise TypeError(
                f"reconstruction: expected a module with reconstruction_loss(x), got {got}. "
                f"Try AutoEncoder(num_features, num_latents); for a VAE, elbo(vae, guide)."
            )
        self.autoencoder = autoencoder

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        return self.autoencoder.reconstruction_loss(*batch).mean()

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        if len(batch) != 1:
            raise ValueError(
                f"reconstruction: expected batches of rows alone, got {len(batch)} tensors. "
                f"Try data without labels."
            )
        (rows,) = data or batch
        with torch.no_grad(), pyro.validation_enabled(True):
            for part in rows.split(max(len(batch[0]), 256)):
                losses = self.autoencoder.reconstruction_loss(part)
                if losses.shape != (len(part),):
                    raise ValueError(
                        f"reconstruction: expected one loss for each of {len(part)} rows, got the "
                        f"shape {tuple(losses.shape)}. Try .sum(1) over the features."
                    )

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._module().named_parameters()

    def modules(self) -> dict[str, nn.Module]:
        return {"autoencoder": self._module()}

    def blame(self, *batch: Tensor, size: int) -> str:
        with torch.no_grad():
            losses = self.autoencoder.reconstruction_loss(*batch)
        bad = int((~losses.isfinite()).sum())
        return f"the loss of {bad} of {len(losses)} rows is not finite"

    def _module(self) -> nn.Module:
        assert isinstance(self.autoencoder, nn.Module)
        return self.autoencoder
