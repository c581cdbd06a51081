"""An epoch of the MNIST VAE, and what it learns, beside hand-written PyTorch and `pyro.infer.SVI`.

    python -m benchmarks.speed.vae_epoch --data-root data              # time of an epoch
    python -m benchmarks.speed.vae_epoch --data-root data --device cuda --json vae_epoch.json
    python -m benchmarks.speed.vae_epoch --data-root data --train 30   # test NLL, two ways

All arms have the same net (784-400-50-400-784, tanh), batches of 256, Adam, and binarise afresh.
Pyro's way is that of its example: `SVI`, the images on the device, and a `DataLoader` that picks
them one by one. On a GPU hand-written PyTorch comes twice, as one writes it, and with the whole
step in a CUDA graph. Arms run one after the other; each first runs an epoch that does not count.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from guides import AmortizedNormal
from ppl_models import VAE, datasets, elbo, fit, log_evidence
from ppl_models.nn import MLP

NUM_LATENTS, HIDDEN, BATCH = 50, (400,), 256
Cosine = torch.optim.lr_scheduler.CosineAnnealingLR


def networks(seed: int, device: torch.device) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    decoder, encoder = MLP(NUM_LATENTS, 784, HIDDEN), MLP(784, 2 * NUM_LATENTS, HIDDEN)
    return decoder.to(device), encoder.to(device)


def loss_by_hand(
    encoder: nn.Module, decoder: nn.Module, grey: Tensor, bfloat16: bool = False
) -> Tensor:
    x = torch.bernoulli(grey)
    # Without a cache of the casts, as PyTorch's manual has it for CUDA graphs.
    with torch.autocast(grey.device.type, torch.bfloat16, bfloat16, cache_enabled=False):
        loc, log_scale = encoder(x).float().chunk(2, -1)
        scale = log_scale.exp()
        z = loc + scale * torch.randn_like(loc)
        logits = decoder(z).float()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * log_scale).sum()
    return (cross_entropy + kl) / len(x)


def by_hand(
    images: Tensor, seed: int, epochs: int
) -> tuple[Callable[[], None], nn.Module, nn.Module]:
    """A loop as one writes it in plain PyTorch: in memory, fused Adam, analytic KL."""
    decoder, encoder = networks(seed, images.device)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    batches = -(-len(images) // BATCH)
    scheduler = Cosine(optimizer, epochs * batches)

    def epoch() -> None:
        order = torch.randperm(len(images), device=images.device)
        total = torch.zeros((), device=images.device)
        for i in range(batches):
            loss = loss_by_hand(encoder, decoder, images[order[i * BATCH : (i + 1) * BATCH]])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach()

    return epoch, decoder, encoder


def by_hand_captured(images: Tensor, seed: int, bfloat16: bool = False) -> Callable[[], None]:
    """The same with gather, loss, gradient and Adam in one CUDA graph; the last batch has its own.

    The rate stays as it is, as it does in the arms of `fit`.
    """
    decoder, encoder = networks(seed, images.device)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=True)
    total = torch.zeros((), device=images.device)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        grey = images.index_select(0, rows)
        loss = loss_by_hand(encoder, decoder, grey, bfloat16)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    def recorded(size: int) -> tuple[Tensor, Callable[[], object]]:
        rows = torch.arange(size, device=images.device)  # what the graph reads
        return rows, measure.captured(partial(step, rows))

    sizes = {min(BATCH, len(images)), len(images) % BATCH} - {0}
    graphs = {size: recorded(size) for size in sizes}

    def epoch() -> None:
        total.zero_()
        for chosen in torch.randperm(len(images), device=images.device).split(BATCH):
            rows, replay = graphs[len(chosen)]
            rows.copy_(chosen)
            replay()

    return epoch


def programs(seed: int, device: torch.device) -> tuple[VAE, AmortizedNormal]:
    decoder, encoder = networks(seed, device)
    vae = VAE(784, NUM_LATENTS, decoder=decoder).to(device)
    return vae, AmortizedNormal(784, NUM_LATENTS, encoder)


def by_fit(images: Tensor, seed: int, rounds: int, **options: Any) -> list[float]:
    """The seconds of the epochs of one `fit`, its start left out."""
    vae, guide = programs(seed, images.device)
    train = datasets.Transformed(images, transform=torch.bernoulli)
    watch = measure.Stopwatch(images.device, every=-(-len(images) // BATCH))
    options = {"batch_size": BATCH, "schedule": watch, "progress": False, **options}
    fit(elbo(vae, guide), train, epochs=rounds + 1, **options)
    return watch.seconds()


def by_svi(images: Tensor, seed: int, loader: bool = True) -> Callable[[], None]:
    """Pyro's own way: `SVI`, modules registered by name; batches by a `DataLoader` or by index."""
    decoder, encoder = networks(seed, images.device)
    pyro.clear_param_store()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = pyro.distributions.Normal(x.new_zeros(len(x), NUM_LATENTS), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", pyro.distributions.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", pyro.distributions.Normal(loc, log_scale.exp()).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    loaded = DataLoader(TensorDataset(images), batch_size=BATCH, shuffle=True)

    def by_index() -> Iterator[tuple[Tensor]]:
        for rows in torch.randperm(len(images), device=images.device).split(BATCH):
            yield (images[rows],)

    def epoch() -> None:
        for (x,) in loaded if loader else by_index():
            svi.step(torch.bernoulli(x))

    return epoch


def arms(images: Tensor, seed: int, rounds: int) -> dict[str, Callable[[], list[float]]]:
    """By name, what gives the seconds of so many epochs, after one that does not count."""

    def timed(make: Callable[[], Callable[[], None]]) -> list[float]:
        epoch = make()
        epoch()
        return [measure.seconds(epoch, images.device) for _ in range(rounds)]

    found = {
        "Pyro's example, DataLoader": partial(timed, lambda: by_svi(images, seed)),
        "pyro.infer.SVI, in memory": partial(timed, lambda: by_svi(images, seed, loader=False)),
        "by hand, in memory": partial(timed, lambda: by_hand(images, seed, 100)[0]),
        "fit, eager": partial(by_fit, images, seed, rounds, compile=False),
        "fit, compiled": partial(by_fit, images, seed, rounds, compile=True),
    }
    if images.device.type == "cuda":
        how, mixed = partial(by_hand_captured, images, seed), {"compile": True, "amp": True}
        found |= {
            "by hand, captured": partial(timed, how),
            "fit, compiled, bfloat16": partial(by_fit, images, seed, rounds, **mixed),
            "by hand, captured, bfloat16": partial(timed, partial(how, bfloat16=True)),
        }
    return found


@torch.no_grad()
def nll_by_hand(decoder: nn.Module, encoder: nn.Module, rows: Tensor, num_samples: int) -> float:
    """The importance-weighted NLL, written out once more without Pyro."""
    total = 0.0
    for x in rows.split(100):
        loc, log_scale = encoder(x).chunk(2, -1)
        weights = []
        for _ in range(num_samples // 20):
            noise = torch.randn(20, *loc.shape, device=x.device)
            z = loc + log_scale.exp() * noise
            logits = decoder(z)
            log_x = -functional.binary_cross_entropy_with_logits(
                logits, x.expand_as(logits), reduction="none"
            ).sum(-1)
            weights.append(log_x + (-(z**2) / 2 + noise**2 / 2 + log_scale).sum(-1))
        weight = torch.cat(weights)
        total -= (weight.logsumexp(0) - math.log(len(weight))).sum().item()
    return total / len(rows)


def learn(images: Tensor, test: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Trains by hand and by `fit`; the test NLL of both, in nats per row."""
    epoch, decoder, encoder = by_hand(images, args.seed, args.train)
    for _ in range(args.train):
        epoch()
    hand = nll_by_hand(decoder, encoder, test, args.samples)
    print(f"by hand: test NLL {hand:.3f} nats per row")

    vae, guide = programs(args.seed, images.device)
    fit(
        elbo(vae, guide),
        datasets.Transformed(images, transform=torch.bernoulli),
        epochs=args.train,
        batch_size=BATCH,
        schedule=Cosine,
        seed=args.seed,
    )
    ours = -log_evidence(vae, guide, test, num_samples=args.samples).mean
    again = nll_by_hand(vae.decoder, guide.encoder, test, args.samples)
    print(f"by fit:  test NLL {ours:.3f} (evaluated by hand: {again:.3f})")
    print(f"difference {ours - hand:+.3f} nats")
    return {"by hand": hand, "by fit": ours, "by fit, evaluated by hand": again}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names of arms")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    images, _ = (x.to(device) for x in datasets.mnist(args.data_root))
    _, test = datasets.mnist(args.data_root, binarize="fresh", seed=0)
    print(measure.heading(args.device))
    if args.train:
        learnt = learn(images, test.to(device), args)
        measure.write(args.json, args.device, **{"test NLL": learnt})
    else:
        rows: list[dict[str, Any]] = []
        medians: dict[str, float] = {}
        for name, run in arms(images, args.seed, args.rounds).items():
            if not name.startswith(tuple(args.only)):
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times = run()
            medians[name] = statistics.median(times)
            line = f"{name:28s} {medians[name]:8.4f} s an epoch ({min(times):.4f} to "
            line += f"{max(times):.4f})"
            if device.type == "cuda":
                line += f", at most {measure.peak(device):.0f} MiB"
            for peer in ("Pyro's example, DataLoader", "by hand, in memory"):
                if peer in medians:
                    line += f"; {medians[peer] / medians[name]:.2f} x as fast as {peer}"
            print(line, flush=True)
            rows.append({"name": name, "seconds an epoch": times, "peak MiB": measure.peak(device)})
            measure.write(args.json, args.device, rows=rows)
        for ending in ("", ", bfloat16"):
            pair = f"fit, compiled{ending}", f"by hand, captured{ending}"
            if medians.keys() >= set(pair):
                ratio = medians[pair[0]] / medians[pair[1]]
                print(f"{pair[0]}: {ratio:.2f} x the time of {pair[1]}")


if __name__ == "__main__":
    main()
