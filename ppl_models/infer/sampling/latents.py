"""What a latent must be, so that a sampler of real numbers can move it or a sum take it out."""

import math

from torch import Tensor

from ppl_models.infer.programs import sites
from ppl_models.infer.sampling.bijections import bijection

NEAR = 1e-4  # by which a log-density on the other side of a circle may differ, in nats


def check_latent(site: dict) -> None:
    """Raises where a latent can be neither moved nor summed out."""
    name, fn = site["name"], site["fn"]
    kind = sites.kind(fn)
    if sites.is_masked(site) and not sites.counting(site).all():
        raise ValueError(
            f"nuts: site {name!r} is a latent that is masked, so that nothing holds it where it "
            f"counts for nothing. Expected latents that all count. Try the rows that are there "
            f"instead of a mask."
        )
    if kind == "Delta":
        raise ValueError(
            f"nuts: site {name!r} is a latent at a single point, a Delta, from which nothing can "
            f"move. Expected latents with a density. Try pyro.deterministic({name!r}, value)."
        )
    if sites.is_discrete(site):
        if not _can_be_summed(fn):
            raise ValueError(
                f"nuts: site {name!r} is a discrete latent, {kind}, that cannot be summed out: it "
                f"has no end, or too many values. Expected continuous latents, or discrete ones "
                f"whose values can be listed. Try a plate for to_event, to integrate it out by "
                f"hand, or SVI."
            )
        return
    try:
        bijection(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"nuts: site {name!r} is a latent, {kind}, whose support nobody has mapped to real "
            f"numbers: {fn.support}. Expected one that has such a map, as biject_to knows them. "
            f"Try a transform of a latent on real numbers."
        ) from error
    if _is_periodic(fn, site["value"]):
        raise ValueError(
            f"nuts: site {name!r} is a latent on a circle, {kind}, whose density on real numbers "
            f"goes round and round and has no integral. Expected latents with a density. Try the "
            f"angle (torch.atan2) of two normal latents, with a pyro.factor for its density."
        )


def _can_be_summed(fn: object) -> bool:
    """Whether the values of a discrete distribution can be listed."""
    try:
        fn.enumerate_support(expand=False)  # type: ignore[attr-defined]
    except NotImplementedError:
        return False
    return bool(fn.has_enumerate_support)  # type: ignore[attr-defined]


def _is_periodic(fn: object, value: Tensor) -> bool:
    """Whether a log-density is the same once and twice around a circle, and another in between."""
    try:
        here, half, once, twice = (
            fn.log_prob(value + turns * 2 * math.pi)  # type: ignore[attr-defined]
            for turns in (0, 0.3, 1, 2)
        )
    except (ValueError, NotImplementedError):  # outside the support, which has an end
        return False
    near = (once - here).abs().max() < NEAR and (twice - here).abs().max() < NEAR
    return bool(near and (half - here).abs().max() > NEAR)
