r"""
Digits pixel by pixel
=====================

If each pixel is drawn given those before it, no latents are needed and the likelihood is exact: how
well does that describe digits, and what does it make of half a digit?

Any density of a row is a product of conditionals, here of the pixels from the upper left to the
lower right:

.. math::
    p(x) = \prod_{d=1}^{D} p(x_d \mid x_1, \dots, x_{d-1})

A causal network gives all factors in one pass, since the outputs of a pixel depend on the pixels
before it alone. In a MADE [1]_ masks see to that, in a PixelCNN [2]_ convolutions that look up
and left, in a PixelRNN [2]_ recurrent networks. Grey levels are 17 classes, and the fit is maximum
likelihood.

Takes 40 seconds on two cores: ``python examples/autoregressive.py``. Pictures go into
``outputs/``. Longer fits, the other networks, and MNIST, which is binary:

.. code-block:: sh

    python examples/autoregressive.py --epochs 80                # a minute or two
    python examples/autoregressive.py --model made --epochs 80   # seconds
    python examples/autoregressive.py --data binary-mnist --data-root data --device cuda --amp
    python examples/autoregressive.py --data mnist --rows 2000 --epochs 5 --channels 16 --layers 3

.. [1] `MADE: Masked Autoencoder for Distribution Estimation <https://arxiv.org/abs/1502.03509>`_
       (Germain et al., 2015)
.. [2] `Pixel Recurrent Neural Networks <https://arxiv.org/abs/1601.06759>`_ (van den Oord et al.,
       2016)
"""

# %%
# Settings
# --------

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_models import MADE, PixelCNN, PixelRNN, Transformed, datasets, elbo, fit, log_evidence
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture
from ppl_models.pictures import images

SIZES = {  # channels (of MADE: units) and layers, for digits and for MNIST
    "made": ((256, 1), (1000, 2)),
    "pixelcnn": ((32, 4), (64, 8)),
    "pixelrnn": ((24, 2), (32, 7)),
}
parser = argparse.ArgumentParser(description="Images pixel by pixel, with an exact log-likelihood.")
parser.add_argument("--model", choices=list(SIZES), default="pixelcnn")
parser.add_argument("--data", choices=["digits", "mnist", "binary-mnist"], default="digits")
parser.add_argument("--data-root", default="data", help="the folder of MNIST")
parser.add_argument("--rows", type=int, help="only so many rows of each part, for a quick look")
parser.add_argument("--epochs", type=int, help="default: 25 for digits, else 100")
parser.add_argument("--channels", type=int, help="of a layer; of MADE, its units")
parser.add_argument("--layers", type=int)
parser.add_argument("--batch-size", type=int, help="default: 32 for digits, else 64")
parser.add_argument("--lr", type=float, help="default: 3e-3 for digits, else 1e-3")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
parser.add_argument("--amp", action="store_true", help="run the network in bfloat16")
parser.add_argument("--checkpoint", type=Path, help="default: in --outdir")
parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")
small = args.data == "digits"
epochs = args.epochs or (25 if small else 100)
picture = f"{args.model}-{args.data}"

# %%
# The data
# --------
# Some training rows are set aside, to choose the best epoch by. Grey digits keep their 17 levels,
# and bits/dim are of these levels. MNIST is binary, and the way it became so is stated, because it
# moves the number by about two nats.


class Data(NamedTuple):
    """Rows to train on, to choose the epoch by, and to test."""

    train: torch.Tensor | Transformed
    validation: torch.Tensor
    test: torch.Tensor
    levels: int
    how: str  # what the numbers in a row are


def spread(x, rows):
    """So many rows from all of `x`: test rows may lie in the order of their digits."""
    count = len(x) if rows is None else min(rows, len(x))
    return x[torch.arange(count) * len(x) // count]


def load(data, root, rows=None):
    some = slice(rows)
    if data == "digits":
        x, test = datasets.digits()
        return Data(x[:1350][some], x[1350:][some], spread(test, rows), 17, "17 grey levels")
    if data == "binary-mnist":
        train, validation, test = datasets.binary_mnist(root)
        how = "binary by the fixed file of Larochelle and Murray"
        return Data(train[some], validation[some], spread(test, rows), 2, how)
    fresh, test = datasets.mnist(root, binarize="fresh")
    grey = fresh.tensors[0]
    train = Transformed(grey[:50_000][some], transform=torch.bernoulli)
    validation = datasets.binarize(grey[50_000:][some], seed=0)
    how = "binary by a fresh draw each epoch, one draw of the validation and test rows"
    return Data(train, validation, spread(test, rows), 2, how)


def independent_pixels(data):
    """The test NLL of independent pixels, with a pseudo-count for each level, in nats per row."""
    grey = data.train.tensors[0] if isinstance(data.train, Transformed) else data.train
    if data.levels == 2:
        ink = grey.sum(0)
        counts = torch.stack([len(grey) - ink, ink], 1)  # (D, 2)
    else:
        levels = torch.arange(data.levels) / (data.levels - 1)
        counts = (grey.unsqueeze(-1) == levels).sum(0).float()  # (D, L)
    log_probs = ((counts + 1) / (counts + 1).sum(1, keepdim=True)).log()
    index = (data.test * (data.levels - 1)).round().long()  # (N, D)
    return -log_probs.gather(1, index.T).sum(0).mean().item()


try:
    data = load(args.data, args.data_root, args.rows)
except FileNotFoundError as error:  # no data: one line says where they should be
    raise SystemExit(f"error: {error}") from None
num_features = data.test.shape[1]
nats_a_bit = num_features * math.log(2)  # nats per row in a bit per dimension
floor = independent_pixels(data)
print(
    f"{args.data}: {len(data.train)} training rows, {len(data.validation)} validation rows, "
    f"{len(data.test)} test rows, {num_features} pixels"
)
print(data.how)
print(f"independent pixels give {floor:.3f} nats per test row, {floor / nats_a_bit:.4f} bits/dim")

# %%
# The model
# ---------
# A network and a likelihood, which says what the outputs of a pixel mean: logits of the levels, or
# a mixture of logistic distributions cut into levels, which knows that levels have an order.

torch.manual_seed(args.seed)
side = round(num_features**0.5)
default_channels, default_layers = SIZES[args.model][0 if small else 1]
channels, layers = args.channels or default_channels, args.layers or default_layers
likelihood = Categorical(17) if small else Bernoulli()
if args.model == "made":
    if small:
        likelihood = LogisticMixture(levels=17, num_components=5)
    model = MADE(num_features, likelihood, hidden=[channels] * layers, dropout=0.3)
elif args.model == "pixelrnn":
    model = PixelRNN(side, side, likelihood, "diagonal", channels, layers, dropout=0.2)
else:
    reach = 1 if small else 2  # so that nearly all rows above are seen
    model = PixelCNN(side, side, likelihood, channels, layers, reach, dropout=0.2)
count = sum(p.numel() for p in model.parameters())
print(f"{type(model).__name__}, {channels} x {layers}: {count:,} parameters")

# %%
# The fit
# -------
# Without latents there is nothing to infer: the bound is the likelihood itself. The average of the
# parameters over the last steps is used (``ema``), and the best epoch is kept.

run = fit(
    elbo(model),
    data.train,
    epochs=epochs,
    batch_size=args.batch_size or (32 if small else 64),
    lr=args.lr or (3e-3 if small else 1e-3),
    clip=1.0,
    schedule=CosineAnnealingLR,
    ema=0.995 if small else 0.999,
    validation=data.validation,
    patience=epochs,  # the best epoch is kept, the schedule is run to its end
    seed=args.seed,
    device=args.device,
    amp=args.amp,
    checkpoint=args.checkpoint or args.outdir / f"{picture}.safetensors",
    resume=args.resume,
)
losses = run.history["validation"]
best = 1 + losses.index(min(losses))
print(f"fitted in {run.seconds:.0f} s, {run.steps} steps; best epoch {best} of {len(losses)}")

figure, axes = plt.subplots()
labels = {
    "loss": "training rows (with dropout)",
    "validation": "validation rows (averaged parameters)",
}
for name, label in labels.items():
    bits = [loss / nats_a_bit for loss in run.history[name]]
    axes.plot(range(1, len(bits) + 1), bits, marker="." * (len(bits) < 20), label=label)
axes.axhline(floor / nats_a_bit, color="0.4", linestyle="--", label="independent pixels (test)")
axes.set(xlabel="epoch", ylabel="negative log-likelihood (bits/dim)", title="Training")
axes.legend()
figure.savefig(args.outdir / f"{picture}-curve.png")

# %%
# The evidence
# ------------
# Exact, of test rows. A number of bits per dimension is that of levels: it can be compared with
# other models of the same levels, and with nothing else.

device = next(model.parameters()).device
evidence = log_evidence(model, None, data.test.to(device), batch_size=256)
print(f"test {evidence}")
print(
    f"test NLL {-evidence.mean:.3f} nats per row, {evidence.bits_per_dim:.4f} bits/dim "
    f"({evidence.kind}; {data.how})"
)

# %%
# Draws
# -----
# One pixel after the other, each unit of the network once.

torch.manual_seed(args.seed)
began = time.perf_counter()
draws = model(size=49).cpu()
print(f"49 draws in {1000 * (time.perf_counter() - began):.0f} ms")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.3))
images(spread(data.test, 49), left, columns=7, title="Test rows")
images(draws, right, columns=7, title="Drawn from the model")
figure.get_layout_engine().set(wspace=0.08)
figure.savefig(args.outdir / f"{picture}-samples.png")

# %%
# Half a digit
# ------------
# Pixels are drawn from the top. If the upper half is given instead of drawn, the rest are draws of
# :math:`p(x_{\text{lower}} \mid x_{\text{upper}})`, exactly. The same few lines draw whole rows,
# with a pass through the network for each pixel.


@torch.no_grad()
def complete(x, given):
    """The rows with all but the first `given` pixels drawn anew."""
    x = x.clone()
    for d in range(given, x.shape[1]):
        x[:, d] = model.likelihood(model.network(x)[:, d]).sample()[:, 0]
    return x


# sphinx_gallery_thumbnail_number = 3
rows = spread(data.test, 12).to(device)
upper = rows.clone()
upper[:, num_features // 2 :] = 0
torch.manual_seed(args.seed)
lines = {"test row": rows, "given": upper}
lines |= {f"draw {n}": complete(rows, num_features // 2) for n in (1, 2, 3, 4)}
figure, panels = plt.subplots(len(lines), 1, figsize=(7.6, 4))
for axes, (name, x) in zip(panels, lines.items(), strict=True):
    images(x, axes, columns=12)
    axes.text(-0.01, 0.5, name, ha="right", va="center", transform=axes.transAxes)
figure.suptitle("Upper halves of test rows, and lower halves drawn given them")
figure.savefig(args.outdir / f"{picture}-completed.png")

# %%
# To try next
# -----------
# - ``--epochs 80``: what does a longer fit buy? ``benchmarks/RESULTS.md`` has 1.76 bits/dim for
#   this network.
# - ``--model made``: a network without a notion of nearness. By how many bits is it worse, and how
#   much faster is it?
# - Which pixels cost the most? ``model.evidence().log_conditionals(data.test)`` has the nats of
#   each.
# - Left halves, in the place of upper ones, are not so simple: :doc:`/gallery/inpainting` fills any
#   hole, by latents. The derivations are in :doc:`/families/autoregressive`.
