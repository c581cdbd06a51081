r"""
A game of two networks
======================

Samples of a generative adversarial network may look like digits. There is no likelihood to say how
good they are: what else can be measured, and what do real digits get?

A generator :math:`G` makes rows out of noise, and a discriminator :math:`D` tells them from rows of
the data [1]_. Each descends a loss of its own, here the hinge losses [2]_, in turns:

.. math::
    z &\sim \mathcal{N}(0, I), \qquad x = G(z) \\
    L_D &= \mathbb{E}_{\text{data}} \max(0, 1 - D(x)) + \mathbb{E}_z \max(0, 1 + D(G(z))) \\
    L_G &= -\mathbb{E}_z D(G(z))

The value of the game, :math:`V = -L_D`, is 0 where the discriminator tells all rows apart, and -2
where it cannot tell samples from data.

Takes 30 seconds on two cores: ``python examples/gan.py``. Pictures go into ``outputs/``.
More steps make better digits, and MNIST needs a GPU:

.. code-block:: sh

    python examples/gan.py --steps 10000                   # minutes
    python examples/gan.py --data mnist --data-root data --device cuda

.. [1] `Generative Adversarial Networks <https://arxiv.org/abs/1406.2661>`_ (Goodfellow et al.,
       2014)
.. [2] `Geometric GAN <https://arxiv.org/abs/1705.02894>`_ (Lim and Ye, 2017)
.. [3] `Improved Precision and Recall Metric for Assessing Generative Models
       <https://arxiv.org/abs/1904.06991>`_ (Kynkäänniemi et al., 2019)
.. [4] `Reliable Fidelity and Diversity Metrics for Generative Models
       <https://arxiv.org/abs/2002.09797>`_ (Naeem et al., 2020)
"""

# %%
# Settings and data
# -----------------

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from ppl_models import GAN, Classifier, adversarial, datasets, elbo, fit, log_evidence
from ppl_models.metrics import frechet, label_coverage, prdc
from ppl_models.nn import ConvDiscriminator, ConvGenerator
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="A generative adversarial network learns digits.")
names = ["digits", "mnist", "fashion-mnist"]
parser.add_argument(
    "--data", choices=names, default="digits", type=lambda name: name.replace("_", "-")
)
parser.add_argument("--data-root", default="data", help="the folder of MNIST and the like")
parser.add_argument("--steps", type=int, help="default: 3000 for digits, else 30000")
parser.add_argument("--classifier-epochs", type=int, help="default: 30 for digits, else 5")
parser.add_argument("--latents", type=int, help="default: 16 for digits, else 64")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
parser.add_argument("--checkpoint", type=Path, help="default: in outdir")
parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")
small = args.data == "digits"


def load(data, root):
    """Training and test rows with labels."""
    if data == "digits":
        return datasets.digits(labels=True)
    read = datasets.mnist if data == "mnist" else datasets.fashion_mnist
    return read(root, labels=True)


try:
    (x, y), (x_test, y_test) = load(args.data, args.data_root)
except FileNotFoundError as error:  # no data: one line says where they should be
    raise SystemExit(f"error: {error}") from None
side = math.isqrt(x.shape[1])
print(f"{args.data}: {len(x)} training rows, {len(x_test)} test rows, {side} x {side} pixels")

# %%
# A classifier to look with
# -------------------------
# Samples and rows are compared in the features of a classifier, since pixels say little of what a
# picture is of. It is fitted first, to the labels, which the GAN will not see.

torch.manual_seed(args.seed)
network = None  # a small perceptron
if not small:
    network = nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, 64),
        nn.ReLU(),
    )
classifier = Classifier(x.shape[1], 10, network=network)
fit(
    elbo(classifier),
    (x, y),
    epochs=args.classifier_epochs or (30 if small else 5),
    batch_size=100,
    lr=3e-3 if small else 1e-3,
    seed=args.seed,
    device=args.device,
)
device = classifier.head.weight.device
x, x_test = x.to(device), x_test.to(device)
accuracy = (classifier.predict(x_test).cpu() == y_test).double().mean().item()
print(f"classifier whose features are used below: test accuracy {accuracy:.1%}")

# %%
# The game
# --------
# :func:`ppl_models.adversarial` gives an objective for each player, and :func:`ppl_models.fit`
# takes turns over them. The learning rate falls over the second half, and the parameters are
# averaged (``ema``), since games go round in circles.


def fall(optimizer, steps):
    """The learning rate falls to a hundredth over the second half."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 0.01 + 2 * max(0.0, 1 - step / steps))
    )


torch.manual_seed(args.seed)
num_latents, width = args.latents or (16 if small else 64), 32 if small else 64
generator = ConvGenerator(num_latents, side, width=width)
gan = GAN(x.shape[1], num_latents, generator, ConvDiscriminator(side, width=width))
run = fit(
    adversarial(gan, "hinge"),
    x,
    steps=args.steps or (3000 if small else 30_000),
    batch_size=64,
    lr=1e-3 if small else 4e-4,
    optimizer=partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True),
    schedule=fall,
    ema=0.999,
    seed=args.seed,
    device=args.device,
    checkpoint=args.checkpoint or args.outdir / f"gan-{args.data}.safetensors",
    resume=args.resume,
)
print(f"fitted in {run.seconds:.0f} s, {run.steps} steps of each player")
value = run.history["value"][-1]
print(f"value of the hinge game {value:.3f}: from -2, all rows alike, to 0, all told apart")

figure, axes = plt.subplots()
run.plot(axes)
axes.axhline(-2, color="0.4", linestyle=":", label="value where all rows are alike")
axes.set_ylabel("hinge loss, and value of the game")
axes.legend(loc="center right", bbox_to_anchor=(1, 0.3))
figure.savefig(args.outdir / f"gan-{args.data}-curve.png")

# %%
# After the first epochs no curve goes far: what one player gains the other loses, and no curve says
# whether samples have become better.
#
# No evidence
# -----------
# A generator can draw, but cannot say how likely a row is. Asked for it, the library refuses:

try:
    log_evidence(gan, None, x_test)
except ValueError as error:
    print("evidence: none.", str(error).partition("\n")[0])  # Pyro adds lines of its own

# %%
# Samples
# -------

torch.manual_seed(args.seed)
with torch.no_grad():
    parts = [gan(size=min(1000, len(x_test) - i)) for i in range(0, len(x_test), 1000)]
samples = torch.cat(parts)

# sphinx_gallery_thumbnail_number = 2
figure, axes = plt.subplots(figsize=(6.4, 5.4))
images(samples[:80], axes, title="Samples of the generator")
figure.savefig(args.outdir / f"gan-{args.data}-samples.png")

# %%
# Did it learn rows by heart? Below each sample is the training row that is nearest to it:

closest = x[torch.cdist(samples[:20], x).argmin(1)]
pairs = [torch.cat(p) for p in zip(samples[:20].split(10), closest.split(10), strict=True)]
figure, axes = plt.subplots(figsize=(6.4, 2.9))
images(torch.cat(pairs), axes, title="Samples, and below each the nearest training row")
figure.savefig(args.outdir / f"gan-{args.data}-nearest.png")

# %%
# Judged beside real rows
# -----------------------
# Two sets of rows are compared by neighbourhoods. *Precision* is the share of samples that lie
# among training rows, *recall* the share of training rows that lie among samples [3]_; *density*
# and *coverage* are alike, but less swayed by outliers [4]_. The *Fréchet distance* compares means
# and covariances. All are estimates from so many rows, and mean nothing by themselves: other
# training rows, and test rows that no network has seen, say what real ones get, and noise what is
# bad.

torch.manual_seed(args.seed)
some, others = x[torch.randperm(len(x)).to(device)].split(len(x_test))[:2]
kinds = {"samples": samples, "training rows": others, "test rows": x_test}
kinds["uniform noise"] = torch.rand_like(some)
with torch.no_grad():
    real = classifier.features(some)
    features = {name: classifier.features(rows) for name, rows in kinds.items()}
print(f"{len(x_test)} rows of each kind, beside as many training rows (k = 5 neighbours):")
print("                precision   recall  density  coverage  Fréchet distance, squared")
for name, part in features.items():
    found = prdc(real, part)
    print(
        f"{name:15}{found.precision:10.3f}{found.recall:9.3f}{found.density:9.3f}"
        f"{found.coverage:10.3f}{frechet(real, part):12.2f}"
    )
modes = label_coverage(classifier.predict(samples), 10)
print(f"classes of the samples, as the classifier reads them: {modes}")

# %%
# All ten digits are drawn. Fewer samples than real rows lie where training rows are dense:
# *density* is the hardest of the four to get right. The Fréchet distance of test rows is no floor:
# they differ from the training rows by more than chance, as other training rows get much less.
#
# To try next
# -----------
# - ``--steps 10000``: which of the measures gain?
# - ``adversarial(gan, "non-saturating")``, another game: does it lose digits?
# - :doc:`/gallery/compare` has the same measures for families with a likelihood, and
#   :doc:`/families/gan` what the game descends.
