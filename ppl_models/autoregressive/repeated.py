"""Draws feature by feature whose steps run as compiled code, many in one call.

A step computes the outputs of a feature from what the steps before it left, draws its values, and
leaves them to the steps after it. In each draw the code is
compared with its step, on the first feature, and the outputs of all features of some rows with a
pass over what was drawn: the rows whose density is known are those that were drawn.

Shapes: `B` rows, `D` features, `P` outputs for each feature.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ppl_models.autoregressive.by_feature import of_masked, of_passes
from ppl_models.autoregressive.by_pixel import of_gated
from ppl_models.autoregressive.by_state import of_recurrent
from ppl_models.autoregressive.stage import Stage
from ppl_models.infer.compiled.code.repeat import Differs, Repeat, by_code, repeat_of
from ppl_models.likelihoods import Likelihood
from ppl_models.nn import GatedPixelCNN, MaskedMLP, RecurrentPixels

STAGES: dict[type, Callable[..., Iterator[Stage]]] = {
    MaskedMLP: of_masked,
    GatedPixelCNN: of_gated,
    RecurrentPixels: of_recurrent,
}

SOME = 2  # rows whose outputs are compared with those of a pass
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative, of sums in another order


def repeated(
    network: nn.Module, likelihood: Likelihood, num_rows: int, num_features: int
) -> Tensor | None:
    """Returns rows `(B, D)`, the same that a walk draws; None where code is not right, or not made.

    Arguments:
        network: A causal network, in evaluation mode.
        likelihood: What the outputs of a feature mean.
        num_rows, num_features: `B` and `D`.

    Example:
        >>> from ppl_models.likelihoods import Bernoulli
        >>> from ppl_models.nn import MaskedMLP
        >>> network = MaskedMLP(num_features=5, num_outputs=1, hidden=(8,))
        >>> repeated(network.eval(), Bernoulli(), 3, 5).shape
        torch.Size([3, 5])
    """
    key = ("draws", id(likelihood), num_features)
    like = next(network.parameters()).detach()
    return by_code(
        network, key, like, lambda: _Draw(network, likelihood, key, num_rows, num_features).rows()
    )


class _Draw:
    def __init__(
        self, network: nn.Module, likelihood: Likelihood, key: Any, num_rows: int, num_features: int
    ) -> None:
        if type(network) not in STAGES and hasattr(network, "walk"):
            raise TypeError("the network has a walk of its own, whose steps are not known")
        self.network, self.likelihood, self.key = network, likelihood, key
        like = next(network.parameters()).detach()
        some = min(SOME, num_rows)
        self.drawn = {
            "x": like.new_zeros(num_features, num_rows),
            "outputs": like.new_zeros(num_features, some, likelihood.num_outputs),
        }
        self.codes: dict[Any, Repeat] = {}
        self.places: dict[Any, int] = {}

    def rows(self) -> Tensor:
        num_features, num_rows = self.drawn["x"].shape
        stages = STAGES.get(type(self.network), of_passes)
        for stage in stages(self.network, num_rows, num_features):
            self._take(stage)
        x = self.drawn["x"].t().contiguous()
        if not x.isfinite().all():  # where torch may raise
            raise FloatingPointError("a value that was drawn is not finite")
        self._compare(x)
        return x

    def _take(self, stage: Stage) -> None:
        """A stage by code, of which the first step of all is compared."""
        tensors, times = {"kept": stage.kept, "drawn": self.drawn}, stage.times
        place = self.places.setdefault(stage.step, 0)

        def step(place: Tensor, now: Any) -> None:
            stage.step(self.network, place, now["kept"], self._drawing(place, now["drawn"]))

        if stage.step not in self.codes:
            key = (self.key, stage.step)
            self.codes[stage.step] = repeat_of(self.network, key, step, place, tensors)
            times, place = times - 1, place + 1
        self.codes[stage.step](times, place, tensors)
        self.places[stage.step] += stage.times

    def _drawing(self, place: Tensor, drawn: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """What draws the values of a feature, (B,), from its outputs, (B, P)."""

        def draw(outputs: Tensor) -> Tensor:
            values = self.likelihood(outputs).sample()[:, 0]
            some = drawn["outputs"]
            some.index_copy_(0, place.view(1), outputs[: some.shape[1]].unsqueeze(0))
            drawn["x"].index_copy_(0, place.view(1), values.unsqueeze(0))
            return values

        return draw

    def _compare(self, x: Tensor) -> None:
        """Raises unless the outputs of some rows are those of a pass over them."""
        ours = self.drawn["outputs"].transpose(0, 1)  # (some, D, P)
        theirs = self.network(x[: len(ours)])
        allowed = TOLERANCE.get(x.dtype, 1e-4) * (1 + theirs.abs().amax())
        if not bool(((ours - theirs).abs() <= allowed).all()):
            raise Differs("outputs along a draw are not those of a pass over what was drawn")
