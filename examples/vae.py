r"""
A variational autoencoder of digits
===================================

Which digits can be drawn from eight numbers, and how well does that describe digits that were
never seen?

A variational autoencoder [1]_ [2]_ gives each row a vector of latents, which a network :math:`f`,
the decoder, turns into probabilities of ink, pixel by pixel. The guide is a second network, the
encoder, from a row to an approximate posterior of its latents:

.. math::
    z_n &\sim \mathcal{N}(0, I) \\
    x_{nd} \mid z_n &\sim \mathrm{Bernoulli}(\mathrm{sigmoid}(f_\theta(z_n)_d)) \\
    q_\phi(z_n \mid x_n) &= \mathcal{N}(\mu_\phi(x_n), \mathrm{diag}(\sigma^2_\phi(x_n)))

Both are fitted together: they ascend the evidence lower bound (ELBO),

.. math::
    \log p_\theta(x_n) \ge \mathbb{E}_{q_\phi(z \mid x_n)} \log p_\theta(x_n \mid z)
    - \mathrm{KL}(q_\phi(z \mid x_n) \,\|\, p(z))

Takes 15 seconds on two cores: ``python examples/vae.py``. Pictures go into ``outputs/``. It also
reads MNIST, Fashion-MNIST and the binary MNIST of Larochelle and Murray, which take longer, and
runs in several processes:

.. code-block:: sh

    python examples/vae.py --data mnist --data-root data     # downloads what is missing
    python examples/vae.py --data mnist --data-root data --net conv --prior vamp --latents 40 \
        --epochs 400 --device cuda --resume                  # goes on from its checkpoint
    torchrun --nproc-per-node 2 examples/vae.py              # by two processes

.. [1] `Auto-Encoding Variational Bayes <https://arxiv.org/abs/1312.6114>`_ (Kingma and Welling,
       2013)
.. [2] `Stochastic Backpropagation and Approximate Inference in Deep Generative Models
       <https://arxiv.org/abs/1401.4082>`_ (Rezende, Mohamed and Wierstra, 2014)
"""

# %%
# Settings
# --------
# The defaults fit the small digits of scikit-learn. Under ``torchrun`` each process runs this whole
# script, the work is shared, and the first one prints and draws.

import argparse
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import torch
from sklearn.decomposition import PCA

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    FlowPrior,
    MixturePrior,
    VampPrior,
    datasets,
    elbo,
    fit,
    from_pyro_svi,
    iwae,
    log_evidence,
)
from ppl_models.likelihoods import Bernoulli
from ppl_models.nn import MLP, ConvDecoder, ConvEncoder
from ppl_models.pictures import images
from ppl_models.processes import together

parser = argparse.ArgumentParser(description="A variational autoencoder learns digits.")
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
args = parser.parse_args()
small = args.data == "digits"
epochs = args.epochs or (300 if small else 30)
num_latents = args.latents or (8 if small else 50)

args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")
here = together()  # one process, or those of torchrun
say = print if here.is_first else lambda *_: None

# %%
# The data
# --------
# 1797 digits of 8 x 8 pixels, in which grey is made black or white. What is the least that a model
# should do? A probability for each pixel, and pixels that know nothing of each other.


def load(data, root):
    """Training rows, test rows, their labels where there are some, and how rows became binary."""
    if data == "digits":
        (train, _), (test, labels) = datasets.digits(binary=True, labels=True)
        return train, test, labels, "grey levels >= 8 of 16"
    if data == "binary-mnist":
        train, _, test = datasets.binary_mnist(root)
        return train, test, None, "the fixed file of Larochelle and Murray"
    read = datasets.mnist if data == "mnist" else datasets.fashion_mnist
    train, test = read(root, binarize="fresh")
    _, (_, labels) = read(root, labels=True)
    return train, test, labels, "a fresh draw each epoch, one draw of the test rows"


try:
    train, test, labels, binary = load(args.data, args.data_root)
except FileNotFoundError as error:  # no data: one line says where they should be
    raise SystemExit(f"error: {error}") from None

rows = train if isinstance(train, torch.Tensor) else train.tensors[0]  # grey, before any draw
num_features = test.shape[1]
ink = (rows.sum(0) + 1) / (len(rows) + 2)  # the frequency at each pixel, with a pseudo-count
independent = -torch.distributions.Bernoulli(ink).log_prob(test).sum(1).mean()
say(f"{args.data}: {len(train)} training rows, {len(test)} test rows, {num_features} pixels")
say(f"binary by {binary}; independent pixels give {independent:.3f} nats")

# %%
# The programs
# ------------
# The model is a :class:`ppl_models.VAE`, the guide a :class:`guides.AmortizedNormal`: they meet
# through the name of the latent, ``"z"``, and any other program with that site would do.

torch.manual_seed(args.seed)
side = round(num_features**0.5)
if args.net == "conv":
    encoder = ConvEncoder(side, side, 2 * num_latents)
    decoder = ConvDecoder(num_latents, side, side)
else:
    hidden = (128, 128) if small else (400,)
    decoder = MLP(num_latents, num_features, hidden)
    encoder = MLP(num_features, 2 * num_latents, hidden)  # a mean and a scale of each latent
guide = AmortizedNormal(num_features, num_latents, encoder)
prior = None  # N(0, I)
if args.prior == "mixture":
    prior = MixturePrior(num_latents, args.components)
elif args.prior == "vamp":
    prior = VampPrior(rows[torch.randperm(len(rows))[: args.components]], guide)
elif args.prior == "flow":
    prior = FlowPrior(num_latents)
vae = VAE(num_features, num_latents, Bernoulli(), decoder, prior)

# %%
# The fit
# -------
# Test rows are looked at after each epoch, and do not change what is learned. With ``--resume`` a
# run that was stopped goes on from its checkpoint, and ends with the same numbers.

run = fit(
    iwae(vae, guide, args.particles) if args.particles > 1 else elbo(vae, guide),
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

# %%
# The evidence
# ------------
# The number by which models of the same rows are compared. That of a VAE is an integral over the
# latents, and is estimated from below with importance samples from the guide: a lower bound, which
# is closer than the ELBO. Of rows that the model was not fitted to it says how well digits are
# described.

test = test.to(next(vae.parameters()).device)
evidence = log_evidence(vae, guide, test, num_samples=args.samples, seed=args.seed)
say(f"test {evidence}")
say(f"test NLL {-evidence.mean:.3f} nats per row, {evidence.bits_per_dim:.4f} bits/dim")

# %%
# NLL is the negative log-likelihood, here an upper bound: the smaller the better, and the distance
# to that of independent pixels is what the latents know. ``unreliable`` is said where few of the
# draws carry the weight: the number may be off by more than the printed error, and on average the
# true evidence is higher. How much, and why, is asked in :doc:`/gallery/trust`.
#
# The posterior
# -------------
# Of a few rows, as ArviZ reads it. Where the standard deviation of a latent is far below 1, that of
# the prior, the row says much about it.

posterior = from_pyro_svi(
    vae, guide, test[:20], num_samples=500, dims={"z": ["latent"]}, seed=args.seed
)
if not here.is_first:  # the other processes have done their part
    raise SystemExit
posterior.to_netcdf(args.outdir / f"vae-{args.data}-posterior.nc")
print("the latent vector of the first test row (its first entries), under the guide:")
first = posterior["posterior"].isel(data=[0], latent=slice(8))
print(az.summary(first, var_names=["z"], kind="stats"))

# %%
# Training
# --------
# The loss is minus the bound, of the training rows, and dashed of the test rows (``validation``).
# The curves part: with 1500 rows to learn from, the networks learn some of them by heart. That does
# no harm to other rows as long as the curve of the test rows does not rise.

figure, axes = plt.subplots()
run.plot(axes)
figure.savefig(args.outdir / f"vae-{args.data}-curve.png")

# %%
# What becomes of a digit
# -----------------------
# A test row, and below it what the decoder makes of the mean of its latents: the probability of
# ink, in grey. What is lost does not fit into so few numbers.

with torch.no_grad():
    again = vae.mean(guide.posterior(test[:20]).mean)
pairs = [torch.cat(pair) for pair in zip(test[:20].split(10), again.split(10), strict=True)]
figure, axes = plt.subplots(figsize=(6.4, 2.9))
images(torch.cat(pairs), axes, title="Test rows, and below each its reconstruction")
figure.savefig(args.outdir / f"vae-{args.data}-reconstructions.png")

# %%
# Digits that nobody wrote
# ------------------------
# Latents drawn from the prior, and decoded. Some are no digits: the prior has mass where no row of
# the data has its latents. :func:`ppl_models.aggregate` says how much, in nats.

# sphinx_gallery_thumbnail_number = 3
with torch.no_grad():
    drawn = vae.mean(vae.prior().sample((100,)))
figure, axes = plt.subplots(figsize=(6.4, 6.8))
images(drawn, axes, title="Drawn from the prior (probabilities of ink)")
figure.savefig(args.outdir / f"vae-{args.data}-samples.png")

# %%
# Where digits lie
# ----------------
# Nobody told the model which digit is which. The means of the latents of the test rows, as each
# row's digit, seen along the two directions in which they vary most:

with torch.no_grad():
    plane = PCA(2).fit_transform(guide.posterior(test).mean.cpu().numpy())
figure, axes = plt.subplots(figsize=(6.4, 5.4))
if labels is None:
    axes.scatter(*plane.T, s=2)
else:
    for digit in labels.unique().tolist():
        chosen = plane[labels == digit][:100]
        axes.scatter(*chosen.T, s=36, lw=0.3, marker=f"${digit}$", color=f"C{digit % 7}")
axes.set(xlabel="first principal component", ylabel="second principal component")
axes.set_title("Posterior means of the latents of test rows")
figure.savefig(args.outdir / f"vae-{args.data}-latents.png")

# %%
# To try next
# -----------
# - ``--latents 2`` and ``--latents 20``: how much evidence do more latents buy?
# - ``--prior vamp``: a prior that is learned leaves fewer gaps. By how many nats does the evidence
#   rise?
# - ``--particles 10`` descends a closer bound: does the evidence rise, or only the bound?
# - :doc:`/gallery/trust` asks whether the posterior of this model can be trusted,
#   :doc:`/gallery/latent_spaces` what an autoencoder without a prior lacks, and
#   :doc:`/families/autoencoders` derives all of it.
