r"""Five identities of variational inference, both sides of each in numbers.

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

    python examples/elbo_identities.py    # a few seconds

1. The first term is the ELBO: a bound for any guide q, and tight for the posterior alone. 2. What a
Gaussian guide needs. 3. To raise the ELBO is to bring one joint distribution closer to another,
which is maximum likelihood and inference at once. 4. Its gradient has two estimators of the same
mean (`f` is the integrand of 1), the first by moving the draws, the second by weighing them; they
differ in variance. 5. Maximum likelihood is the least divergence from the data.

Prints both sides of each, and draws 1, 4 and 5. What has no error beside it is exact in float64:
under a Gaussian the expectation of a quadratic function is its mean over `2K` points.

Shapes: `D` features, `K` latents, `J` values of x, `S` draws.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
    | Monte Carlo Gradient Estimation in Machine Learning (Mohamed et al., 2020)
    | https://arxiv.org/abs/1906.10652
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_models import FactorAnalysis, data_plate, elbo

ESTIMATORS = {"reparameterised": True, "score function": False}
LATENTS = [1, 2, 4, 8, 16]  # K

# Deaths by horse-kick in 200 army corps and years (von Bortkiewicz, 1898): 109 times none, ...
DEATHS = torch.tensor([109, 65, 22, 3, 1], dtype=torch.float64)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=50_000, help="of each Monte Carlo estimate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outdir", type=Path, default=Path("outputs"))
    args = parser.parse_args(argv)
    args.outdir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(args.seed)
    torch.set_default_dtype(torch.float64)
    try:
        print("All numbers are in nats.\n")
        any_guide()
        any_categorical_guide()
        gaussian_divergence(args.draws)
        joint_divergence_of_tables()
        joint_divergence_of_gaussians()
        gradients = two_gradients(args.draws)
        rates, fits = maximum_likelihood()
        file = args.outdir / "elbo-identities.png"
        draw(gradients, rates, fits).savefig(file, dpi=120)
    finally:
        torch.set_default_dtype(torch.float32)
    print("\nwritten:", file, sep="\n  ")


def header(title: str, first: str, second: str, whole: str) -> None:
    print(f"  {title:24}{first:>12}{second:>12}{'sum':>15}{whole:>15}{'differ by':>11}")


def both(name: str, parts: Sequence[Tensor], whole: Tensor) -> None:
    """Prints what parts sum to, the other side of the identity, and the difference."""
    numbers = "".join(f"{round(float(part), 6) + 0.0:12.6f}" for part in parts)  # no -0
    print(f"  {name:24}{numbers}{sum(parts):15.9f}{whole:15.9f}{sum(parts) - whole:11.0e}")


def linear_gaussian(num_latents: int) -> tuple[FactorAnalysis, Tensor]:
    """A model whose evidence and posterior are Gaussian, and a row, (D,).

    The evidence is the same for any number of latents: only their sum matters. The unit of x is
    one in which the normalising constant of its noise is 1.
    """
    unit = (2 * math.pi) ** -0.5
    model = FactorAnalysis(num_features=16, num_factors=num_latents).requires_grad_(False)
    model.log_scale.fill_(math.log(unit))
    model.loadings.fill_(0.5 * unit / num_latents**0.5)
    return model, torch.full((16,), 0.5 * unit)


def log_joint(model: FactorAnalysis, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z), for latents of shape (*, K)."""
    likelihood = dist.Normal(model.loc + z @ model.loadings.T, model.log_scale.exp())
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + likelihood.log_prob(x).sum(-1)


def posterior(model: FactorAnalysis, x: Tensor) -> dist.MultivariateNormal:
    """p(z | x) of one row."""
    found = model.posterior(x[None])
    return dist.MultivariateNormal(found.mean[0], found.covariance_matrix[0])


def points(q: dist.MultivariateNormal) -> Tensor:
    """2K points whose mean of any quadratic function is its expectation, (2K, *, K)."""
    offsets = q.scale_tril.mT * q.mean.shape[-1] ** 0.5  # (*, K, K)
    return q.mean + torch.cat([offsets, -offsets], -2).movedim(-2, 0)


def closed_elbo(model: FactorAnalysis, x: Tensor, q: dist.MultivariateNormal) -> Tensor:
    """E_q log p(x, z) + H(q), without chance."""
    return log_joint(model, x, points(q)).mean(0) + q.entropy()


def any_guide() -> None:
    model, x = linear_gaussian(num_latents=2)
    evidence, best = model.evidence().log_prob(x), posterior(model, x)
    guides = {
        "prior": dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        "narrow, elsewhere": dist.MultivariateNormal(best.mean + 2, torch.eye(2) / 100),
        "best diagonal": dist.MultivariateNormal(
            best.mean, (1 / best.precision_matrix.diagonal()).diag()
        ),
        "posterior": best,
    }
    print("1. ELBO + KL(q || posterior) = log p(x), for any guide q")
    header("linear Gaussian model", "ELBO", "KL", "log p(x)")
    for name, q in guides.items():
        both(name, [closed_elbo(model, x, q), kl_divergence(q, best)], evidence)


def any_categorical_guide() -> None:
    weights, locs = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.0, 3.0])
    x = torch.tensor([1.0])

    def model(x: Tensor | None = None, size: int | None = None) -> Tensor:
        with data_plate(x, size):
            z = pyro.sample("z", dist.Categorical(weights))
            return pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    log_joints = weights.log() + dist.Normal(locs, 1.0).log_prob(x)  # log p(x, z), (3,)
    best = dist.Categorical(logits=log_joints)
    guides = {"equal": torch.ones(3), "at random": torch.rand(3), "posterior": best.probs}
    print("  mixture of three, by `elbo`")
    for name, probs in guides.items():
        q = dist.Categorical(probs)

        def guide(x: Tensor, size: int | None = None, q: dist.Categorical = q) -> None:
            with data_plate(x, size):
                pyro.sample("z", q, infer={"enumerate": "parallel"})  # summed over, not drawn

        both(name, [-elbo(model, guide).loss(x), kl_divergence(q, best)], log_joints.logsumexp(0))


def gaussian_divergence(num_draws: int) -> None:
    print("\n2. KL between Gaussians: closed form, 2K points, and Monte Carlo")
    print(f"     K   closed form     2K points   differ by    mean of {num_draws} draws")
    for size in (1, 2, 10, 50):
        (a, first), (b, second) = random_gaussian(size), random_gaussian(size)
        p, q = dist.MultivariateNormal(a, first), dist.MultivariateNormal(b, second)
        inverse = second.inverse()
        closed = (inverse @ first).trace() + (b - a) @ inverse @ (b - a) - size
        closed = (closed + second.logdet() - first.logdet()) / 2
        z = points(p)
        exact = (p.log_prob(z) - q.log_prob(z)).mean()
        z = p.sample((num_draws,))
        ratio = p.log_prob(z) - q.log_prob(z)
        mean, error = ratio.mean(), ratio.std() / num_draws**0.5
        numbers = f"{closed:14.6f}{exact:14.6f}{closed - exact:12.0e}{mean:12.4f} ± {error:.4f}"
        print(f"  {size:4}{numbers}, {(mean - closed) / error:+.1f} errors off")


def random_gaussian(size: int) -> tuple[Tensor, Tensor]:
    root = torch.randn(size, size) / size**0.5
    return torch.randn(size), root @ root.T + torch.eye(size) / 2


def joint_divergence_of_tables() -> None:
    def random_table(*shape: int) -> Tensor:
        return dist.Dirichlet(torch.ones(shape)).sample()

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum(-1)

    data, guide = random_table(4), random_table(4, 3)  # p_data(x), (J,), and q(z | x), (J, K)
    joint = random_table(3)[:, None] * random_table(3, 4)  # p(z) p(x | z), (K, J)
    evidence, best = joint.sum(0), (joint / joint.sum(0)).T  # p(x), (J,), and p(z | x), (J, K)
    ours = data[:, None] * guide  # (J, K)
    whole = divergence(ours.flatten(), joint.T.flatten())
    print("\n3. KL(p_data || p) + E_data KL(q || posterior) = KL(p_data q || p(z) p(x | z))")
    header("", "likelihood", "inference", "joint KL")
    both("tables", [divergence(data, evidence), data @ divergence(guide, best)], whole)
    bound = (ours * (joint.T / guide).log()).sum()  # the ELBO, averaged over the data
    header("", "-mean ELBO", "-H(p_data)", "joint KL")
    both("tables", [-bound, -dist.Categorical(data).entropy()], whole)


def joint_divergence_of_gaussians() -> None:
    model, _ = linear_gaussian(num_latents=2)
    data = dist.MultivariateNormal(*random_gaussian(16))
    slope, (shift, spread) = torch.randn(16, 2), random_gaussian(2)
    x = points(data)  # (2D, D)
    q = dist.MultivariateNormal(x @ slope + shift, spread)  # q(z | x), of batch shape (2D,)
    z = points(q)  # (2K, 2D, K)
    whole = (data.log_prob(x) + q.log_prob(z) - log_joint(model, x, z)).mean()
    evidence = dist.MultivariateNormal(model.loc, model.evidence().covariance_matrix)
    inference = kl_divergence(q, model.posterior(x)).mean()
    header("", "likelihood", "inference", "joint KL")
    both("Gaussians", [kl_divergence(data, evidence), inference], whole)


def two_gradients(num_draws: int) -> dict[str, list[Tensor]]:
    """Gradients of the ELBO by the first mean of a diagonal Gaussian guide, many for each K.

    The same row is given `S` times, each with a guide of its own: one backward pass gives `S`
    estimates.
    """
    print(f"\n4. gradient of the ELBO by the mean of q: {num_draws} estimates, each from one draw")
    head = "     K     exact      reparameterised       sd        score function       sd"
    print(f"{head}   variances")
    found: dict[str, list[Tensor]] = {"exact": [], **{name: [] for name in ESTIMATORS}}
    for num_latents in LATENTS:
        model, x = linear_gaussian(num_latents)
        center, root = torch.zeros(num_latents, requires_grad=True), torch.eye(num_latents) / 2
        q = dist.MultivariateNormal(center, scale_tril=root)
        found["exact"].append(torch.autograd.grad(closed_elbo(model, x, q), center)[0][0])
        for name, reparameterised in ESTIMATORS.items():
            locs = torch.zeros(num_draws, num_latents, requires_grad=True)  # (S, K)
            # Pyro moves the draws of what has `rsample`, and weighs those of what has not.
            q = dist.MultivariateNormal(locs, scale_tril=root).has_rsample_(reparameterised)

            def guide(x: Tensor, size: int | None = None, q: dist.MultivariateNormal = q) -> None:
                with data_plate(x, size):
                    pyro.sample("z", q)

            loss = elbo(model, guide).loss(x.expand(num_draws, 16))  # the mean over rows
            (gradients,) = torch.autograd.grad(-num_draws * loss, locs)
            found[name].append(gradients[:, 0])
        cells, sds = "", []
        for name in ESTIMATORS:
            mean, sd = found[name][-1].mean(), found[name][-1].std()
            cells += f"{mean:12.4f} ± {sd / num_draws**0.5:.4f}{sd:9.3f}"
            sds.append(sd)
        ratio = (sds[1] / sds[0]) ** 2
        print(f"  {num_latents:4}{found['exact'][-1]:10.4f}{cells}   1 : {ratio:.0f}")
    print("  (Another unit of x adds a constant to f, which changes the second sd, not the first.)")
    return found


def maximum_likelihood() -> tuple[Tensor, Tensor]:
    """Returns rates of a Poisson distribution, and the mean log-likelihood of each."""
    counts, data = torch.arange(5.0), DEATHS / DEATHS.sum()
    entropy = dist.Categorical(data).entropy()
    rates = torch.linspace(0.2, 1.5, 1301)
    table = dist.Poisson(rates[:, None]).log_prob(counts)  # log p(x), (rates, 5)
    fits, divergences = table @ data, (data * (data.log() - table)).sum(1)
    print("\n5. -H(p_data) - KL(p_data || Poisson) = mean log-likelihood, of 200 counts of deaths")
    header("", "-H(p_data)", "-KL", "likelihood")
    for i in (100, 410, 1000):
        both(f"rate {rates[i]:.2f}", [-entropy, -divergences[i]], fits[i])
    print(
        f"  The likelihood is greatest at rate {rates[fits.argmax()]:.3f}, the divergence least at "
        f"{rates[divergences.argmin()]:.3f}; the mean count is {data @ counts:.3f}."
    )
    return rates, fits


def draw(gradients: dict[str, list[Tensor]], rates: Tensor, fits: Tensor) -> Figure:
    figure = Figure(figsize=(11, 8), layout="constrained")
    (first, fifth), (spread, growth) = figure.subplots(2, 2)

    model, x = linear_gaussian(num_latents=1)
    evidence, best = model.evidence().log_prob(x), posterior(model, x)
    means = torch.linspace(-0.2, 1.8, 121)
    bound = [
        closed_elbo(model, x, dist.MultivariateNormal(m[None], best.covariance_matrix))
        for m in means
    ]
    names = "ELBO", "KL(q || posterior)", "log p(x)"
    draw_sum(first, means, torch.stack(bound), evidence.item(), names)
    first.set(xlabel="mean of a Gaussian guide q", ylabel="nats", title="1. ELBO + KL = log p(x)")
    data = DEATHS / DEATHS.sum()
    names = "mean log-likelihood", "KL(data || Poisson)", "minus the entropy of the data"
    draw_sum(fifth, rates, fits, (data * data.log()).sum().item(), names)
    fifth.set(xlabel="rate of a Poisson distribution", ylabel="nats per count")
    fifth.set_title("5. maximum likelihood = least divergence")

    low = min(gradients[name][0].quantile(0.001).item() for name in ESTIMATORS)
    high = gradients["score function"][0].quantile(0.99).item()
    for name, color in zip(ESTIMATORS, ("C0", "C1"), strict=True):
        one = gradients[name][0].numpy()
        style = {"color": color, "label": name}
        spread.hist(one, bins=100, range=(low, high), density=True, alpha=0.5, **style)
        sds = [values.std().item() for values in gradients[name]]
        growth.loglog(LATENTS, sds, "o-", **style)
    exact = gradients["exact"][0].item()
    spread.axvline(exact, color="k", label="exact gradient, the mean of both")
    spread.set(xlabel="estimate from one draw (one latent)", ylabel="density")
    spread.set_title("4. two estimators of one gradient")
    growth.set(xlabel="latents", ylabel="standard deviation of an estimate")
    growth.set_title("4. draws moved, or weighed")
    growth.set_xticks(LATENTS, LATENTS)
    growth.minorticks_off()
    spread.legend(loc="upper right")
    growth.legend(loc="center left")
    return figure


def draw_sum(axes: Axes, x: Tensor, part: Tensor, total: float, names: Sequence[str]) -> None:
    """Two parts of a sum that is the same everywhere."""
    axes.plot(x.numpy(), part.numpy(), "C0", label=names[0])
    axes.fill_between(x.numpy(), part.numpy(), total, color="C1", alpha=0.4, label=names[1])
    axes.axhline(total, color="k", label=names[2])
    axes.legend(loc="lower center")


if __name__ == "__main__":
    main()
