r"""Bayesian factor analysis, which finds the number of factors out of a generous maximum.

.. math::
    \mu_d &\sim \mathcal{N}(m_d, s_d^2) \\
    \tau_k &\sim \mathrm{HalfCauchy}(1) \\
    w_{dk} \mid \tau_k &\sim \mathcal{N}(0, s_d^2 \tau_k^2) \\
    \psi_d &\sim \mathrm{InverseGamma}(1.1, 0.05 \, s_d^2) \\
    x_n \mid \mu, W, \psi &\sim \mathcal{N}(\mu, W W^\top + \Psi), \qquad
    \Psi = \mathrm{diag}(\psi)

:math:`m_d` is where feature `d` is known to lie and :math:`s_d` how widely it spreads: 0 and 1 for
standardised rows. Each factor `k` has a scale :math:`\tau_k` of its own: automatic relevance
determination, which shrinks the loadings of a factor that the rows do not ask for. The prior of
the noise keeps it from zero: no Heywood cases, and a constant feature is no trouble.

The latent :math:`z_n \sim \mathcal{N}(0, I)` of a row, with :math:`x_n \mid z_n \sim
\mathcal{N}(\mu + W z_n, \Psi)`, is summed out of the program, exactly. So only the latents shared
by all rows are left to the guide: it needs no parameters for rows, and its bound is tighter by what
an approximate posterior of each `z` would cost. With `z` as a site the fit takes ten times as many
steps to let go of factors that are not there, and gives narrower intervals
(`benchmarks/truth/factors_found.py`). Given draws of the other latents, `posterior` is that of `z`,
exactly.

The loadings are known up to a rotation only: :math:`W R` gives the same rows. What is known is
`covariance`, `relevance` and `num_relevant`; for loadings to read see
`ppl_models.factors.rotation`.

Shapes: `B` rows, `D` features, `K` factors, `*` any draws in front.

References:
    | Variational Principal Components (Bishop, 1999)
    | https://doi.org/10.1049/cp:19991160
    | On the Half-Cauchy Prior for a Global Scale Parameter (Polson & Scott, 2012)
    | https://doi.org/10.1214/12-BA730
    | Bayesian Model Assessment in Factor Analysis (Lopes & West, 2004): the prior of the noise
    | Statistica Sinica 14, 41-67
    | Phase Transition of the Largest Eigenvalue for Nonnull Complex Sample Covariance Matrices
    | (Baik, Ben Arous & Péché, 2005): what can be told from chance
    | https://doi.org/10.1214/009117905000000233
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_finite, check_float64, check_rows
from ppl_models.factors.checks import check_num_factors
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class BayesianFactorAnalysis(nn.Module):
    r"""Factor analysis with priors on its parameters, and relevant factors found by itself.

    Latent sites: `loc`, `factor_scale`, `loadings` and `noise_variance`, shared by all rows. There
    are no parameters besides: all that is learnt is in the guide. `guides.FactorNormal`, started at
    `initial_values`, finds the number of factors in a few hundred steps.

    Arguments:
        num_features: The length of a row, `D`.
        num_factors: The most factors that there may be, `K`, not more than `D`.
        prior_loc: Where the features are known to lie, a number or `(D,)`.
        prior_scale: How widely they are known to spread, a positive number or `(D,)`.

    Raises:
        ValueError: If a number is not positive, there are more factors than features, or a prior
            has the wrong shape.

    Example:
        >>> from guides.factor_normal import FactorNormal
        >>> from ppl_models import elbo, fit, from_pyro_svi
        >>> x = torch.randn(100, 1) * torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
        >>> x = x + 0.5 * torch.randn(100, 6)  # one factor
        >>> model = BayesianFactorAnalysis(num_features=6, num_factors=3)
        >>> guide = FactorNormal(model.initial_values(x))
        >>> run = fit(elbo(model, guide), x, steps=100, lr=0.05)
        >>> posterior = from_pyro_svi(model, guide, x, num_samples=20)["posterior"]
        >>> posterior["loadings"].dims
        ('chain', 'draw', 'feature', 'factor')
        >>> loadings, noise = (
        ...     torch.from_numpy(posterior[name].values) for name in ("loadings", "noise_variance")
        ... )
        >>> model.num_relevant(loadings, noise).mode().values
        tensor([1])
    """

    prior_loc: Tensor  # m, (D,)
    prior_scale: Tensor  # s, (D,)

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_factors: int,
        prior_loc: float | Tensor = 0.0,
        prior_scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        check_num_factors(num_factors, num_features, "BayesianFactorAnalysis")
        self.num_features, self.num_factors = num_features, num_factors
        self.register_buffer("prior_loc", _prior("prior_loc", prior_loc, num_features))
        self.register_buffer("prior_scale", _prior("prior_scale", prior_scale, num_features))
        if not (self.prior_scale > 0).all():
            raise ValueError(
                f"prior_scale: expected positive numbers, got "
                f"{int((self.prior_scale <= 0).sum())} of {num_features} that are not. Try "
                f"prior_scale=1.0 for a feature that is constant."
            )

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws what rows share, and scores rows `x`, of `size` in all, or draws `size`."""
        check_rows(x, len(self.prior_loc), "BayesianFactorAnalysis")
        scale = self.prior_scale  # s, (D,)
        feature, both = {"event_dims": ["feature"]}, {"event_dims": ["feature", "factor"]}

        loc = pyro.sample("loc", dist.Normal(self.prior_loc, scale).to_event(1), infer=feature)
        factor_scale = pyro.sample(  # tau, (K,)
            "factor_scale",
            dist.HalfCauchy(scale.new_ones(self.num_factors)).to_event(1),
            infer={"event_dims": ["factor"]},
        )
        spread = scale[:, None] * factor_scale  # (D, K)
        prior = dist.Normal(torch.zeros_like(spread), spread).to_event(2)
        loadings = pyro.sample("loadings", prior, infer=both)  # W, (D, K)
        noise = dist.InverseGamma(torch.full_like(scale, 1.1), 0.05 * scale**2).to_event(1)
        noise_variance = pyro.sample("noise_variance", noise, infer=feature)  # psi, (D,)

        try:
            row = dist.LowRankMultivariateNormal(loc, loadings, noise_variance)
        except torch.linalg.LinAlgError as error:
            raise FloatingPointError(
                f"BayesianFactorAnalysis: loadings of up to {loadings.abs().max():.1e} with noise "
                f"variances down to {noise_variance.min():.1e} give no covariance: the fit runs "
                f"away. Try a smaller lr, or double precision."
            ) from error
        with data_plate(x, size):
            return pyro.sample("x", row, obs=x, infer=feature)

    @torch.no_grad()
    def initial_values(self, x: Tensor) -> dict[str, Tensor]:
        """Returns values of all latents for a guide to start from: about the most likely ones.

        They are for `guides.FactorNormal`, or for autoguides by `init_to_value(values=...)` of
        Pyro. From elsewhere the fit takes several times as long, and may end with more factors.

        Raises:
            ValueError: If there are fewer than two rows, some are not finite, or the priors are
                not about features like these: one lies more than 30 `prior_scale` away from
                `prior_loc` or spreads more than 30 times as widely, or none spreads a 30th.
        """
        check_rows(x, len(self.prior_loc), "BayesianFactorAnalysis")
        check_float64(x, "BayesianFactorAnalysis")
        check_finite(x, "BayesianFactorAnalysis", minimum=2)
        rows = (x.double() - self.prior_loc) / self.prior_scale  # in the units of the priors
        loc, covariance = rows.mean(0), torch.cov(rows.T, correction=0).reshape(2 * rows.shape[1:])
        variance = covariance.diagonal()  # (D,)
        self._check_units(loc, variance.sqrt())

        # The fixed point of maximum likelihood, kept away from noise of zero.
        variance = variance.clamp(min=1e-3)
        noise = variance / 2  # psi
        for _ in range(50):
            scale = noise.sqrt()
            values, vectors = torch.linalg.eigh(covariance / scale / scale[:, None])  # ascending
            values = values[-self.num_factors :].flip(0)
            vectors = vectors[:, -self.num_factors :].flip(1)
            loadings = scale[:, None] * vectors * (values - 1).clamp(min=1e-4).sqrt()
            noise = (variance - (loadings**2).sum(1)).maximum(0.05 * variance)
        start = {
            "loc": self.prior_loc + self.prior_scale * loc,
            "factor_scale": (loadings**2).mean(0).sqrt().clamp(min=0.03),
            "loadings": self.prior_scale[:, None] * loadings,
            "noise_variance": self.prior_scale**2 * noise,
        }
        return {name: value.to(x.dtype) for name, value in start.items()}

    def posterior(
        self, x: Tensor, loc: Tensor, loadings: Tensor, noise_variance: Tensor
    ) -> dist.MultivariateNormal:
        r"""Returns :math:`p(z \mid x, \mu, W, \psi)`, exact for each draw of the other latents.

        .. math::
            \mathcal{N}(M^{-1} W^\top \Psi^{-1} (x - \mu), M^{-1}), \qquad
            M = I + W^\top \Psi^{-1} W

        For `x` of shape `(B, D)` and loadings of shape `(*, D, K)` it has batch shape `(*, B)` and
        event shape `(K,)`.
        """
        check_rows(x, len(self.prior_loc), "BayesianFactorAnalysis")
        whitened, signal = self._whiten(loadings, noise_variance)
        precision = signal + torch.eye(signal.shape[-1]).to(signal)  # M, (*, K, K)
        residual = (x - loc.unsqueeze(-2)) / noise_variance.sqrt().unsqueeze(-2)  # (*, B, D)
        mean = torch.linalg.solve(precision, (residual @ whitened).mT).mT  # (*, B, K)
        return dist.MultivariateNormal(mean, precision_matrix=precision.unsqueeze(-3))

    @staticmethod
    def covariance(loadings: Tensor, noise_variance: Tensor) -> Tensor:
        r"""Returns :math:`W W^\top + \Psi`, `(*, D, D)`, the same for every rotation."""
        return loadings @ loadings.mT + torch.diag_embed(noise_variance)

    @staticmethod
    def relevance(loadings: Tensor, noise_variance: Tensor) -> Tensor:
        r"""Returns how reliably a row tells each factor, `(*, K)`, from 0 to 1, largest first.

        .. math:: \rho_k = \frac{\lambda_k}{1 + \lambda_k}, \qquad
            \lambda_k \text{ the eigenvalues of } W^\top \Psi^{-1} W

        These are the signal-to-noise ratios of the factors, rotated so that they are independent
        given a row: :math:`\rho_k = 1 - \mathrm{var}(z_k \mid x)` is the share of the variance of
        a factor that a row explains. It depends neither on the rotation of the loadings nor on the
        units of the features. With `N` rows, factors with :math:`\lambda` less than about
        :math:`\sqrt{D / N}` cannot be told from chance.

        Example:
            >>> loadings = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
            >>> BayesianFactorAnalysis.relevance(loadings, torch.ones(2))
            tensor([0.9000, 0.2000])
        """
        _, signal = BayesianFactorAnalysis._whiten(loadings, noise_variance)
        ratio = torch.linalg.eigvalsh(signal).flip(-1).clamp(min=0)  # lambda, (*, K)
        return ratio / (1 + ratio)

    @staticmethod
    def num_relevant(loadings: Tensor, noise_variance: Tensor, threshold: float = 0.5) -> Tensor:
        r"""Returns the number of factors whose relevance is more than `threshold`, `(*,)`.

        At one half a row says more of a factor than it leaves open: the signal exceeds the noise,
        :math:`\lambda_k > 1`. With few rows, `N < 2 D`, chance alone comes near to this threshold,
        and with `N < D` beyond it.

        Draws of the posterior give draws of the number of factors. A guide around one mode is
        surer of it than the posterior: in a case where MCMC gave one factor more a probability of
        6 %, the guide gave none.
        """
        return (BayesianFactorAnalysis.relevance(loadings, noise_variance) > threshold).sum(-1)

    @staticmethod
    def _whiten(loadings: Tensor, noise_variance: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`\Psi^{-1/2} W`, `(*, D, K)`, and :math:`W^\top \Psi^{-1} W`."""
        whitened = loadings / noise_variance.sqrt().unsqueeze(-1)
        return whitened, whitened.mT @ whitened

    def _check_units(self, loc: Tensor, spread: Tensor) -> None:
        """Raises unless means and standard deviations suit the priors, in their units."""
        d = int(torch.maximum(loc.abs(), spread).argmax())
        if loc[d].abs() > 30 or spread[d] > 30 or spread.max() < 1 / 30:
            raise ValueError(
                f"BayesianFactorAnalysis: the priors are not about rows like these, such as "
                f"feature {d}: in units of prior_scale, its mean is {loc[d]:.3g} from prior_loc, "
                f"and its standard deviation {spread[d]:.3g}; expected within 30, and from 1/30 "
                f"to 30 (a feature may be constant, if not all are). Try standardised rows, or "
                f"prior_loc=x.mean(0), prior_scale=x.std(0)."
            )


def _prior(name: str, value: float | Tensor, num_features: int) -> Tensor:
    """Returns a prior's numbers, one for each feature."""
    prior = torch.as_tensor(value).detach().to(torch.get_default_dtype())
    if prior.shape not in ((), (num_features,)) or not prior.isfinite().all():
        raise ValueError(
            f"{name}: expected a finite number, or {num_features} of them, one for each feature, "
            f"got shape {tuple(prior.shape)}. Try {name}=x.{'mean' if 'loc' in name else 'std'}(0)."
        )
    return prior.expand(num_features).clone()
