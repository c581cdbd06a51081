r"""
What lies between the codes
===========================

An autoencoder gives each digit a code, from which it is drawn again. What does it draw from codes
that belong to no digit, and why can only one of three be used to draw new ones?

All three have the same networks, an encoder and a decoder :math:`f`, the same two latents and the
same likelihood of binary pixels. The plain one minimises what a row costs given its code, the
denoising one [1]_ the same of a code that it reads off a noisy row, and the variational one [2]_
the cost and how far codes are from a prior:

.. math::
    \text{plain:} \quad & -\log p_\theta(x \mid z = g_\phi(x)) \\
    \text{denoising:} \quad & -\log p_\theta(x \mid z = g_\phi(\tilde x)), \qquad
    \tilde x \sim c(\tilde x \mid x) \\
    \text{variational:} \quad & -\mathbb{E}_{q_\phi(z \mid x)} \log p_\theta(x \mid z)
    + \mathrm{KL}(q_\phi(z \mid x) \,\|\, \mathcal{N}(0, I))

Only the last says where codes should be. All three are asked the same: draw :math:`z` from
:math:`\mathcal{N}(0, I)`, and decode it.

Takes 35 seconds on two cores: ``python examples/latent_spaces.py``. Pictures go into
``outputs/``. Of MNIST it takes minutes:

.. code-block:: sh

    python examples/latent_spaces.py --data mnist --data-root data --epochs 20

.. [1] Extracting and Composing Robust Features with Denoising Autoencoders (Vincent et al., 2008)
.. [2] `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_ (Kingma and Welling,
       2013)
"""

# %%
# The data
# --------

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.neighbors import KNeighborsClassifier

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    AutoEncoder,
    DenoisingAutoEncoder,
    aggregate,
    datasets,
    elbo,
    fit,
    log_evidence,
    reconstruction,
)
from ppl_models.autoencoders.corruption import SaltAndPepper
from ppl_models.likelihoods import Bernoulli
from ppl_models.nn import MLP
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="Three autoencoders, and what is between their codes.")
parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
parser.add_argument("--data-root", default="data", help="the folder of MNIST")
parser.add_argument("--epochs", type=int, help="default: 200 for digits, 10 for MNIST")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")
small = args.data == "digits"

try:
    if small:
        (train, labels), (test, _) = datasets.digits(binary=True, labels=True)
    else:
        (train, labels), (test, _) = datasets.mnist(args.data_root, labels=True)
        # Binary at one half: a mean picture then counts as the nearest binary one.
        train, test = (train >= 0.5).float(), (test[:2000] >= 0.5).float()
except FileNotFoundError as error:  # no data: one line says where they should be
    raise SystemExit(f"error: {error}") from None
size = train.shape[1]
print(f"{args.data}: {len(train)} training rows, {len(test)} test rows, {size} binary pixels")

# %%
# Three autoencoders
# ------------------
# The noise of the denoising one sets a fifth of the pixels to 0 or 1, at random.

torch.manual_seed(args.seed)
noise = SaltAndPepper(0.2)
width = (128, 128) if small else (256, 256)


def networks(outputs):
    return MLP(size, outputs, width), MLP(2, size, width)


plain = AutoEncoder(size, 2, *networks(2), likelihood=Bernoulli())
denoising = DenoisingAutoEncoder(size, 2, *networks(2), likelihood=Bernoulli(), noise=noise)
encoder, decoder = networks(4)  # a mean and a scale of each latent
vae, guide = VAE(size, 2, Bernoulli(), decoder), AmortizedNormal(size, 2, encoder)

# %%
# Each is fitted by :func:`ppl_models.fit`, with an objective of its own.

objectives = {
    "plain": reconstruction(plain),
    "denoising": reconstruction(denoising),
    "variational": elbo(vae, guide),
}
for name, objective in objectives.items():
    run = fit(
        objective,
        train,
        epochs=args.epochs or (200 if small else 10),
        batch_size=64 if small else 256,
        lr=2e-3,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR,
        seed=args.seed,
    )
    print(f"{name:12} loss {run.history['loss'][-1]:.2f} nats per row, {run.seconds:.0f} s")

# %%
# The losses are not to be compared: that of the VAE has the KL in it, and is an upper bound of
# minus the log evidence. Those of the others bound nothing.
#
# What they make of digits
# ------------------------
# The codes of a VAE are draws of :math:`q(z \mid x)`, not its means: those draws are what it
# decodes.

encode = {
    "plain": plain.encode,
    "denoising": denoising.encode,
    "variational": lambda x: guide.posterior(x).mean,
}
decode = {"plain": plain.decode, "denoising": denoising.decode, "variational": vae.mean}
with torch.no_grad():
    codes = {"plain": plain.encode(train), "denoising": denoising.encode(train)}
    codes["variational"] = guide.posterior(train).sample()
    prior = torch.randn(1000, 2)
    samples = {name: f(prior) for name, f in decode.items()}
    rebuilt = {name: decode[name](encode[name](test)) for name in decode}
    noisy = noise(test)
    cleaned = {name: decode[name](encode[name](noisy)) for name in decode}

# sphinx_gallery_thumbnail_number = 2
figure, panels = plt.subplots(1, 3, figsize=(11, 4.2))
for axes, (name, points) in zip(panels, codes.items(), strict=True):
    axes.scatter(*prior[:200].T, s=12, c="0.6", marker="+", lw=0.7, zorder=1)
    for digit in range(10):
        chosen = points[:2000][labels[:2000] == digit][:60]
        axes.scatter(*chosen.T, s=22, lw=0.2, marker=f"${digit}$", color=f"C{digit % 7}", zorder=2)
    angle = torch.linspace(0, 2 * torch.pi, 200)
    axes.plot(3 * angle.cos(), 3 * angle.sin(), "k--", linewidth=1, zorder=3)
    axes.set(title=f"{name} autoencoder", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    axes.set_adjustable("datalim")
figure.suptitle("Codes of training rows, as their digits; crosses: 200 draws of the prior")
figure.savefig(args.outdir / f"latent-spaces-{args.data}-codes.png")

# %%
# Nearly all draws of the prior lie in the dashed circle, of radius 3. Without a prior codes are
# where they please, with wide gaps between them; those of the VAE fill the circle, and overlap.
#
# The plane of the VAE
# --------------------
# Decoded at the quantiles of the prior, so that each tile has as much of it: every place is some
# digit, and between two digits lie pictures that are partly one and partly the other.

side, tiles = int(size**0.5), 15
at = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(tiles) + 0.5) / tiles)
with torch.no_grad():
    plane = vae.mean(torch.cartesian_prod(-at, at).flip(1))  # lines from the top: z_2 falls
figure, axes = plt.subplots(figsize=(6.4, 6.6))
images(plane, axes, columns=tiles, title="Decoded latents (probabilities of ink)")
ticks = torch.arange(tiles)[1::3]
names = [f"{round(z, 1) + 0:.1f}" for z in at[ticks].tolist()]
axes.axis("on")
axes.set_xticks(ticks * (side + 1) + side / 2, names)
axes.set_yticks(ticks * (side + 1) + side / 2, names[::-1])
axes.set(xlabel="$z_1$", ylabel="$z_2$")
figure.savefig(args.outdir / f"latent-spaces-{args.data}-plane.png")

# %%
# Draws of the prior
# ------------------
# The same draws, decoded by each:

figure, panels = plt.subplots(1, 3, figsize=(11, 3.2))
for axes, (name, rows) in zip(panels, samples.items(), strict=True):
    images(rows[:48], axes, columns=8, title=f"{name} autoencoder")
figure.suptitle("Decoded draws of N(0, I) (probabilities of ink)")
figure.get_layout_engine().set(wspace=0.08)
figure.savefig(args.outdir / f"latent-spaces-{args.data}-samples.png")

# %%
# In numbers
# ----------
# - *spread*: the standard deviation of a latent over the training rows, 1 under the prior.
# - *KL*: of the Gaussian with the mean and covariance of the codes from the prior, in nats.
# - *off*: a point is off others if the nearest of them is farther than 99 % of those are from each
#   other. Where many codes are off the draws of the prior, the digits there are never drawn.
# - *draw to nearest digit*: in how many pixels a draw differs from the nearest training row.
# - *classes*: how many digits there are among the draws, as the exponential of the entropy of a
#   nearest-neighbour classifier's verdicts; at most 10.


def wrong(means, rows):
    return (means.round() != rows).double().mean().item()


def gaussian_kl(codes):
    """KL of the Gaussian with the moments of the codes from N(0, I), in nats."""
    covariance = torch.cov(codes.T)
    trace, determinant = covariance.trace(), torch.linalg.slogdet(covariance)[1]
    return (0.5 * (trace + codes.mean(0).square().sum() - len(covariance) - determinant)).item()


def off(points, others):
    """The share of points that lie farther from the others than nearly all of those do."""
    among = torch.cdist(others[:2000], others[:2000]).fill_diagonal_(torch.inf).amin(1)
    return (torch.cdist(points, others).amin(1) > among.quantile(0.99)).double().mean().item()


def nearest(rows, others):
    """The mean number of pixels in which a binary row differs from the nearest other."""
    return torch.cdist(rows, others, p=1).amin(1).mean().item()


def classes(samples):
    counts = torch.as_tensor(classifier.predict(samples.round().numpy())).bincount(minlength=10)
    return torch.special.entr(counts / counts.sum()).sum().exp()


some = train[:5000]  # enough neighbours
classifier = KNeighborsClassifier(5).fit(some.numpy(), labels[:5000].numpy())
measures = {
    "wrong pixels of a test row": lambda n: f"{wrong(rebuilt[n], test):.1%}",
    "wrong pixels, from a noisy one": lambda n: f"{wrong(cleaned[n], test):.1%}",
    "spread of the codes": lambda n: f"{codes[n].std(0).mean():.2f}",
    "KL(codes | prior), nats": lambda n: f"{gaussian_kl(codes[n]):.2f}",
    "draws of the prior off the codes": lambda n: f"{off(prior, codes[n]):.0%}",
    "codes off the draws of the prior": lambda n: f"{off(codes[n][:1000], prior):.0%}",
    "draw to nearest digit, pixels": lambda n: f"{nearest(samples[n].round(), some):.2f}",
    "classes of digits among draws": lambda n: f"{classes(samples[n]):.1f}",
}
print(f"{'':36}" + "".join(f"{name:>14}" for name in codes))
for title, measure in measures.items():
    print(f"  {title:34}" + "".join(f"{measure(name):>14}" for name in codes))
print(f"of a noisy test row {wrong(noisy, test):.1%} of the pixels are wrong, before it is cleaned")
print(f"a test row is on average {nearest(test, some):.2f} pixels from the nearest training row")

# %%
# The three are about equally good at a digit that they are shown. Draws of the prior tell them
# apart: about half of the plain one's codes lie where the prior hardly ever draws, and what it
# draws are about five kinds of digits; the VAE draws all ten. The denoising one is the best at what
# it was fitted to, though two latents are too few to leave fewer pixels wrong than the noise did:
#
# Noise taken away
# ----------------

lines = {"test row": test, "noisy": noisy} | cleaned
figure, panels = plt.subplots(len(lines), 1, figsize=(7.6, 3.4))
for axes, (name, rows) in zip(panels, lines.items(), strict=True):
    images(rows[:12], axes, columns=12)
    axes.text(-0.01, 0.5, name, ha="right", va="center", transform=axes.transAxes)
figure.suptitle("Noisy test rows, and what each autoencoder makes of them")
figure.savefig(args.outdir / f"latent-spaces-{args.data}-denoised.png")

# %%
# Which of them has a density?
# ----------------------------
# Only the VAE says how likely a row is, and so has an evidence: a lower bound, from importance
# samples.

print(f"VAE: {log_evidence(vae, guide, test, num_samples=500, seed=args.seed)}")
try:
    log_evidence(plain, None, test)
except ValueError as error:
    print(f"plain: {error}")

# %%
# How far its codes are from the prior
# ------------------------------------
# The KL of the ELBO, averaged over rows, taken apart: what codes say about which row it is, and how
# far all codes together are from the prior. The second part is what a prior that is learned could
# save.

print(aggregate(vae, guide, train[:1500], seed=args.seed))

# %%
# To try next
# -----------
# - ``elbo(vae, guide, beta=0.1)``, between a plain autoencoder and a VAE: which measures move
#   first?
# - Draw codes of the plain autoencoder from a :class:`ppl_models.GaussianMixture` that is fitted to
#   them: how good are these draws?
# - More than two latents, as in :doc:`/gallery/vae`. The derivations are in
#   :doc:`/families/autoencoders`.
