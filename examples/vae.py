r"""A variational autoencoder learns digits.

    python examples/vae.py                                   # 8x8 digits, half a minute
    python examples/vae.py --data mnist --data-root data     # downloads what is missing
    python examples/vae.py --data mnist --data-root data --net conv --prior vamp --latents 40 \
        --epochs 400 --device cuda --resume                  # goes on from its checkpoint
    torchrun --nproc-per-node 2 examples/vae.py              # by two processes

Prints the evidence of the test rows, and writes into `--outdir`: the training curve, digits drawn
from the prior, reconstructions, the latent space, and a posterior for ArviZ.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import arviz as az
import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, datasets, elbo, fit, from_pyro_svi, log_evidence
from ppl_models.infer.objectives.iwae import iwae
from ppl_models.likelihoods import Bernoulli
from ppl_models.nn import MLP, ConvDecoder, ConvEncoder
from ppl_models.priors import FlowPrior, MixturePrior, VampPrior
from ppl_models.processes import together


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["digits", "mnist", "fashion-mnist", "binary-mnist"]
    parser.add_argument("--data", choices=names, default="digits")
    parser.add_argument("--data-root", default="data", help="the folder of MNIST and the like")
    parser.add_argument("--epochs", type=int, help="default: 300 for digits, else 30")
    parser.add_argument("--latents", type=int, help="default: 8 for digits, else 50")
    parser.add_argument("--prior", choices=["normal", "mixture", "vamp", "flow"], default="normal")
    parser.add_argument("--components", type=int, default=100, help="of a mixture or vamp prior")
    parser.add_argument("--net", choices=["mlp", "conv"], default="mlp")
    parser.add_argument("--particles", type=int, default=1, help="more than 1 for the IWAE bound")
    parser.add_argument("--samples", type=int, default=1000, help="importance samples a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--amp", action="store_true", help="run the networks in bfloat16")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> tuple[object, Tensor, Tensor | None, str]:
    """Returns training data, test rows, their labels, and how they became binary."""
    if args.data == "digits":
        (train, _), (test, labels) = datasets.digits(binary=True, labels=True)
        return train, test, labels, "grey levels >= 8 of 16"
    if args.data == "binary-mnist":
        train, _, test = datasets.binary_mnist(args.data_root)
        return train, test, None, "the fixed file of Larochelle and Murray"
    images = datasets.mnist if args.data == "mnist" else datasets.fashion_mnist
    train, test = images(args.data_root, binarize="fresh")
    _, (_, labels) = images(args.data_root, labels=True)
    return train, test, labels, "a fresh draw each epoch, one draw of the test rows"


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    here = together()  # one process, or those of torchrun, of which the first prints and writes
    say = print if here.is_first else lambda *_: None
    small = args.data == "digits"
    epochs, num_latents = (
        args.epochs or (300 if small else 30),
        args.latents or (8 if small else 50),
    )
    train, test, labels, binary = load(args)
    num_features = test.shape[1]
    say(f"{args.data}: {len(train)} training rows, {len(test)} test rows, {num_features} pixels")
    say(f"binary by {binary}; independent pixels give {independent_pixels(train, test):.3f} nats")

    torch.manual_seed(args.seed)
    vae, guide = programs(args, train, num_features, num_latents)
    objective = iwae(vae, guide, args.particles) if args.particles > 1 else elbo(vae, guide)
    args.outdir.mkdir(parents=True, exist_ok=True)
    run = fit(
        objective,
        train,
        epochs=epochs,
        batch_size=64 if small else 256,
        lr=2e-3 if small else 1e-3,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
        seed=args.seed,
        device=args.device,
        amp=args.amp,
        validation=test,
        checkpoint=args.outdir / f"vae-{args.data}.safetensors",
        resume=args.resume,
    )
    say(f"fitted in {run.seconds:.0f} s, {run.steps} steps")

    device = next(vae.parameters()).device
    test = test.to(device)
    evidence = log_evidence(vae, guide, test, num_samples=args.samples, seed=args.seed)
    say(f"test {evidence}")
    say(f"test NLL {-evidence.mean:.3f} nats per row, {evidence.bits_per_dim:.4f} bits/dim")

    # The posterior of a few rows, as ArviZ reads it.
    posterior = from_pyro_svi(
        vae, guide, test[:20], num_samples=500, dims={"z": ["latent"]}, seed=args.seed
    )
    if not here.is_first:
        return
    print("\nthe latent vector of the first test row (its first entries), under the guide:")
    first = posterior["posterior"].isel(data=[0], latent=slice(8))
    print(az.summary(first, var_names=["z"], kind="stats"))

    written = [args.outdir / f"vae-{args.data}-posterior.nc"]
    posterior.to_netcdf(written[0])
    with torch.no_grad():
        draws = vae.prior().sample((100,))
        pictures = {
            "curve": curve(run.history),
            "samples": images(vae.mean(draws), "Drawn from the prior (probabilities of ink)"),
            "reconstructions": reconstructions(vae, guide, test[:20]),
            "latents": latents(guide.posterior(test).mean, labels),
        }
    for name, figure in pictures.items():
        written.append(args.outdir / f"vae-{args.data}-{name}.png")
        figure.savefig(written[-1], dpi=120)
    print("\nwritten:", *written, sep="\n  ")


def programs(
    args: argparse.Namespace, train: object, num_features: int, num_latents: int
) -> tuple[VAE, AmortizedNormal]:
    side = round(num_features**0.5)
    if args.net == "conv":
        encoder: nn.Module = ConvEncoder(side, side, 2 * num_latents)
        decoder: nn.Module = ConvDecoder(num_latents, side, side)
    else:
        hidden = (128, 128) if args.data == "digits" else (400,)
        decoder = MLP(num_latents, num_features, hidden)
        encoder = MLP(num_features, 2 * num_latents, hidden)
    guide = AmortizedNormal(num_features, num_latents, encoder)
    rows = train if isinstance(train, Tensor) else train.tensors[0]
    priors = {
        "normal": lambda: None,
        "mixture": lambda: MixturePrior(num_latents, args.components),
        "vamp": lambda: VampPrior(rows[torch.randperm(len(rows))[: args.components]], guide),
        "flow": lambda: FlowPrior(num_latents),
    }
    prior = priors[args.prior]()
    return VAE(num_features, num_latents, Bernoulli(), decoder, prior), guide


def independent_pixels(train: object, test: Tensor) -> float:
    """The test NLL of a Bernoulli for each pixel, in nats per row."""
    images = train if isinstance(train, Tensor) else train.tensors[0]
    p = (images.sum(0) + 1) / (len(images) + 2)  # with a pseudo-count
    return -torch.distributions.Bernoulli(p).log_prob(test).sum(1).mean().item()


def curve(history: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training rows"), ("validation", "test rows")):
        axes.plot(range(1, len(history[name]) + 1), history[name], label=label)
    low = min(history["loss"] + history["validation"])
    early = history["loss"][len(history["loss"]) // 15]  # the first epochs would hide the rest
    axes.set(xlabel="epoch", ylabel="minus the bound (nats per row)", title="Training")
    if early > low:
        axes.set_ylim(low - 0.03 * (early - low), early)
    axes.legend()
    return figure


def images(rows: Tensor, title: str, columns: int = 10) -> Figure:
    """Draws rows as a grid of square images."""
    side = int(rows.shape[1] ** 0.5)
    height = -(-len(rows) // columns)
    figure = Figure(figsize=(0.6 * columns, 0.6 * height + 0.5), layout="constrained")
    figure.suptitle(title)
    for axes, row in zip(figure.subplots(height, columns).flat, rows.cpu(), strict=True):
        axes.imshow(row.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
        axes.axis("off")
    return figure


def reconstructions(vae: VAE, guide: AmortizedNormal, rows: Tensor) -> Figure:
    again = vae.mean(guide.posterior(rows).mean)
    pairs = [torch.cat([a, b]) for a, b in zip(rows.split(10), again.split(10), strict=True)]
    return images(torch.cat(pairs), "Test rows, and below each its reconstruction")


def latents(means: Tensor, labels: Tensor | None) -> Figure:
    plane = PCA(2).fit_transform(means.cpu().numpy())
    size = 10 if len(plane) < 1000 else 1
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.set_title("Posterior means of the test rows")
    if labels is None:
        axes.scatter(*plane.T, s=size)
        return figure
    for digit in labels.unique().tolist():
        chosen = plane[(labels == digit).numpy()]
        axes.scatter(
            *chosen.T, s=size, color=matplotlib.colormaps["tab10"](digit), label=str(digit)
        )
    axes.legend(
        title="digit", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=6 / size**0.5
    )
    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
