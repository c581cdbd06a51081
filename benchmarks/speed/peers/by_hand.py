"""The programs of `benchmarks.speed.steps` in plain PyTorch, eagerly and in a compiled loop.

Latents that all rows share are handled as the autoguides do, on the real line, where the
change of variables is in both densities and cancels; losses are nats per row, of one draw.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.distributions import StickBreakingTransform
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from benchmarks.speed.peers.ways import Data, Take, tenth

LR, ONE, TWO, EPS = 1e-3, 0.9, 0.999, 1e-8  # of Adam
RAW = math.log(math.expm1(0.1))  # softplus of it is the scale that autoguides start with


class ByHand(NamedTuple):
    """Where the parameters start, and the loss of `loss(parameters, data)`."""

    start: list[Tensor]
    loss: Callable[[list[Tensor], tuple[Tensor, ...]], Tensor]


def log_normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -0.5 * ((x - loc) / scale) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def drawn(loc: Tensor, scale: Tensor, tril: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A draw of all latents together, and its log density."""
    noise = torch.randn_like(loc)
    z = loc + scale * (noise if tril is None else tril @ noise)
    return z, (log_normal(noise, 0.0, 1.0) - scale.log()).sum()


def regression(joint: bool) -> ByHand:
    def loss(parameters: list[Tensor], data: tuple[Tensor, ...]) -> Tensor:
        x, y = data
        loc, raw, *below = parameters
        tril = torch.tril(below[0], -1) + torch.eye(9) if joint else None
        z, log_q = drawn(loc, functional.softplus(raw), tril)
        log_prior = log_normal(z, 0.0, 1.0).sum()
        log_likelihood = log_normal(y, x @ z[:8], z[8].exp()).sum()
        return (log_q - log_prior - log_likelihood) / len(x)

    return ByHand([torch.zeros(9), torch.full((9,), RAW), *[torch.zeros(9, 9)] * joint], loss)


def mixture() -> ByHand:
    broken = StickBreakingTransform()

    def loss(parameters: list[Tensor], data: tuple[Tensor, ...]) -> Tensor:
        (x,) = data
        z, log_q = drawn(parameters[0], functional.softplus(parameters[1]))
        sticks, loc, log_scale = z[:4], z[4:24].view(5, 4), z[24:].view(5, 4)
        weights = broken(sticks)
        log_prior = math.lgamma(5) + broken.log_abs_det_jacobian(sticks, weights)
        log_prior = log_prior + log_normal(loc, 0.0, 3.0).sum()
        log_prior = log_prior + log_normal(log_scale, 0.0, 0.5).sum()
        each = log_normal(x[:, None], loc, log_scale.exp()).sum(-1)  # (rows, 5)
        log_likelihood = (each + weights.log()).logsumexp(-1).sum()
        return (log_q - log_prior - log_likelihood) / len(x)

    return ByHand([torch.zeros(44), torch.full((44,), RAW)], loss)


def vae(latents: int, hidden: int) -> ByHand:
    sizes = (784, hidden), (hidden, 2 * latents), (latents, hidden), (hidden, 784)
    layers = [torch.nn.Linear(*size) for size in sizes]

    def loss(parameters: list[Tensor], data: tuple[Tensor, ...]) -> Tensor:
        (x,) = data
        a, b, c, d = zip(parameters[::2], parameters[1::2], strict=True)
        codes = functional.linear(functional.linear(x, *a).tanh(), *b)
        loc, log_scale = codes.chunk(2, 1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        logits = functional.linear(functional.linear(z, *c).tanh(), *d)
        misfit = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (misfit - (-0.5 * z**2 + 0.5 * noise**2 + log_scale).sum()) / len(x)

    return ByHand([p.detach() for layer in layers for p in layer.parameters()], loss)


def written(name: str) -> ByHand:
    """The case of `benchmarks.speed.steps` of that name."""
    if name.startswith("VAE"):
        latents, hidden = (int(part.partition("=")[2]) for part in name.split(",")[-2:])
        return vae(latents, hidden)
    return mixture() if name.startswith("mixture") else regression("Multivariate" in name)


def eager(name: str, data: Data) -> Take:
    """Steps as one writes them."""
    start, loss = written(name)
    tensors = tuple(map(torch.from_numpy, data))
    parameters = [p.clone().requires_grad_(True) for p in start]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)

    def step() -> Tensor:
        value = loss(parameters, tensors)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    def take(steps: int) -> float:
        losses = [step() for _ in range(steps)]
        return torch.stack(losses[-tenth(steps) :]).mean().item()

    return take


def compiled(name: str, data: Data) -> Take:
    """Steps in a compiled loop: loss, gradient and Adam as one graph of ATen operations.

    Its random numbers are those of torch's generator, as the eager steps have them.
    """
    start, loss = written(name)
    tensors = tuple(map(torch.from_numpy, data))
    many = len(start)

    def step(*state: Tensor) -> tuple[Tensor, ...]:
        old, firsts, seconds = (state[i * many : (i + 1) * many] for i in range(3))
        moved = [p.detach().requires_grad_(True) for p in old]
        with torch.enable_grad():
            value = loss(moved, tensors)
            slopes = torch.autograd.grad(value, moved)
        count = state[-1] + 1
        first = [m + (g - m) * (1 - ONE) for m, g in zip(firsts, slopes, strict=True)]
        second = [v * TWO + g * g * (1 - TWO) for v, g in zip(seconds, slopes, strict=True)]
        rate, power = LR / (1 - ONE**count), (1 - TWO**count) ** 0.5
        pairs = zip(old, first, second, strict=True)
        new = [p - rate * m / (v.sqrt() / power + EPS) for p, m, v in pairs]
        return *new, *first, *second, count, value.detach()

    zeros = [torch.zeros_like(p) for p in start * 2]
    state = [p.clone() for p in start] + zeros + [torch.zeros((), dtype=torch.float64)]
    graph = make_fx(step)(*state)

    def body(left: Tensor, total: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        *moved, value = graph(*state)
        return left - 1, total + value, *moved

    def loop(*carried: Tensor) -> Any:
        return while_loop(lambda left, *_: left > 0, body, carried)

    options = {"fallback_random": True, "cpp_wrapper": True}
    run = torch.compile(loop, options=options, dynamic=False)

    @torch.no_grad()
    def take(steps: int) -> float:
        last = tenth(steps)
        for part in (steps - last, last):
            _, total, *state[:] = run(torch.tensor(part), torch.zeros(()), *state)
        return total.item() / last

    return take
