"""The ways from where modules were to where their names are now, for one release.

Old paths are found by one finder, which imports nothing until one of them is. Names are looked up
at each use, so that the warning has the line of the user and the new path of the very name. It is
a FutureWarning: Python shows a DeprecationWarning to nobody but `__main__`, and users must see it.

The next release is without this file, and without its lines in `__init__`.
"""

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Below `ppl_models`: what a module was, and what has its names now; what defines a name comes
# before what imports it.
MOVED = {
    "autoencoder": ["autoencoders.autoencoder"],
    "autoregressive": ["autoregressive.model"],
    "bayesian_factor_analysis": ["factors.bayesian"],
    "bayesian_mixture": ["mixtures.bayesian"],
    "bins": ["densities.bins"],
    "cholesky": ["linalg"],
    "classifier": ["supervised.classifier"],
    "conditional_vae": ["autoencoders.conditional"],
    "conjugate_mixture": ["mixtures.conjugate"],
    "corruption": ["autoencoders.corruption"],
    "diffusion": ["diffusion.model"],
    "discriminant": ["supervised.discriminant"],
    "engine": [],
    "engine.adversarial": ["gan.game"],
    "engine.average": ["infer.training.average"],
    "engine.capture": ["infer.compiled.replay"],
    "engine.checkpoint": ["infer.training.files"],
    "engine.compare": ["infer.selection.compare"],
    "engine.comparison": ["infer.selection.table"],
    "engine.compile": ["infer.compiled.graph"],
    "engine.components": ["mixtures.components"],
    "engine.data": ["transformed", "checks", "infer.training.batches"],
    "engine.denoising": ["diffusion.denoising"],
    "engine.density": ["infer.evidence.weights"],
    "engine.descend": ["infer.training.optimizers", "infer.training.descent"],
    "engine.device": ["infer.programs.device"],
    "engine.draws": ["infer.evidence.weights", "infer.evidence.joint"],
    "engine.em": ["infer.training.em", "infer.training.climbs.protocols"],
    "engine.evidence": ["infer.evidence.evidence"],
    "engine.fit": ["infer.training.fit"],
    "engine.impute": ["infer.evidence.impute"],
    "engine.inference_data": ["infer.evidence.arviz", "infer.evidence.mcmc"],
    "engine.inspection": ["infer.programs.sites", "infer.programs.checks"],
    "engine.iwae": ["infer.objectives.iwae"],
    "engine.joint": ["checks", "infer.evidence.joint"],
    "engine.modules": ["scoped", "checks"],
    "engine.objectives": [
        *("infer.objectives.objective", "infer.objectives.estimators", "infer.objectives.elbo"),
    ],
    "engine.probability_flow": ["diffusion.flow"],
    "engine.program": ["infer.programs.program"],
    "engine.reconstruction": ["autoencoders.reconstruction"],
    "engine.relabel": ["mixtures.relabel"],
    "engine.rng": ["scoped"],
    "engine.rows": ["infer.programs.rows"],
    "engine.side_by_side": ["infer.compiled.side_by_side"],
    "engine.state": ["infer.training.progress"],
    "engine.svi": ["infer.drop_in.svi", "infer.drop_in.loss", "infer.drop_in.optimizers"],
    "engine.variational_bound": ["diffusion.bound"],
    "engine.waits": ["infer.compiled.waits"],
    "engine.watch": ["infer.compiled.watch"],
    "engine.weighted": ["infer.objectives.weighted"],
    "expectation": ["mixtures.em.expectation"],
    "factor_analysis": ["factors.analysis", "factors.probabilistic_pca"],
    "factor_em": ["factors.em"],
    "factor_likelihood": ["factors.likelihood"],
    "factor_moments": ["factors.checks", "factors.moments"],
    "gan": ["gan.model"],
    "gaussian_mixture": ["mixtures.gaussian", "mixtures.em.start", "mixtures.em.candidates"],
    "hierarchical_vae": ["autoencoders.hierarchical"],
    "histogram": ["densities.histogram"],
    "idx": ["datasets.idx"],
    "information": ["criteria"],
    "inverse_wishart": ["mixtures.inverse_wishart"],
    "kmeans": ["mixtures.kmeans"],
    "labels": ["checks"],
    "latent_diffusion": ["diffusion.latent"],
    "latents": ["gan.latents", "priors"],
    "made": ["autoregressive.made"],
    "maximisation": ["mixtures.em.maximisation"],
    "mean_field": ["mixtures.mean_field"],
    "metrics.modes": ["metrics.coverage"],
    "pca": ["factors.pca"],
    "pixelcnn": ["autoregressive.pixelcnn"],
    "pixelrnn": ["autoregressive.pixelrnn"],
    "plates": ["checks"],
    "preconditioning": ["diffusion.preconditioning"],
    "regression": ["supervised.predictor", "supervised.logistic", "supervised.regression"],
    "rotation": ["factors.rotation"],
    "samplers": ["diffusion.samplers"],
    "schedules": ["diffusion.schedules"],
    "semi_supervised_vae": ["autoencoders.semi_supervised"],
    "toys": ["datasets.toys"],
    "vae": ["autoencoders.vae"],
}
# Names that are others now, in the same modules.
RENAMED = {
    "engine.descend.Schedule": "LearningRateSchedule",
    "engine.state.State": "Progress",
    "latents.NormalLatents": "StandardNormal",
}


def install() -> None:
    """Makes old paths known: as modules to import, and as attributes of modules that exist."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # the last, so that all files come first
    for old in MOVED:
        if module := sys.modules.get(_path(old)):
            _answer(module, old)


def old_module(name: str) -> ModuleType:
    """What was a module of the package, as its attribute: `ppl_models.vae`."""
    module: ModuleType = _look_up("", name)
    return module


class _Finder(MetaPathFinder, Loader):
    """Finds old modules, which hold nothing and answer for where their names are now."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        if package != "ppl_models" or old not in MOVED:
            return None
        return ModuleSpec(name, self, is_package=not MOVED[old])

    def exec_module(self, module: ModuleType) -> None:
        _answer(module, module.__name__.partition(".")[2])


def _path(module: str) -> str:
    return f"ppl_models.{module}" if module else "ppl_models"


def _answer(module: ModuleType, old: str) -> None:
    """Lets a module answer for the names that it had."""
    module.__getattr__ = partial(_look_up, old)  # type: ignore[method-assign]


def _look_up(old: str, name: str) -> Any:
    """What a name of an old module is now, with a warning that says where."""
    if f"{old}.{name}".removeprefix(".") in MOVED:  # ppl_models.vae, ppl_models.engine.fit
        return import_module(f"{_path(old)}.{name}")
    now = RENAMED.get(f"{old}.{name}", name)
    for home in MOVED.get(old, []) if not name.startswith("__") else []:
        found = vars(import_module(_path(home)))
        if now in found:
            public = now in sys.modules["ppl_models"].__all__
            path = "ppl_models" if public else _path(home)
            warnings.warn(
                f"{_path(old)}.{name} has moved, and its old path ends with the next release. "
                f"Try from {path} import {now}.",
                FutureWarning,
                stacklevel=2,
            )
            return found[now]
    raise AttributeError(f"module {_path(old)!r} has no attribute {name!r}")
