"""Old paths lead to where names are now, for one release, and say so at the line of the user."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import ppl_models
from ppl_models._moved import MOVED, RENAMED

# What modules had before they moved; of the engine, what a user could have wanted.
NAMES = {
    "autoencoder": "AutoEncoder DenoisingAutoEncoder",
    "autoregressive": "Autoregressive AutoregressiveModel check_dropout",
    "bayesian_factor_analysis": "BayesianFactorAnalysis",
    "bayesian_mixture": "BayesianGaussianMixture",
    "bins": "PiecewiseConstant bin_edges check_countable check_shape locate",
    "cholesky": "cholesky inverse_root",
    "classifier": "Classifier",
    "conditional_vae": "ConditionalVAE one_hot",
    "conjugate_mixture": "ConjugateMixture weights_of",
    "corruption": "GaussianNoise MaskingNoise SaltAndPepper",
    "datasets": "Binarize Folder Labelled Part binarize binary_mnist digits fashion_mnist mnist",
    "diffusion": "Diffusion",
    "discriminant": "GaussianDiscriminant WHERE",
    "engine.adversarial": "Game adversarial",
    "engine.average": "Average",
    "engine.checkpoint": "load save",
    "engine.compare": "compare",
    "engine.comparison": "Comparison stacking",
    "engine.components": "component_summary num_active",
    "engine.data": "Batch Transformed check_tensors",
    "engine.denoising": "Denoising DiffusionModel denoising",
    "engine.density": "log_density",
    "engine.descend": "Descent Optimizer Schedule descend",
    "engine.device": "choose_device",
    "engine.em": "HasEMStep fit_em",
    "engine.evidence": "Evidence log_evidence",
    "engine.fit": "Run fit",
    "engine.impute": "impute",
    "engine.inference_data": "from_pyro_mcmc from_pyro_svi",
    "engine.iwae": "ImportanceWeightedBound iwae",
    "engine.joint": "check_count",
    "engine.modules": "modes",
    "engine.objectives": "DirectELBO DirectEnumELBO EvidenceLowerBound Objective elbo",
    "engine.probability_flow": "probability_flow",
    "engine.program": "Program",
    "engine.reconstruction": "HasReconstruction Reconstruction reconstruction",
    "engine.relabel": "relabel",
    "engine.rows": "Rows",
    "engine.state": "State",
    "engine.svi": "SVI",
    "engine.variational_bound": "variational_bound",
    "engine.weighted": "Weighted weighted",
    "expectation": (
        "CHUNK FAR MISSING_CHUNK Statistics expectation expectation_of_missing from_labels"
    ),
    "factor_analysis": "FactorAnalysis ProbabilisticPCA",
    "factor_em": "Sums expectation maximisation",
    "factor_likelihood": (
        "End LENGTHS RIDGE SMALL Spectrum best_loadings best_noise mean_log_evidence "
        "spectrum start_noise with_signs"
    ),
    "factor_moments": (
        "CHUNK INF LITTLE LOCK Moments SINGULAR check_batches check_columns "
        "check_rank moments one_thread"
    ),
    "gan": "GAN",
    "gaussian_mixture": "COVARIANCES GaussianMixture MANY",
    "hierarchical_vae": "HierarchicalVAE",
    "histogram": "HistogramDensity",
    "idx": "read require",
    "information": "CHUNK InformationCriteria",
    "inverse_wishart": (
        "CovarianceTransform InverseWishart covariance_matrix log_diagonal log_normaliser"
    ),
    "kmeans": "kmeans",
    "labels": "check_classes check_labels",
    "latent_diffusion": "LatentDiffusion LatentNoising",
    "latents": "NormalLatents NormalOneHot NormalOneHotLatents",
    "likelihoods": (
        "Bernoulli Categorical Levels Likelihood LogisticLevels LogisticMixture Normal "
        "check_likelihood check_outputs"
    ),
    "made": "MADE",
    "maximisation": "Maximum factor maximisation",
    "mean_field": "Ascent SHORT ascend mean_field",
    "metrics": (
        "LatentClassification ModeCoverage PRDC frechet label_coverage "
        "latent_classification mode_coverage prdc"
    ),
    "metrics.frechet": "frechet",
    "metrics.latents": "LatentClassification latent_classification",
    "metrics.modes": "ModeCoverage label_coverage mode_coverage",
    "metrics.prdc": "PRDC prdc",
    "metrics.rows": "check_pair",
    "missing": (
        "Completion Conditional MAX_NUMBERS MarginalLowRankMultivariateNormal "
        "MarginalMultivariateNormal MarginalNormal Observed check_missing complete "
        "condition observed_only real_or_missing"
    ),
    "nn": (
        "Condition ConvDecoder ConvDiscriminator ConvEncoder ConvGenerator DiagonalBiLSTM "
        "GatedPixelCNN MLP MaskedLinear MaskedMLP MissingInput RecurrentPixels ResNet "
        "ResidualMLP RowLSTM TimeEmbedding TimeMLP UNet"
    ),
    "nn.conv": "ConvDecoder ConvEncoder ResidualConv",
    "nn.dcgan": "ConvDiscriminator ConvGenerator halvings",
    "nn.made": "MaskedLinear MaskedMLP",
    "nn.missing": "MissingInput",
    "nn.mlp": "MLP",
    "nn.pixelcnn": "GatedLayer GatedPixelCNN gate",
    "nn.pixelrnn": "ConvolutionalLSTM DiagonalBiLSTM RecurrentPixels RowLSTM Walker scan",
    "nn.residual": "ResidualMLP",
    "nn.time_mlp": "Condition TimeEmbedding TimeMLP",
    "nn.unet": "ResNet ResidualBlock SpatialMixing UNet",
    "pca": "PCA",
    "pixelcnn": "PixelCNN",
    "pixelrnn": "LAYERS PixelRNN",
    "plates": "check_float64 check_rows data_plate",
    "preconditioning": "Coefficients TARGETS precondition",
    "priors": "FlowPrior HasPosterior MixturePrior StandardNormal VampPrior check_prior",
    "regression": "LinearRegression LogisticRegression Scale SoftmaxRegression",
    "rotation": "align varimax varimax_criterion varimax_draws",
    "samplers": "Denoiser Noise ancestral ddim guided heun langevin",
    "schedules": "Cosine Learned Linear LogLinear Schedule alpha_sigma log_snrs step_back",
    "semi_supervised_vae": "SemiSupervisedVAE UNKNOWN WHERE",
    "sklearn": "FactorAnalysis GaussianMixture ProbabilisticPCA",
    "toys": "Toy grid ring",
    "vae": "VAE",
}
GONE = {
    "autoregressive": {
        "evaluating": "ppl_models.scoped.modes, which takes several modules and either mode",
        "check_sizes": "ppl_models.checks.check_count, which takes no name of the model",
    },
    "factor_moments": {
        "check_finite": "ppl_models.checks.check_finite, with its arguments in another order",
    },
}


@pytest.mark.filterwarnings("ignore:.* has moved:FutureWarning")
@pytest.mark.parametrize("module", NAMES)
def test_names_are_where_they_were(module):
    old = import_module(f"ppl_models.{module}")
    for name in NAMES[module].split():
        found = getattr(old, name)
        now = RENAMED.get(f"{module}.{name}", name)
        if module in MOVED and now in ppl_models.__all__:
            assert found is getattr(ppl_models, now)
        if getattr(found, "__module__", "").startswith("ppl_models."):  # unlike that of a number
            assert found is getattr(import_module(found.__module__), now)


@pytest.mark.parametrize("module", GONE)
def test_other_names_are_gone_and_there_is_no_warning(module):
    for name in GONE[module]:
        assert not hasattr(import_module(f"ppl_models.{module}"), name)


@pytest.mark.parametrize("old", MOVED)
def test_the_table_leads_to_modules(old):
    for home in MOVED[old]:
        assert import_module(f"ppl_models.{home}").__file__.endswith(".py")


def test_renamed_names_are_of_modules_that_moved():
    assert {name.rpartition(".")[0] for name in RENAMED} <= set(MOVED)


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        ("from ppl_models.vae import VAE", "ppl_models.vae.VAE", "ppl_models import VAE"),
        (
            "from ppl_models.diffusion import Diffusion",  # a file once, a folder now
            "ppl_models.diffusion.Diffusion",
            "ppl_models import Diffusion",
        ),
        (
            "from ppl_models.plates import check_rows",  # still a file
            "ppl_models.plates.check_rows",
            "ppl_models.checks import check_rows",
        ),
        (
            "from ppl_models.latents import NormalLatents",
            "ppl_models.latents.NormalLatents",
            "ppl_models.priors import StandardNormal",
        ),
        (
            "from ppl_models.engine.objectives import DirectELBO",
            "ppl_models.engine.objectives.DirectELBO",
            "ppl_models.infer.objectives.estimators import DirectELBO",
        ),
        (
            "import ppl_models; ppl_models.engine.fit.fit",
            "ppl_models.engine.fit.fit",
            "ppl_models import fit",
        ),
        (
            "from ppl_models.engine import fit; fit.Run",
            "ppl_models.engine.fit.Run",
            "ppl_models import Run",
        ),
    ],
)
def test_a_warning_names_both_paths_and_the_line(tmp_path, line, old, new):
    user = tmp_path / "user.py"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(f"\n\n{line}\n", user, "exec"), {})
    (said,) = {(str(w.message), w.category, w.filename, w.lineno) for w in caught}
    assert f"{old} has moved" in said[0]
    assert f"Try from {new}." in said[0]
    assert said[1:] == (FutureWarning, str(user), 3)


def test_names_that_never_were_are_errors_as_ever():
    with pytest.raises(ImportError, match=r"cannot import name 'nothing' from 'ppl_models\.vae'"):
        exec("from ppl_models.vae import nothing")
    with pytest.raises(ModuleNotFoundError, match=r"ppl_models\.nothing"):
        import_module("ppl_models.nothing")
    with pytest.raises(AttributeError, match="module 'ppl_models' has no attribute 'nothing'"):
        ppl_models.nothing  # noqa: B018


def test_nothing_is_imported_before_an_old_path_is():
    code = (
        "import sys, ppl_models\n"
        "from ppl_models._moved import MOVED\n"
        "new = {'autoregressive', 'diffusion', 'gan', 'plates'}\n"
        "assert not [m for m in MOVED if m not in new and f'ppl_models.{m}' in sys.modules]\n"
        "assert 'ppl_models.datasets.toys' not in sys.modules\n"
        "import ppl_models.toys\n"
        "assert 'ppl_models.datasets.toys' not in sys.modules\n"
        "ppl_models.toys.ring\n"
        "assert 'ppl_models.datasets.toys' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
