r"""Bayesian Gaussian mixtures: a finite prior, or a Dirichlet process, over the weights.

.. math::
    \pi &\sim \mathrm{Dirichlet}(\alpha, \ldots, \alpha)
    \quad \text{or} \quad
    \pi_k = \beta_k \prod_{j < k} (1 - \beta_j), \quad \beta_k \sim \mathrm{Beta}(1, \alpha) \\
    \Sigma_k &\sim \mathrm{InverseWishart}(\nu_0, \Psi_0), \qquad
    \mu_k \mid \Sigma_k \sim \mathcal{N}(m_0, \Sigma_k / \kappa_0) \\
    z_n &\sim \mathrm{Categorical}(\pi), \qquad
    x_n \mid z_n \sim \mathcal{N}(\mu_{z_n}, \Sigma_{z_n})

The component `z` of a row is summed over exactly, so that a guide needs only the latents that all
rows share. Were the components known, the posterior of these would be of the family of their prior.
It is the same for all :math:`K!` orders of the components (with stick-breaking nearly so). A guide
stays with one: of components well apart its evidence lacks :math:`\log K!` nats, of the whole data;
where `E` components are empty, their own order is in the guide: :math:`\log(K! / E!)` are missing.

Shapes: `B` rows, `D` features, `K` components.

References:
    | Pattern Recognition and Machine Learning (Bishop, 2006), chapter 10.2
    | https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/
    | Gibbs Sampling Methods for Stick-Breaking Priors (Ishwaran & James, 2001)
    | https://doi.org/10.1198/016214501750332758
    | Asymptotic Behaviour of the Posterior Distribution in Overfitted Mixture Models
    | (Rousseau & Mengersen, 2011), https://doi.org/10.1111/j.1467-9868.2011.00781.x
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.checks import (
    check_choice,
    check_count,
    check_finite,
    check_float64,
    check_positive,
    check_resolution,
    check_rows,
)
from ppl_models.linalg import cholesky
from ppl_models.mixtures.conjugate import ConjugateMixture, weights_of
from ppl_models.mixtures.inverse_wishart import InverseWishart
from ppl_models.mixtures.mean_field import mean_field
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line


class BayesianGaussianMixture(nn.Module):
    r"""A mixture of Gaussians with latent sites `weights`, `covariances`, `locs`, and `z` of a row.

    With stick-breaking `sticks` are latent, and `weights` deterministic. `scales`, deterministic
    too, are the standard deviations of the features in each component. A single component has no
    latent weights. The prior is in the units of the data, and what it is by default is meant for
    features of mean 0 and standard deviation 1: `mean_field`, where the guides of `guides.mixture`
    start, refuses others. For these `prior_loc=x.mean(0), prior_scale=0.25 * x.std(0)` is the same
    prior. float64 is advised, `model.double()`.

    Arguments:
        num_features: The length of a row, `D`.
        num_components: The most components, `K`: those not needed stay empty.
        covariance: `"full"`, `"diag"` or `"spherical"`: covariances of shape `(K, D, D)`, `(K, D)`
            or `(K, 1)`.
        weights: `"dirichlet"`, or `"stick-breaking"` for a Dirichlet process cut off after `K`.
        concentration: :math:`\alpha`. Default: `1 / K` for a Dirichlet, small enough to leave
            components empty (Rousseau & Mengersen), and 1 for a Dirichlet process.
        prior_loc: :math:`m_0`, a number, or one for each feature.
        prior_scale: The standard deviation of a feature inside of a component, as the root of the
            prior mean of its variance: a number, or one for each feature (not if spherical).
        prior_strength: :math:`\kappa_0`, the number of rows that :math:`m_0` is worth. A priori
            centers are :math:`1 / \sqrt{\kappa_0}` times as far apart as rows of a component.
        prior_df: :math:`\nu_0`, the degrees of freedom: more than `D + 1` if full, else than 2.
            Default: one more than that, a vague prior.

    Raises:
        ValueError: If an argument is none of these, or not positive, or of another shape.

    Example:
        >>> model = BayesianGaussianMixture(num_features=2, num_components=8)
        >>> model(size=5).shape  # rows of a mixture drawn from the prior
        torch.Size([5, 2])
    """

    sticks: Tensor
    loc: Tensor
    strength: Tensor
    df: Tensor
    scale: Tensor

    __repr__ = in_a_line

    def __init__(
        self,
        num_features: int,
        num_components: int,
        covariance: str = "full",
        weights: str = "dirichlet",
        concentration: float | None = None,
        prior_loc: float | Tensor = 0.0,
        prior_scale: float | Tensor = 0.25,
        prior_strength: float = 0.01,
        prior_df: float | None = None,
    ) -> None:
        super().__init__()
        check_count(num_features=num_features, num_components=num_components)
        check_choice("covariance", covariance, ["full", "diag", "spherical"])
        check_choice("weights", weights, ["dirichlet", "stick-breaking"])
        self.num_features, self.num_components = num_features, num_components
        self.covariance, self.stick_breaking = covariance, weights == "stick-breaking"

        size = num_features if covariance == "full" else 1  # F, of a block of the covariance
        blocks = num_features if covariance == "diag" else 1  # G
        if concentration is None:
            concentration = 1.0 if self.stick_breaking else 1.0 / num_components
        prior_df = size + 2.0 if prior_df is None else prior_df
        check_positive(concentration=concentration, prior_strength=prior_strength)
        if not size + 1 < prior_df < math.inf:
            raise ValueError(
                f"prior_df: expected a finite number above {size + 1}, got {prior_df!r}. Try "
                f"prior_df=None, {size + 2}."
            )
        loc = _per_feature("prior_loc", prior_loc, num_features)
        scale = _per_feature("prior_scale", prior_scale, size * blocks)
        if not (scale > 0).all():
            raise ValueError(f"prior_scale: expected positive numbers, got {scale.tolist()}.")

        sticks = _sticks(num_components, concentration, self.stick_breaking)
        self.register_buffer("sticks", sticks)  # of Beta distributions, (K - 1, 2)
        self.register_buffer("loc", loc)  # m_0, (D,)
        self.register_buffer("strength", torch.tensor(float(prior_strength)))  # kappa_0
        self.register_buffer("df", torch.tensor(float(prior_df)))  # nu_0
        mean = scale.square().reshape(blocks, size).diag_embed()  # of the covariance, (G, F, F)
        self.register_buffer("scale", (prior_df - size - 1) * mean)  # Psi_0

    @property
    def prior(self) -> ConjugateMixture:
        """The prior of what all rows share, in closed form."""
        count = self.num_components
        return ConjugateMixture(
            self.sticks,
            self.loc.expand(count, -1),
            self.strength.expand(count),
            self.df.expand(count),
            self.scale.expand(count, -1, -1, -1),
        )

    def forward(self, x: Tensor | None = None, size: int | None = None) -> Tensor:
        """Draws what rows share, and scores rows `x`, of `size` in all, or draws `size`."""
        check_rows(x, self.num_features, "BayesianGaussianMixture", self)
        weights, locs, root = self.sample_shared(self.prior)
        with poutine.infer_config(config_fn=self._event_dims):
            if self.stick_breaking or self.num_components == 1:
                pyro.deterministic("weights", weights)
            squares = root.square().sum(-1) if self.covariance == "full" else root.square()
            pyro.deterministic("scales", squares.sqrt().expand_as(locs))  # (K, D)

        with data_plate(x, size) as rows:
            if self.num_components == 1:
                zero = locs.new_zeros(len(rows), dtype=torch.int64)
                z = pyro.deterministic("z", zero, event_dim=0)
            else:
                z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if self.covariance == "full":
                law = dist.MultivariateNormal(locs[z], scale_tril=root[z])
            else:
                law = dist.Normal(locs[z], root[z]).to_event(1)
            return pyro.sample("x", law, obs=x)

    def sample_shared(self, parameters: ConjugateMixture) -> tuple[Tensor, Tensor, Tensor]:
        """Samples what all rows share: here from the prior, in a guide from its posterior.

        Returns:
            The weights `(K,)`, the centers `(K, D)`, and the standard deviations, `(K, D)` or
            `(K, 1)`, or Cholesky factors `(K, D, D)` of full covariances.
        """
        beta, loc, strength, df, matrix = parameters
        spread = 1 / strength.sqrt()[:, None]  # (K, 1)
        with poutine.infer_config(config_fn=self._event_dims):
            if self.num_components == 1:
                weights = loc.new_ones(1)
            elif self.stick_breaking:
                sticks = pyro.sample("sticks", dist.Beta(beta[:, 0], beta[:, 1]).to_event(1))
                weights = weights_of(sticks)
            else:
                concentration = torch.cat([beta[:, 0], beta[-1:, 1]])  # (K,)
                weights = pyro.sample("weights", dist.Dirichlet(concentration))

            with pyro.plate("component", self.num_components, dim=-1):
                if self.covariance == "full":
                    law = InverseWishart(df, matrix[:, 0])
                    root = cholesky(pyro.sample("covariances", law))
                    center = dist.MultivariateNormal(loc, scale_tril=spread[..., None] * root)
                else:
                    law = dist.InverseGamma(df[:, None] / 2, matrix[:, :, 0, 0] / 2).to_event(1)
                    root = pyro.sample("covariances", law).sqrt()
                    center = dist.Normal(loc, spread * root).to_event(1)
                return weights, pyro.sample("locs", center), root

    def mean_field(self, x: Tensor, restarts: int = 1) -> ConjugateMixture:
        r"""Returns the best :math:`q(\pi, \mu, \Sigma) \approx p(\pi, \mu, \Sigma \mid x)`.

        By coordinate ascent, from clusterings by k-means with 1, 2, ... and `K` clusters; the
        components come by size, those without rows last.

        Arguments:
            x: The rows, `(N, D)`.
            restarts: The number of runs of k-means for each number of clusters.

        Raises:
            ValueError: If rows are not finite, or fewer than components, or the priors are not
                about rows like these: most lie more than 30 times as far from `prior_loc` as rows
                do a priori, or they spread less than a fourth of `prior_scale`.
        """
        check_rows(x, self.num_features, "BayesianGaussianMixture", self)
        check_float64(x, "BayesianGaussianMixture")
        check_finite(x, "BayesianGaussianMixture", minimum=self.num_components)
        self._check_units(x.double())
        return mean_field(self.prior, x, restarts)

    def _check_units(self, x: Tensor) -> None:
        """Raises unless means and standard deviations of rows suit the priors."""
        loc, scale = x.mean(0), x.std(0, correction=0)
        check_resolution(loc, scale, self.loc.dtype, "BayesianGaussianMixture")
        size = self.scale.shape[-1]
        inside = (self.scale.diagonal(dim1=-2, dim2=-1).flatten() / (self.df - size - 1)).sqrt()
        over = inside * (1 + 1 / self.strength).sqrt()  # of all rows, (D,) or (1,)
        far = (x - self.loc).abs().median(0).values / over  # a few rows may lie anywhere
        if far.max() > 30 or 0 < (scale / inside).max() < 0.25:
            d = int(far.argmax())
            raise ValueError(
                f"BayesianGaussianMixture: the priors are not about rows like these, such as "
                f"feature {d}, with a mean of {loc[d]:.3g} and a standard deviation of "
                f"{scale[d]:.3g}; a priori a row is within about {over.expand(len(loc))[d]:.3g} of "
                f"{self.loc[d]:.3g}, and a component spreads {inside.expand(len(loc))[d]:.3g}. Try "
                f"standardised rows, or prior_loc=x.mean(0), prior_scale=0.25 * x.std(0) (a number "
                f"if spherical)."
            )

    def _event_dims(self, site: dict) -> dict:
        """How ArviZ is to call the dimensions of a site, besides those of its plates."""
        of_covariances = {"full": ["feature", "other_feature"], "diag": ["feature"]}
        names = {
            "weights": ["component"],
            "sticks": ["stick"],
            "covariances": of_covariances.get(self.covariance, ["all_features"]),
            "locs": ["feature"],
            "scales": ["component", "feature"],
        }
        return {"event_dims": names[site["name"]]} if site["name"] in names else {}


def _sticks(num_components: int, concentration: float, stick_breaking: bool) -> Tensor:
    """The parameters of the Beta distributions of sticks, (K - 1, 2)."""
    if stick_breaking:
        return torch.tensor([[1.0, concentration]]).repeat(num_components - 1, 1)
    later = torch.arange(num_components - 1, 0, -1) * concentration  # a Dirichlet has sticks too
    return torch.stack([torch.full_like(later, concentration), later], 1)


def _per_feature(name: str, value: float | Tensor, count: int) -> Tensor:
    """A number for each of `count` features."""
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if tensor.shape not in [(), (count,)] or not tensor.isfinite().all():
        wanted = f"or {count} of them, one for each feature" if count > 1 else "one for all"
        raise ValueError(
            f"{name}: expected a finite number, {wanted}, got {tensor.tolist()} "
            f"with shape {tuple(tensor.shape)}."
        )
    return tensor.expand(count).clone()
