"""An epoch of the MNIST VAE, and what it learns, beside hand-written PyTorch and `pyro.infer.SVI`.

    python -m benchmarks.vae_epoch --data-root data              # time of an epoch, four ways
    python -m benchmarks.vae_epoch --data-root data --train 30   # test NLL, two ways

All arms have the same net (784-400-50-400-784, tanh), batches of 256, Adam, and binarise afresh.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from guides import AmortizedNormal
from ppl_models import VAE, datasets, elbo, fit, log_evidence
from ppl_models.engine.data import source
from ppl_models.engine.descend import Descent
from ppl_models.nn import MLP

NUM_LATENTS, HIDDEN, BATCH = 50, (400,), 256
Cosine = torch.optim.lr_scheduler.CosineAnnealingLR


def networks(seed: int, device: torch.device) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    decoder, encoder = MLP(NUM_LATENTS, 784, HIDDEN), MLP(784, 2 * NUM_LATENTS, HIDDEN)
    return decoder.to(device), encoder.to(device)


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
        for i in range(batches):
            x = torch.bernoulli(images[order[i * BATCH : (i + 1) * BATCH]])
            loc, log_scale = encoder(x).chunk(2, -1)
            scale = log_scale.exp()
            z = loc + scale * torch.randn_like(loc)
            cross_entropy = functional.binary_cross_entropy_with_logits(
                decoder(z), x, reduction="sum"
            )
            kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * log_scale).sum()
            loss = (cross_entropy + kl) / len(x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()

    return epoch, decoder, encoder


def programs(seed: int, device: torch.device) -> tuple[VAE, AmortizedNormal]:
    decoder, encoder = networks(seed, device)
    vae = VAE(784, NUM_LATENTS, decoder=decoder).to(device)
    return vae, AmortizedNormal(784, NUM_LATENTS, encoder)


def by_fit(images: Tensor, seed: int) -> Callable[[], None]:
    vae, guide = programs(seed, images.device)
    objective = elbo(vae, guide)
    train = datasets.Transformed(images, transform=torch.bernoulli)
    return lambda: fit(objective, train, epochs=1, batch_size=BATCH, progress=False) and None


def by_compiled_steps(images: Tensor, seed: int) -> Callable[[], None]:
    """The steps of `fit(..., compile=True)`, without its checks of the data before each epoch."""
    vae, guide = programs(seed, images.device)
    descent = Descent(elbo(vae, guide), compile=True)
    train = source(datasets.Transformed(images, transform=torch.bernoulli), BATCH, None, False)
    seeds = itertools.count()

    def epoch() -> None:
        for batch in train.epoch(next(seeds)):
            if not descent.started:
                descent.start(batch)
            descent.step(batch)

    return epoch


def by_svi(images: Tensor, seed: int) -> Callable[[], None]:
    """Pyro's own way, as in its example: `SVI`, a `DataLoader`, modules registered by name."""
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
    loader = DataLoader(TensorDataset(images.cpu()), batch_size=BATCH, shuffle=True)

    def epoch() -> None:
        for (x,) in loader:
            svi.step(torch.bernoulli(x.to(images.device)))

    return epoch


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


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = torch.device(args.device)
    images, _ = (x.to(device) for x in datasets.mnist(args.data_root))
    _, test = datasets.mnist(args.data_root, binarize="fresh", seed=0)
    test = test.to(device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")

    if args.train:
        epoch, decoder, encoder = by_hand(images, args.seed, args.train)
        for _ in range(args.train):
            epoch()
        hand = nll_by_hand(decoder, encoder, test, args.samples)
        print(f"by hand: test NLL {hand:.3f} nats per row")

        vae, guide = programs(args.seed, device)
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
        return

    arms = {
        "by hand, in memory": by_hand(images, args.seed, 100)[0],
        "ppl_models.fit": by_fit(images, args.seed),
        "fit, compiled, steps alone": by_compiled_steps(images, args.seed),
        "pyro.infer.SVI, DataLoader": by_svi(images, args.seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(args.rounds + 1):
        for name, epoch in arms.items():
            wait(device)
            began = time.perf_counter()
            epoch()
            wait(device)
            if round_number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["by hand, in memory"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28s} {median:6.2f} s an epoch, {median / base:5.2f} x by hand")


if __name__ == "__main__":
    main()
