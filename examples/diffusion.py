r"""
Digits out of noise
===================

A network that takes a little noise away, used again and again, draws digits out of nothing but
noise. How good is it as a density, and can it be asked for a seven?

A chain of :math:`T` steps [1]_ [2]_ makes a row :math:`x` into noise, by a signal-to-noise ratio
:math:`e^{\lambda_t}` that falls,

.. math::
    q(z_t \mid x) = \mathcal{N}(\alpha_t x, \sigma_t^2 I), \qquad
    \lambda_t = \log (\alpha_t^2 / \sigma_t^2), \qquad \alpha_t^2 + \sigma_t^2 = 1

and the model goes back from noise, step by step, with a network :math:`\hat{x}` that guesses the
row. A lower bound of its evidence is made of the errors of these guesses:

.. math::
    \log p(x) \ge \mathbb{E} \log p(x \mid z_0)
    - \mathrm{KL}(q(z_T \mid x) \,\|\, \mathcal{N}(0, I))
    - \sum_{t=1}^{T} \tfrac{1}{2} (e^{\lambda_{t-1}} - e^{\lambda_t})
    \, \mathbb{E} \, \lVert x - \hat{x}(z_t, \lambda_t) \rVert^2

The network gives each pixel a distribution over its grey levels, of which the guess is the mean. It
is told the label of the digit, but for a tenth of the rows, so that it can be asked for one [3]_.

Takes 40 seconds on two cores: ``python examples/diffusion.py``. Pictures go into
``outputs/``. More epochs make better digits, and MNIST needs a GPU:

.. code-block:: sh

    python examples/diffusion.py --epochs 100                # minutes
    python examples/diffusion.py --data mnist --data-root data --device cuda

.. [1] `Denoising Diffusion Probabilistic Models <https://arxiv.org/abs/2006.11239>`_ (Ho, Jain and
       Abbeel, 2020)
.. [2] `Variational Diffusion Models <https://arxiv.org/abs/2107.00630>`_ (Kingma et al., 2021)
.. [3] `Classifier-Free Diffusion Guidance <https://arxiv.org/abs/2207.12598>`_ (Ho and Salimans,
       2022)
"""

# %%
# Settings
# --------

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.optim.lr_scheduler import OneCycleLR

from ppl_models import Diffusion, datasets, denoising, fit, probability_flow, variational_bound
from ppl_models.diffusion.samplers import ancestral, ddim, heun, langevin
from ppl_models.diffusion.schedules import LogLinear
from ppl_models.likelihoods import Categorical
from ppl_models.nn import ResNet, UNet
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="A diffusion model learns digits, and draws them.")
parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
parser.add_argument("--data-root", default="data", help="the folder of MNIST")
length = parser.add_mutually_exclusive_group()
length.add_argument("--epochs", type=int, help="default: 25 for digits, else 50")
length.add_argument("--steps", type=int, help="training steps, instead of epochs")
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, help="default: 3e-3 for digits, else 1e-3")
parser.add_argument("--channels", type=int, default=32)
parser.add_argument("--num-steps", type=int, default=1000, help="T, of the model and its bound")
parser.add_argument("--draws", type=int, default=50, help="noisy rows a row, for the bound")
parser.add_argument("--flow-steps", type=int, default=40, help="of the probability flow")
parser.add_argument("--train-rows", type=int, help="train on the first of them only")
parser.add_argument("--test-rows", type=int, default=100, help="test on the first of them only")
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

# %%
# The data and the model
# ----------------------
# A residual network for the small digits, of 17 grey levels, and a U-net for MNIST, of 256. The
# schedule says how the log of the signal-to-noise ratio falls over the steps: from where levels
# can be told apart to where hardly anything is left of the row.


def build(data, channels, num_steps):
    """A diffusion model of images in grey levels, given their labels where they are known."""
    if data == "digits":
        network = ResNet((8, 8), 17, channels, num_blocks=4, dropout=0.1, num_classes=10)
        levels, first = 17, 8.5
    else:
        widths = (channels, 2 * channels, 2 * channels)
        network = UNet((28, 28), 256, widths, dropout=0.1, num_classes=10)
        levels, first = 256, 13.0  # nearer levels take a higher log-SNR to tell apart
    return Diffusion(
        network.shape[0] * network.shape[1],
        network,
        LogLinear(first, -5.0),
        target="levels",
        num_steps=num_steps,
        likelihood=Categorical(levels),
    )


def independent_pixels(train, test, levels):
    """The test NLL of a categorical distribution for each pixel, in bits per dimension."""
    counts = torch.full((train.shape[1], levels), 1 / levels)  # with a pseudo-count
    index = ((levels - 1) * train).round().long()
    counts.scatter_add_(1, index.T, torch.ones_like(index.T, dtype=counts.dtype))
    logits = (counts / counts.sum(1, keepdim=True)).log()
    log_p = Categorical(levels)(logits.flatten()[None]).log_prob(test)  # (N,), in nats
    return -log_p.mean().item() / (test.shape[1] * math.log(2))


try:
    if small:
        (x, y), (test, labels) = datasets.digits(labels=True)
    else:
        (x, y), (test, labels) = datasets.mnist(args.data_root, labels=True)
except FileNotFoundError as error:  # no data: one line says where they should be
    raise SystemExit(f"error: {error}") from None
x, y = x[: args.train_rows], y[: args.train_rows]
test, labels = test[: args.test_rows], labels[: args.test_rows]
torch.manual_seed(args.seed)
diffusion = build(args.data, args.channels, args.num_steps)
levels = diffusion.likelihood.levels
count = sum(p.numel() for p in diffusion.parameters())
print(
    f"{args.data}: {len(x)} training rows, {len(test)} test rows, {test.shape[1]} pixels in "
    f"{levels} grey levels; {count:,} parameters"
)
print(f"independent pixels give {independent_pixels(x, test, levels):.4f} bits/dim")
at_once = 4096 if small else 128  # 256 levels of 784 pixels are 0.8 MB a row
options = {"num_samples": args.draws, "batch_size": at_once, "seed": args.seed + 1}
bound = variational_bound(diffusion, test[:100], **options)
print(f"untrained, T = {args.num_steps}, first {bound.num_rows} test rows: {bound}")

# %%
# The fit
# -------
# A step takes one :math:`t` for each row, at random, and descends that term of the bound. Its loss
# is as noisy as the terms differ, and the average of the parameters (``ema``) is used. The loss is
# minus the bound, dashed that of the test rows (``validation``).


def warm_up_and_cool_down(optimizer, steps):
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.1)


run = fit(
    denoising(diffusion),
    (x, y),
    epochs=None if args.steps else args.epochs or (25 if small else 50),
    steps=args.steps,
    batch_size=args.batch_size,
    lr=args.lr or (3e-3 if small else 1e-3),
    schedule=warm_up_and_cool_down,
    clip=1000.0,
    ema=0.995 if small else 0.999,
    seed=args.seed,
    device=args.device,
    amp=args.amp,
    validation=(test, labels),
    checkpoint=args.checkpoint or args.outdir / f"diffusion-{args.data}.safetensors",
    resume=args.resume,
)
print(f"fitted in {run.seconds:.0f} s, {run.steps} steps")

figure, axes = plt.subplots()
run.plot(axes)
figure.savefig(args.outdir / f"diffusion-{args.data}-curve.png")

# %%
# The evidence
# ------------
# The variational bound of test rows is a lower bound of their evidence, in nats and in bits per
# dimension. The same noise and network also define a flow, a differential equation from noise to
# rows, whose density is an estimate: it has the error of the solver, and says little before it no
# longer changes with the number of steps.

device = diffusion.zero.device
test, labels = test.to(device), labels.to(device)
unknown = variational_bound(diffusion, test, **options)
given = variational_bound(diffusion, test, labels, **options)
both = (math.log(10) - given.mean) / (test.shape[1] * math.log(2))
print(f"test bound, T = {args.num_steps}, labels unknown, log p(x): {unknown}")
print(f"test bound, T = {args.num_steps}, labels given, log p(x | y): {given}")
print(f"  and so a lower bound of log p(x) >= log p(x | y) - log 10: {both:.4f} bits/dim")
print("by the probability flow, dequantised, log p(x | y): what steps change is their error")
for steps in (max(args.flow_steps // 2, 1), args.flow_steps):
    flow = probability_flow(
        diffusion, test, labels, num_steps=steps, batch_size=at_once, seed=args.seed + 1
    )
    print(f"  {steps} steps: {flow}")

# %%
# Knowing the label helps, by more than the :math:`\log 10` nats that it costs to guess it. The flow
# looks better than the bound, but with twice the steps less so: few steps flatter.
#
# From noise to digits
# --------------------
# The way of ten rows, asked for the digits 0 to 9. A sampler is a function of a denoiser and noise,
# so that one line can look at what it sees.

seen = []


def watched(denoiser, z, schedule, num_steps):
    def look(z, log_snr):
        seen.append(z)
        return denoiser(z, log_snr)

    return ddim(look, z, schedule, num_steps)


def show(lines, title, name):
    """A line of ten images for each name."""
    figure, panels = plt.subplots(len(lines), 1, figsize=(7.2, 0.66 * len(lines) + 0.4))
    for axes, (label, rows) in zip(panels, lines.items(), strict=True):
        images(rows, axes)
        axes.text(-0.01, 0.5, label, ha="right", va="center", transform=axes.transAxes)
    figure.suptitle(title)
    figure.savefig(args.outdir / f"diffusion-{args.data}-{name}.png")


# sphinx_gallery_thumbnail_number = 2
asked = torch.arange(10, device=device)
torch.manual_seed(args.seed)
last = diffusion.sample(10, watched, 35, y=asked)
lines = {f"step {t}": diffusion.loc + diffusion.scale * seen[t] for t in (0, 8, 12, 15, 18, 22)}
show(lines | {"step 35": last}, "Noise becomes the digits 0 to 9", "chain")

# %%
# Four samplers
# -------------
# From the same noise, with the calls of the network that each takes. The ancestral sampler is the
# model itself; the others take larger steps.

lines = {}
for sampler, steps in ((ancestral, 200), (ddim, 35), (heun, 18), (langevin, 18)):
    torch.manual_seed(args.seed)
    calls = 2 * steps - 1 if sampler in (heun, langevin) else steps
    lines[f"{sampler.__name__}\n{calls} calls"] = diffusion.sample(10, sampler, steps, y=asked)
show(lines, "The digits 0 to 9 by each sampler", "samplers")

# %%
# Guidance
# --------
# The network is asked twice, with the label and without, and their difference is multiplied by
# :math:`w`: at 0 the label is ignored, at 1 followed, above that exaggerated. Then digits are
# clearer, and more alike.

lines = {}
for strength in (0.0, 1.0, 2.0, 4.0):
    torch.manual_seed(args.seed)
    drawn = diffusion.sample(10, heun, 36, y=asked, guidance=strength)
    lines[f"w = {strength:g}"] = drawn
show(lines, "Asked for 0 to 9, with guidance of several strengths", "guided")

# %%
# To try next
# -----------
# - ``--epochs 100``: how do the bound and the digits change?
# - ``--num-steps 10`` and ``100``: how much of the bound is lost with fewer, larger steps? The
#   network need not be fitted anew: :func:`ppl_models.variational_bound` takes ``num_steps``.
# - :doc:`/gallery/compare` judges draws of all families by the same measures, and
#   :doc:`/families/diffusion` derives the bound.
