r"""
Five identities of variational inference
========================================

Why does raising the ELBO fit a model, and what does it leave out? Five equations answer, and here
both sides of each are numbers.

.. math::
    1. \quad & \log p(x) = \mathbb{E}_q[\log p(x, z) - \log q(z)] + \mathrm{KL}(q(z) \| p(z | x)) \\
    2. \quad & \mathrm{KL}(\mathcal{N}(a, A) \| \mathcal{N}(b, B)) = \tfrac{1}{2} \left(
        \mathrm{tr}(B^{-1} A) + (b - a)^\top B^{-1} (b - a) - K + \log |B| / |A| \right) \\
    3. \quad & \mathrm{KL}(p_{\mathrm{data}}(x) q(z | x) \| p(z) p(x | z))
        = \mathrm{KL}(p_{\mathrm{data}} \| p)
        + \mathbb{E}_{\mathrm{data}} \mathrm{KL}(q(z | x) \| p(z | x)) \\
    4. \quad & \nabla_\phi \mathbb{E}_{q_\phi} f(z)
        = \mathbb{E}_\epsilon \nabla_\phi f(z_\phi(\epsilon))
        = \mathbb{E}_{q_\phi} f(z) \nabla_\phi \log q_\phi(z) \\
    5. \quad & \mathbb{E}_{\mathrm{data}} \log p_\theta(x)
        = -H(p_{\mathrm{data}}) - \mathrm{KL}(p_{\mathrm{data}} \| p_\theta)

The first and the third are in [1]_, the fourth in [2]_. What has no error beside it is exact, up to
the rounding of double precision: under a Gaussian the expectation of a quadratic function is its
mean over :math:`2K` points. All numbers are in nats.

Takes 5 seconds on two cores: ``python examples/elbo_identities.py``. Pictures go into ``outputs/``.

.. [1] Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
.. [2] Monte Carlo Gradient Estimation in Machine Learning (Mohamed et al., 2020),
       https://arxiv.org/abs/1906.10652
"""

# %%
# A model whose truth is known
# ----------------------------
# Factor analysis is linear and Gaussian, and so are its evidence and its posterior. There is one
# row of 16 features. With any number of latents the evidence of this row is the same.
#
# .. math:: z \sim \mathcal{N}(0, I), \qquad x \mid z \sim \mathcal{N}(W z, \sigma^2 I)

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

from ppl_models import FactorAnalysis, data_plate, elbo

parser = argparse.ArgumentParser(description="Five identities, both sides of each in numbers.")
parser.add_argument("--draws", type=int, default=50_000, help="of each Monte Carlo estimate")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--outdir", type=Path, default=Path("outputs"))
args = parser.parse_args()
args.outdir.mkdir(parents=True, exist_ok=True)
plt.style.use("ppl_models.look")
pyro.set_rng_seed(args.seed)
double = {"dtype": torch.float64}


def linear_gaussian(num_latents):
    """The model, and a row (1, D), in a unit in which the noise has a normalising constant of 1."""
    unit = (2 * math.pi) ** -0.5
    model = FactorAnalysis(num_features=16, num_factors=num_latents).double().requires_grad_(False)
    model.log_scale.fill_(math.log(unit))
    model.loadings.fill_(0.5 * unit / num_latents**0.5)
    return model, torch.full((1, 16), 0.5 * unit, **double)


def posterior(model, x):
    """p(z | x) of the one row."""
    every = model.posterior(x)
    return dist.MultivariateNormal(every.mean[0], every.covariance_matrix[0])


def log_joint(model, x, z):
    """log p(x, z), for latents of shape (*, K)."""
    likelihood = dist.Normal(model.loc + z @ model.loadings.T, model.log_scale.exp())
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + likelihood.log_prob(x).sum(-1)


def points(q):
    """2K points whose mean of any quadratic function is its expectation, (2K, *, K)."""
    offsets = q.scale_tril.mT * q.mean.shape[-1] ** 0.5  # (*, K, K)
    return q.mean + torch.cat([offsets, -offsets], -2).movedim(-2, 0)


def closed_elbo(model, x, q):
    """E_q log p(x, z) + H(q), without chance."""
    return log_joint(model, x, points(q)).mean(0) + q.entropy()


# %%
# 1. The ELBO is a bound
# ----------------------
# The first term is the ELBO. What it falls short of the evidence is a divergence, which is zero for
# the posterior alone. So it is a bound for any guide, and tight for one. The second table asks the
# same of a mixture of three Gaussians and its discrete latent, through :func:`ppl_models.elbo`.


def header(title, first, second, whole):
    print(f"  {title:24}{first:>12}{second:>12}{'sum':>15}{whole:>15}{'differ by':>11}")


def both(name, parts, whole):
    """Prints what parts sum to, the other side of the identity, and the difference."""
    numbers = "".join(f"{round(float(part), 6) + 0.0:12.6f}" for part in parts)  # no -0
    whole = float(whole)
    print(f"  {name:24}{numbers}{sum(parts):15.9f}{whole:15.9f}{sum(parts) - whole:11.0e}")


model, x = linear_gaussian(num_latents=2)
evidence, best = model.evidence().log_prob(x), posterior(model, x)
one = torch.eye(2, **double)
guides = {
    "prior": dist.MultivariateNormal(torch.zeros_like(best.mean), one),
    "narrow, elsewhere": dist.MultivariateNormal(best.mean + 2, one / 100),
    "best diagonal": dist.MultivariateNormal(
        best.mean, (1 / best.precision_matrix.diagonal()).diag()
    ),
    "posterior": best,
}
print("1. ELBO + KL(q || posterior) = log p(x), for any guide q")
header("linear Gaussian model", "ELBO", "KL", "log p(x)")
for name, q in guides.items():
    both(name, [closed_elbo(model, x, q), kl_divergence(q, best)], evidence)

weights = torch.tensor([0.2, 0.5, 0.3], **double)
locs = torch.tensor([-2.0, 0.0, 3.0], **double)
count = torch.ones(1, **double)


def mixture(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Categorical(weights))
        return pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


log_joints = weights.log() + dist.Normal(locs, 1.0).log_prob(count)  # log p(x, z), (3,)
best_of_mixture = dist.Categorical(logits=log_joints)
guides = {
    "equal": torch.ones(3, **double),
    "at random": torch.rand(3, **double),
    "posterior": best_of_mixture.probs,
}
print("  mixture of three, by `elbo`")
for name, probs in guides.items():
    q = dist.Categorical(probs)

    def guide(x, size=None, q=q):
        with data_plate(x, size):
            pyro.sample("z", q, infer={"enumerate": "parallel"})  # summed over, not drawn

    parts = [-elbo(mixture, guide).loss(count), kl_divergence(q, best_of_mixture)]
    both(name, parts, log_joints.logsumexp(0))

# %%
# A picture of the first, with one latent: as the mean of the guide moves, the ELBO and the
# divergence change, and their sum does not. The best mean is that of the posterior.


def draw_sum(x, part, total, names):
    """Two parts of a sum that is the same everywhere."""
    figure, axes = plt.subplots()
    axes.plot(x, part, "C0", label=names[0])
    axes.fill_between(x, part, total, color="C1", alpha=0.3, linewidth=0, label=names[1])
    axes.axhline(total, color="k", label=names[2])
    axes.legend(loc="lower center")
    return figure, axes


# sphinx_gallery_thumbnail_number = 1
model, x = linear_gaussian(num_latents=1)
best = posterior(model, x)
means = torch.linspace(-0.2, 1.8, 121, **double)
bound = torch.stack(
    [closed_elbo(model, x, dist.MultivariateNormal(m[None], best.covariance_matrix)) for m in means]
)
names = "ELBO", "KL(q || posterior)", "log p(x)"
figure, axes = draw_sum(means, bound, model.evidence().log_prob(x).item(), names)
axes.set(xlabel="mean of a Gaussian guide q", ylabel="nats", title="ELBO + KL = log p(x)")
figure.savefig(args.outdir / "elbo-identities-bound.png")

# %%
# 2. The divergence of Gaussians
# ------------------------------
# A Gaussian guide needs it at each step. The closed form, the same from :math:`2K` points, and by
# Monte Carlo: the mean of draws is within a few of its standard errors.


def random_gaussian(size):
    root = torch.randn(size, size, **double) / size**0.5
    return torch.randn(size, **double), root @ root.T + torch.eye(size, **double) / 2


print("2. KL between Gaussians: closed form, 2K points, and Monte Carlo")
print(f"     K   closed form     2K points   differ by    mean of {args.draws} draws")
for size in (1, 2, 10, 50):
    (a, first), (b, second) = random_gaussian(size), random_gaussian(size)
    p, q = dist.MultivariateNormal(a, first), dist.MultivariateNormal(b, second)
    inverse = second.inverse()
    closed = (inverse @ first).trace() + (b - a) @ inverse @ (b - a) - size
    closed = (closed + second.logdet() - first.logdet()) / 2
    z = points(p)
    exact = (p.log_prob(z) - q.log_prob(z)).mean()
    z = p.sample((args.draws,))
    ratio = p.log_prob(z) - q.log_prob(z)
    mean, error = ratio.mean(), ratio.std() / args.draws**0.5
    numbers = f"{closed:14.6f}{exact:14.6f}{closed - exact:12.0e}{mean:12.4f} ± {error:.4f}"
    print(f"  {size:4}{numbers}, {(mean - closed) / error:+.1f} errors off")

# %%
# 3. One joint distribution closer to another
# -------------------------------------------
# Rows from the data with latents from the guide are one joint distribution, the model is another.
# Their divergence is that of the rows (maximum likelihood) and that of the latents (inference). The
# mean ELBO over the data is that divergence, up to sign and to the entropy of the data, which no
# model changes. First with tables of probabilities, then with Gaussians.


def random_table(*shape):
    return dist.Dirichlet(torch.ones(shape, **double)).sample()


def divergence(p, q):
    return (p * (p / q).log()).sum(-1)


data, table = random_table(4), random_table(4, 3)  # p_data(x), (J,), and q(z | x), (J, K)
joint = random_table(3)[:, None] * random_table(3, 4)  # p(z) p(x | z), (K, J)
evidence, best = joint.sum(0), (joint / joint.sum(0)).T  # p(x), (J,), and p(z | x), (J, K)
ours = data[:, None] * table  # (J, K)
whole = divergence(ours.flatten(), joint.T.flatten())
print("3. KL(p_data || p) + E_data KL(q || posterior) = KL(p_data q || p(z) p(x | z))")
header("", "likelihood", "inference", "joint KL")
both("tables", [divergence(data, evidence), data @ divergence(table, best)], whole)
bound = (ours * (joint.T / table).log()).sum()  # the ELBO, averaged over the data
header("", "-mean ELBO", "-H(p_data)", "joint KL")
both("tables", [-bound, -dist.Categorical(data).entropy()], whole)

model, _ = linear_gaussian(num_latents=2)
data = dist.MultivariateNormal(*random_gaussian(16))
slope, (shift, spread) = torch.randn(16, 2, **double), random_gaussian(2)
x = points(data)  # (2D, D)
q = dist.MultivariateNormal(x @ slope + shift, spread)  # q(z | x), of batch shape (2D,)
z = points(q)  # (2K, 2D, K)
whole = (data.log_prob(x) + q.log_prob(z) - log_joint(model, x, z)).mean()
evidence = dist.MultivariateNormal(model.loc, model.evidence().covariance_matrix)
inference = kl_divergence(q, model.posterior(x)).mean()
header("", "likelihood", "inference", "joint KL")
both("Gaussians", [kl_divergence(data, evidence), inference], whole)

# %%
# 4. Two estimators of one gradient
# ---------------------------------
# The gradient of the ELBO by the first mean of a diagonal guide is estimated from a single draw,
# many times: by moving the draw with the mean (reparameterised), or by weighing it (score
# function); :math:`f` is the integrand of the first identity. Both have the same mean, the exact
# gradient. Their variances differ, the more so the more latents there are.
#
# The same row is given many times, each with a guide of its own, so that one backward pass gives
# all estimates. Pyro moves the draws of what has ``rsample``, and weighs those of the others.

ESTIMATORS = {"reparameterised": True, "score function": False}
LATENTS = [1, 2, 4, 8, 16]  # K
found = {name: [] for name in ESTIMATORS}
exact_gradients = []
print(f"4. gradient of the ELBO by the mean of q: {args.draws} estimates, each from one draw")
head = "     K     exact      reparameterised       sd        score function       sd"
print(f"{head}   variances")
for num_latents in LATENTS:
    model, x = linear_gaussian(num_latents)
    center = torch.zeros(num_latents, **double, requires_grad=True)
    root = torch.eye(num_latents, **double) / 2
    q = dist.MultivariateNormal(center, scale_tril=root)
    exact_gradients.append(torch.autograd.grad(closed_elbo(model, x, q), center)[0][0].item())
    cells = ""
    for name, reparameterised in ESTIMATORS.items():
        locs = center.detach().expand(args.draws, -1).clone().requires_grad_()  # (S, K)
        q = dist.MultivariateNormal(locs, scale_tril=root).has_rsample_(reparameterised)

        def guide(x, size=None, q=q):
            with data_plate(x, size):
                pyro.sample("z", q)

        loss = elbo(model, guide).loss(x.expand(args.draws, 16))  # the mean over rows
        (gradients,) = torch.autograd.grad(-args.draws * loss, locs)
        found[name].append(gradients[:, 0])
        mean, sd = gradients[:, 0].mean(), gradients[:, 0].std()
        cells += f"{mean:12.4f} ± {sd / args.draws**0.5:.4f}{sd:9.3f}"
    moved, weighed = (found[name][-1].var() for name in ESTIMATORS)
    print(f"  {num_latents:4}{exact_gradients[-1]:10.4f}{cells}   1 : {weighed / moved:.0f}")
print("  (Another unit of x adds a constant to f, which changes the second sd, not the first.)")

# %%
# Left, the estimates with one latent: those of the score function are many too small ones and a few
# that are far too large. A hundredth of them is beyond the right edge. Right, how their standard
# deviations go with the number of latents.

figure, (spread, growth) = plt.subplots(1, 2, figsize=(9, 3.8))
low = min(found[name][0].quantile(0.001).item() for name in ESTIMATORS)
high = found["score function"][0].quantile(0.99).item()
for name, color, marker in zip(ESTIMATORS, ("C0", "C1"), "os", strict=True):
    style = {"color": color, "label": name}
    spread.hist(found[name][0], bins=100, range=(low, high), density=True, alpha=0.5, **style)
    sds = [values.std().item() for values in found[name]]
    growth.loglog(LATENTS, sds, marker=marker, **style)
spread.axvline(exact_gradients[0], color="k", label="exact gradient, the mean of both")
spread.set(xlabel="estimate from one draw (nats per unit of the mean)", ylabel="density")
spread.set_title("Two estimators of one gradient, one latent")
growth.set(xlabel="latents", ylabel="standard deviation of an estimate")
growth.set_title("Draws moved, or weighed")
growth.set_xticks(LATENTS, LATENTS)
growth.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
growth.minorticks_off()
spread.legend(loc="upper right")
growth.legend(loc="center left")
figure.savefig(args.outdir / "elbo-identities-gradients.png")

# %%
# 5. Maximum likelihood is the least divergence
# ---------------------------------------------
# The counts are deaths by horse-kick in 200 army corps and years: 109 times none, 65 times one, and
# so on. The rate that makes them most likely is the one whose distribution is nearest to theirs,
# and it is their mean. The black line is what no model can pass.

deaths = torch.tensor([109, 65, 22, 3, 1], **double)
counts, data = torch.arange(5.0, **double), deaths / deaths.sum()
entropy = dist.Categorical(data).entropy()
rates = torch.linspace(0.2, 1.5, 1301, **double)
table = dist.Poisson(rates[:, None]).log_prob(counts)  # log p(x), (rates, 5)
fits, divergences = table @ data, (data * (data.log() - table)).sum(1)
print("5. -H(p_data) - KL(p_data || Poisson) = mean log-likelihood, of 200 counts of deaths")
header("", "-H(p_data)", "-KL", "likelihood")
for i in (100, 410, 1000):
    both(f"rate {rates[i]:.2f}", [-entropy, -divergences[i]], fits[i])
print(
    f"  The likelihood is greatest at rate {rates[fits.argmax()]:.3f}, the divergence least at "
    f"{rates[divergences.argmin()]:.3f}; the mean count is {data @ counts:.3f}."
)

names = "mean log-likelihood", "KL(data || Poisson)", "minus the entropy of the data"
figure, axes = draw_sum(rates, fits, -entropy.item(), names)
axes.set(xlabel="rate of a Poisson distribution (deaths per corps and year)")
axes.set(ylabel="nats per count", title="Maximum likelihood = least divergence")
figure.savefig(args.outdir / "elbo-identities-likelihood.png")

# %%
# To try next
# -----------
# - A guide of your own in the first table: which one has a divergence below that of the best
#   diagonal, and is not the posterior?
# - Several draws of the guide inside the logarithm: :func:`ppl_models.iwae` is nearer to the
#   evidence, and still below it.
# - :doc:`/use/evidence` says which of these numbers a fit prints, :doc:`/families/autoencoders`
#   what becomes of them when a network is the guide.
