r"""Three autoencoders and what lies in their latent spaces: plain, denoising and variational.

    python examples/latent_spaces.py                                 # 8x8 digits, a minute
    python examples/latent_spaces.py --data mnist --data-root data --epochs 20

All three have the same networks, the same two latents and the same likelihood of binary pixels:

    autoencoder     minimises  -log p(x | z = f(x))
    denoising       minimises  -log p(x | z = f(noisy x))
    variational     minimises  -E log p(x | z) + KL(q(z | x) | N(0, I)),   z ~ q(z | x)

Only the last says where codes should be. It is asked here of all three: draw z from N(0, I), and
decode it. The table says why that fails for the others, and the pictures show it.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from guides import AmortizedNormal
from ppl_models import VAE, aggregate, datasets, elbo, fit, log_evidence
from ppl_models.autoencoders.autoencoder import AutoEncoder, DenoisingAutoEncoder
from ppl_models.autoencoders.corruption import SaltAndPepper
from ppl_models.autoencoders.reconstruction import reconstruction
from ppl_models.likelihoods import Bernoulli
from ppl_models.nn import MLP

NOISE = SaltAndPepper(0.2)
DRAWS = 1000


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data-root", default="data", help="the folder of MNIST")
    parser.add_argument("--epochs", type=int, help="default: 200 for digits, 10 for MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    small = args.data == "digits"
    (train, labels), test = load(args)
    size = train.shape[1]
    print(f"{args.data}: {len(train)} training rows, {len(test)} test rows, {size} binary pixels")
    print("three autoencoders with two latents and the same networks\n")

    torch.manual_seed(args.seed)
    width = (128, 128) if small else (256, 256)

    def networks(outputs: int) -> tuple[nn.Module, nn.Module]:
        return MLP(size, outputs, width), MLP(2, size, width)

    plain = AutoEncoder(size, 2, *networks(2), likelihood=Bernoulli())
    denoising = DenoisingAutoEncoder(size, 2, *networks(2), likelihood=Bernoulli(), noise=NOISE)
    encoder, decoder = networks(4)
    vae, guide = VAE(size, 2, Bernoulli(), decoder), AmortizedNormal(size, 2, encoder)
    objectives = {
        "plain": reconstruction(plain),
        "denoising": reconstruction(denoising),
        "variational": elbo(vae, guide),
    }
    for objective in objectives.values():
        fit(
            objective,
            train,
            epochs=args.epochs or (200 if small else 10),
            batch_size=64 if small else 256,
            lr=2e-3,
            schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
            seed=args.seed,
        )

    encode: dict[str, Callable[[Tensor], Tensor]] = {
        "plain": plain.encode,
        "denoising": denoising.encode,
        "variational": lambda x: guide.posterior(x).mean,
    }
    decode = {"plain": plain.decode, "denoising": denoising.decode, "variational": vae.mean}
    with torch.no_grad():
        codes = {name: f(train) for name, f in encode.items()}
        prior = torch.randn(DRAWS, 2)
        samples = {name: f(prior) for name, f in decode.items()}
        # The codes of a VAE are draws of q(z | x), not its means: those are what it decodes.
        spread = codes | {"variational": guide.posterior(train).sample()}
        rebuilt = {name: decode[name](encode[name](test)) for name in decode}
        noisy = NOISE(test)
        cleaned = {name: decode[name](encode[name](noisy)) for name in decode}

    report(spread, prior, samples, rebuilt, cleaned, train, labels, test)
    print("\nOf the three only the VAE has a density of rows:")
    print(f"  VAE: {log_evidence(vae, guide, test, num_samples=500, seed=args.seed)}")
    try:
        log_evidence(plain, None, test)
    except ValueError as error:
        print(f"  {error}")
    gap = aggregate(vae, guide, train[:1500], seed=args.seed)
    print(f"\nIts codes beside N(0, I), taken apart:\n{gap}")

    figures = {
        "codes": draw_codes(spread, labels, prior),
        "aggregate": gap.plot(),
        "samples": draw_samples(samples),
        "denoised": draw_denoised(test, noisy, cleaned),
    }
    print("\nwritten:")
    for name, figure in figures.items():
        file = args.outdir / f"latent-spaces-{args.data}-{name}.png"
        figure.savefig(file, dpi=120)
        print(f"  {file}")


def load(args: argparse.Namespace) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Returns training rows with their labels, and test rows."""
    if args.data == "digits":
        train, (test, _) = datasets.digits(binary=True, labels=True)
        return train, test
    (train, labels), (test, _) = datasets.mnist(args.data_root, labels=True)
    # Binary at one half: a mean picture then counts as the nearest binary one.
    return ((train >= 0.5).float(), labels), (test[:2000] >= 0.5).float()


def report(
    codes: dict[str, Tensor],
    prior: Tensor,
    samples: dict[str, Tensor],
    rebuilt: dict[str, Tensor],
    cleaned: dict[str, Tensor],
    train: Tensor,
    labels: Tensor,
    test: Tensor,
) -> None:
    """Prints what can be measured of the three."""
    some = train[:5000]  # enough neighbours
    classifier = KNeighborsClassifier(5).fit(some.numpy(), labels[:5000].numpy())
    rows: dict[str, Callable[[str], str]] = {
        "wrong pixels of a test row": lambda n: f"{wrong(rebuilt[n], test):.1%}",
        "wrong pixels, from a noisy one": lambda n: f"{wrong(cleaned[n], test):.1%}",
        "spread of the codes": lambda n: f"{codes[n].std(0).mean():.2f}",
        "KL(codes | prior), nats": lambda n: f"{gaussian_kl(codes[n]):.2f}",
        "draws of the prior off the codes": lambda n: f"{off(prior, codes[n]):.0%}",
        "codes off the draws of the prior": lambda n: f"{off(codes[n][:DRAWS], prior):.0%}",
        "draw to nearest digit, pixels": lambda n: f"{nearest(samples[n].round(), some):.2f}",
        "classes of digits among draws": lambda n: classes(classifier, samples[n]),
    }
    print(f"{'':36}" + "".join(f"{name:>14}" for name in codes))
    for title, value in rows.items():
        print(f"  {title:34}" + "".join(f"{value(name):>14}" for name in codes))
    print(
        f"""
{NOISE.probability:.0%} of the pixels of a noisy row are set to 0 or 1 at random: {
            wrong(NOISE(test), test):.1%} are wrong.
Spread is the standard deviation of a latent over the training rows: 1 under the prior, N(0, I).
KL is that of the Gaussian with the mean and covariance of the codes from the prior. A point is off
others if the nearest of them is farther than 99 % of those are from each other. A test row
is on average {
            nearest(
                test, some
            ):.2f} pixels from the nearest training row. Classes are effective ones,
the exponential of the entropy of a k-nearest-neighbour classifier's verdicts: at most 10.
Where many codes are off the draws of the prior, the digits there are never drawn."""
    )


def wrong(means: Tensor, rows: Tensor) -> float:
    return (means.round() != rows).double().mean().item()


def gaussian_kl(codes: Tensor) -> float:
    """KL of the Gaussian with the moments of the codes from N(0, I), in nats."""
    covariance = torch.cov(codes.T)
    trace, determinant = covariance.trace(), torch.linalg.slogdet(covariance)[1]
    return (0.5 * (trace + codes.mean(0).square().sum() - len(covariance) - determinant)).item()


def off(points: Tensor, others: Tensor) -> float:
    """The share of points that lie farther from the others than nearly all of those do."""
    among = torch.cdist(others[:2000], others[:2000]).fill_diagonal_(torch.inf).amin(1)
    return (torch.cdist(points, others).amin(1) > among.quantile(0.99)).double().mean().item()


def nearest(rows: Tensor, others: Tensor) -> float:
    """The mean number of pixels in which a binary row differs from the nearest other."""
    return torch.cdist(rows, others, p=1).amin(1).mean().item()


def classes(classifier: KNeighborsClassifier, samples: Tensor) -> str:
    counts = torch.as_tensor(classifier.predict(samples.round().numpy())).bincount(minlength=10)
    share = counts / counts.sum()
    return f"{torch.special.entr(share).sum().exp():.1f}"


def draw_codes(codes: dict[str, Tensor], labels: Tensor, prior: Tensor) -> Figure:
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (name, points) in zip(panels, codes.items(), strict=True):
        axes.scatter(*prior[:200].T, s=12, c="k", marker="+", lw=0.7, label="N(0, I)", zorder=2)
        for digit in range(10):
            chosen = points[:3000][labels[:3000] == digit]
            colour = matplotlib.colormaps["tab10"](digit)
            axes.scatter(*chosen.T, s=5, color=colour, label=str(digit), zorder=1, alpha=0.7)
        angle = torch.linspace(0, 2 * torch.pi, 200)
        axes.plot(3 * angle.cos(), 3 * angle.sin(), "k--", linewidth=1, zorder=3)
        axes.set(title=f"{name} autoencoder", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
        axes.set_adjustable("datalim")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3)
    figure.suptitle(
        "Codes of the training rows; crosses: draws of the prior, nearly all in the dashed circle"
    )
    return figure


def draw_samples(samples: dict[str, Tensor], columns: int = 8, lines: int = 6) -> Figure:
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    figure.suptitle("Decoded draws of N(0, I) (probabilities of ink)")
    for axes, (name, rows) in zip(figure.subplots(1, 3), samples.items(), strict=True):
        side = int(rows.shape[1] ** 0.5)
        tiles = rows[: columns * lines].view(lines, columns, side, side)
        tiles = nn.functional.pad(tiles, (0, 1, 0, 1), value=0.4)
        axes.imshow(tiles.transpose(1, 2).flatten(2).flatten(0, 1), cmap="gray_r", vmin=0, vmax=1)
        axes.set(title=f"{name} autoencoder", xticks=[], yticks=[])
    return figure


def draw_denoised(test: Tensor, noisy: Tensor, cleaned: dict[str, Tensor]) -> Figure:
    lines = {"test row": test, "noisy": noisy} | cleaned
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle("Noisy test rows, and what each autoencoder makes of them")
    side = int(test.shape[1] ** 0.5)
    for panels, (name, rows) in zip(figure.subplots(len(lines), 12), lines.items(), strict=True):
        for axes, row in zip(panels, rows, strict=False):
            axes.imshow(row.view(side, side), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        label = {"rotation": 0, "horizontalalignment": "right", "verticalalignment": "center"}
        panels[0].set_ylabel(name, **label)
    return figure


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
