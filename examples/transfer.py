r"""
What was learned elsewhere
==========================

Does a network that never saw a label help where labels are few, and can yesterday's posterior be
today's prior?

Two kinds of transfer. Of weights: a vision transformer [1]_ learns to fill in hidden patches of
digits [2]_, without labels; it is then where a classifier with few labels starts. Of beliefs: the
patients of a study come day by day, and what is believed after the first day is the prior of the
second,

.. math::
    p(\theta \mid D_1, D_2) &\propto p(\theta \mid D_1) \, p(D_2 \mid \theta) \\
    \log p(D_1, D_2) &= \log p(D_1) + \log p(D_2 \mid D_1)

The model of the patients is a line with known noise, so that both equations can be checked:

.. math::
    a, b \sim \mathcal{N}(0, 1), \qquad y_n \mid a, b \sim \mathcal{N}(a x_n + b, \sigma^2)

At the end, a picture of where a transformer looks.

Takes 45 seconds on two cores: ``python examples/transfer.py``. Pictures go into ``outputs/``.

.. code-block:: sh

    python examples/transfer.py --epochs 60 --steps 200  # more steps
    python examples/transfer.py --data mnist --data-root data --epochs 5

.. [1] An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), https://arxiv.org/abs/2010.11929
.. [2] Masked Autoencoders Are Scalable Vision Learners (He et al., 2022),
       https://arxiv.org/abs/2111.06377
"""

# %%
# The data
# --------

import argparse
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation
from sklearn.datasets import load_diabetes
from torch.nn.functional import pad
from torch.optim.lr_scheduler import OneCycleLR

from ppl_models import (
    Classifier,
    LinearRegression,
    datasets,
    elbo,
    fit,
    freeze,
    log_evidence,
    posterior_as_prior,
    reconstruction,
    warm_start,
)
from ppl_models.nn import MaskedPatches, VisionTransformer
from ppl_models.pictures import images

parser = argparse.ArgumentParser(description="Transfer of weights, and of beliefs.")
parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
parser.add_argument("--data-root", default="data", help="the folder of MNIST")
parser.add_argument("--epochs", type=int, default=50, help="without labels; a fifth with all")
parser.add_argument("--steps", type=int, default=150, help="on few labels, and on each day")
parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 5, 20], help="of each class")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")

if args.data == "digits":
    (x, y), (test, test_labels) = datasets.digits(labels=True)
    side, patch, fine = 8, 2, 1  # pixels of an image, of a hidden patch, of one that is looked at
else:
    try:
        (x, y), (test, test_labels) = datasets.mnist(args.data_root, labels=True)
    except FileNotFoundError as error:  # no data: one line says where they should be
        raise SystemExit(f"error: {error}") from None
    side, patch, fine = 28, 7, 4
print(f"{args.data}: {len(x)} training rows, {len(test)} test rows")


def warm_up_and_cool_down(optimizer, steps):
    return OneCycleLR(optimizer, max_lr=optimizer.defaults["lr"], total_steps=steps, pct_start=0.2)


learn = partial(fit, schedule=warm_up_and_cool_down, seed=args.seed)

# %%
# Hidden patches
# --------------
# Half of the patches of each image are hidden, others in each epoch, and the transformer fills them
# in. What is descended is a squared error, with no density behind it: there is no evidence to
# report, and its kind is none.


def transformer():
    return VisionTransformer(side, patch=patch, width=32, num_layers=3)


torch.manual_seed(args.seed)
masked = MaskedPatches(transformer())
run = learn(reconstruction(masked), x, epochs=args.epochs, batch_size=64, lr=3e-3)
errors = run.history["loss"]
mean = (x - x.mean(0)).square().sum(1).mean() * masked.num_hidden / masked.num_patches
print(
    f"{masked.num_hidden} of {masked.num_patches} patches hidden: squared error of a row ", end=""
)
print(f"{errors[0]:.2f}, then {errors[-1]:.2f};\nof the mean picture {mean:.2f}")

rows = test[:12]
torch.manual_seed(0)
hidden = masked.hide(rows)
with torch.no_grad():
    filled = masked.filled(rows, hidden)
holes = hidden.view(-1, side // patch, side // patch)
holes = holes.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
shade = torch.where(holes, 1.0, torch.nan)  # on the images, which have a gap between them
shade = torch.cat([pad(hole, (0, 1), value=torch.nan) for hole in shade], 1)[:, :-1]

figure, panels = plt.subplots(3, 1, figsize=(9, 3.2))
for axes, images_, title in zip(
    panels, (rows, rows, filled), ("test rows", "what is seen of them", "filled in"), strict=True
):
    images(images_, axes, columns=12, title=title)
panels[1].imshow(shade, cmap="Oranges", vmin=0, vmax=2)
figure.savefig(args.outdir / f"transfer-{args.data}-patches.png")

# %%
# Few labels
# ----------
# The same network with a classifier on top learns from one label of each class, and from more of
# them: from scratch, with a warm start, and with a warm start after which the transformer is
# frozen. The nats of a test label are exact, for a classifier is its own density of labels; they
# punish those that are sure and wrong.

KINDS = ("from scratch", "warm start, tuned", "warm start, frozen")


def learn_from(some, kind):
    torch.manual_seed(args.seed)
    model = Classifier(x.shape[1], 10, 32, transformer())
    if kind != "from scratch":
        warm_start(model.network, from_=masked.transformer)
    if kind == "warm start, frozen":
        freeze(model, "network")
    rate = 2e-2 if kind == "warm start, frozen" else 2e-3
    options = {"steps": args.steps, "batch_size": min(64, len(some)), "lr": rate}
    learn(elbo(model), (x[some], y[some]), **options)
    return model


order = torch.randperm(len(y), generator=torch.Generator().manual_seed(args.seed))
scores = {kind: [] for kind in KINDS}
print("test accuracy, and exact nats of a label, by labels of each class")
print(f"{'':20}" + "".join(f"{count:>12}" for count in args.labels))
for kind in KINDS:
    line = f"{kind:20}"
    for count in args.labels:
        some = torch.cat([order[y[order] == c][:count] for c in range(10)])
        model = learn_from(some, kind)
        right = (model.predict(test) == test_labels).double().mean().item()
        evidence = log_evidence(model, None, test, test_labels)
        scores[kind].append(right)
        line += f"{right:7.1%}{-evidence.mean:5.2f}"
    print(line)

figure, axes = plt.subplots()
for (kind, values), marker in zip(scores.items(), "osD", strict=True):
    axes.plot(args.labels, [100 * value for value in values], marker=marker, label=kind)
axes.set(xscale="log", xlabel="labels of each class", ylabel="test rows in the right class, %")
axes.set_xticks(args.labels, [str(count) for count in args.labels])
axes.minorticks_off()
axes.set(ylim=(0, 100), title="A transformer with few labels")
axes.legend(loc="lower right")
figure.savefig(args.outdir / f"transfer-{args.data}-labels.png")

# %%
# With one or two labels of each class a frozen network is best, as it has little to overfit with.
# With five, tuning all of it gets some more rows right, and the frozen one has the better nats;
# with twenty it pays to tune, and a frozen one is no longer ahead of what starts from nothing. (Of
# 297 test rows, two or three per cent are chance.)

# %%
# Beliefs of yesterday
# --------------------
# Body mass and the progression of diabetes, of 105 patients in the order of scikit-learn's table:
# 15 come on the first day, 30 on the second, 60 on the third. After each day,
# :func:`ppl_models.posterior_as_prior` makes a program of the model and its fitted guide, whose
# prior is that guide. The guide is a Laplace approximation, which is exact here, as the posterior
# is Gaussian; so the evidence of each day should be that of all patients so far, less that before.

table = load_diabetes()
given = torch.from_numpy(table.data[:, 2:3]).float()  # body mass
target = torch.from_numpy(table.target).float()
given, target = ((v - v.mean(0)) / v.std(0) for v in (given, target))
regression = LinearRegression(1, noise=0.8, bias_scale=1.0)
model, days, start, before = regression, [], 0, 0.0
print("log evidence of a day given those before, nats of the whole day:")
print(f"  {'day':>5}{'patients':>10}{'by guides':>12}{'exact':>10}   off the exact posterior")
for number, count in enumerate((15, 30, 60), start=1):
    some = given[start : start + count], target[start : start + count]
    torch.manual_seed(args.seed)
    peak = AutoLaplaceApproximation(model)
    learn(elbo(model, peak), some, steps=args.steps, lr=0.1)
    guide = peak.laplace_approximation(*some)
    found = log_evidence(model, guide, *some, num_samples=2000, seed=args.seed).value.item()
    start += count
    whole = regression.marginal(given[:start]).log_prob(target[:start].double()).item()
    belief, exact = guide.get_posterior(), regression.posterior(given[:start], target[:start])
    off = ((belief.mean - exact.mean) / exact.stddev).abs().max().item()
    print(f"  {number:5}{count:10}{found:12.3f}{whole - before:10.3f}", end="")
    print(f"   {off:.3f} standard deviations")
    days.append((*some, belief.mean.detach(), belief.covariance_matrix.detach(), exact))
    model, before = posterior_as_prior(model, guide), whole
print(f"  all {start} patients at once: {whole:.3f} nats, exact")

# %%
# On the left, the patients of each day and the line that is believed after it, with two standard
# deviations. On the right the beliefs themselves: each ellipse holds 86 % of the posterior, and the
# exact one is on top of the guide's.

# sphinx_gallery_thumbnail_number = 3
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
at = torch.linspace(-2.5, 3.5, 50)
design = torch.stack([at, torch.ones_like(at)], 1)
turn = torch.linspace(0, 2 * torch.pi, 200)
circle = 2 * torch.stack([turn.cos(), turn.sin()])
for day, (mass, progression, mean, covariance, exact) in enumerate(days, start=1):
    color = f"C{day - 1}"
    left.plot(mass, progression, "os^"[day - 1], color=color, label=f"day {day}")
    line, spread = design @ mean, 2 * (design @ covariance * design).sum(1).sqrt()
    left.plot(at, line, color=color)
    left.fill_between(at, line - spread, line + spread, color=color, alpha=0.15, linewidth=0)
    ring = mean[:, None] + torch.linalg.cholesky(covariance) @ circle
    right.plot(*ring, color=color, linewidth=5, alpha=0.4, label=f"guide after day {day}")
    name = "exact, of all days so far" if day == len(days) else None
    right.plot(*(exact.mean[:, None] + exact.scale_tril @ circle), "k--", linewidth=1, label=name)
    right.annotate(f"day {day}", ring[:, 38], (3, 3), textcoords="offset points")
left.set(xlabel="body mass (standard deviations)", ylabel="progression (standard deviations)")
left.set_title("Lines that are believed")
left.legend(loc="upper left")
right.set(xlabel="slope", ylabel="intercept", title="Beliefs, each the prior of the next day")
right.set_ylim(-0.6, 0.55)
right.legend(loc="upper left", ncols=2, fontsize="small")
figure.savefig(args.outdir / f"transfer-{args.data}-days.png")

# %%
# Where it looks
# --------------
# A transformer of finer patches, trained with all labels. How much of each patch the class token
# holds in the end is a product over layers [3]_: each is half of its attention, the mean over
# heads, and half of what was there. Single heads of the last layer are more varied.
#
# .. [3] Quantifying Attention Flow in Transformers (Abnar & Zuidema, 2020),
#        https://arxiv.org/abs/2005.00928


def rollout(attention):
    """From `(B, L, A, T, T)`, of layers and heads, to the share of each patch, `(B, P)`."""
    mixed = (attention.mean(2) + torch.eye(attention.shape[-1])) / 2  # (B, L, T, T)
    found = mixed[:, 0]
    for layer in mixed.unbind(1)[1:]:
        found = layer @ found
    share = found[:, 0, 1:]
    return share / share.sum(1, keepdim=True)


torch.manual_seed(args.seed)
tuned = VisionTransformer(side, patch=fine, width=32, num_layers=2)
model = Classifier(x.shape[1], 10, 32, tuned)
learn(elbo(model), (x, y), epochs=max(1, args.epochs // 5), batch_size=64, lr=3e-3)
right = (model.predict(test) == test_labels).double().mean()
print(f"all labels, patches of {fine} x {fine}: {right:.1%} of test rows right")

rows = test[[int((test_labels == c).nonzero()[0]) for c in range(10)]]
attention = tuned.attention(rows)  # (B, L, A, T, T)
shares = [rollout(attention), *attention[:, -1, :, 0, 1:].unbind(1)]
names = ["all layers", *(f"head {n}" for n in range(1, len(shares)))]
whole = (-0.5, side - 0.5, side - 0.5, -0.5)
figure, panels = plt.subplots(len(shares), 10, figsize=(9, 5))
for line, name, share in zip(panels, names, shares, strict=True):
    for axes, row, weights in zip(line, rows, share, strict=True):
        axes.imshow(weights.view(side // fine, side // fine), cmap="Blues", extent=whole)
        axes.contour(row.view(side, side), [0.4], colors="C1", linewidths=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.suptitle("Where the class token looks (dark), and the edge of the ink (lines)")
figure.savefig(args.outdir / f"transfer-{args.data}-attention.png")

# %%
# To try next
# -----------
# - ``--labels 100``: does the warm start still matter?
# - Let the third day have another noise: do the beliefs of the first two still help?
# - :doc:`/families/adaptation` is about data that come from elsewhere, not weights; see also
#   :doc:`/gallery/adaptation`.
