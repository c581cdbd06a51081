"""How the gallery tells the stories of `examples/`: in which order, which of them it runs, how."""

import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("PPL_DATA_ROOT", Path(__file__).parents[2] / "shared" / "data"))

# From counts to networks, as a course goes.
ORDER = [
    *("own_model", "histogram_density", "elbo_identities"),
    *("gaussian_mixture", "bayesian_mixture", "missing_data"),
    *("factor_analysis_grades", "factor_analysis_ard", "generative_discriminative"),
    *("vae", "trust", "eight_schools", "latent_spaces", "inpainting"),
    *("autoregressive", "diffusion", "gan", "compare"),
    *("recommender", "graphs", "city_map", "word_map", "transfer", "adaptation"),
]


def order(name: str) -> int:
    """Where an example stands; one that is not in the list comes last."""
    stem = Path(name).stem
    return ORDER.index(stem) if stem in ORDER else len(ORDER)


def seconds(path: Path) -> float | None:
    """How long an example says that it takes."""
    said = re.search(r"Takes (?:about )?(\d+) (second|minute)", path.read_text())
    return float(said[1]) * (60 if said[2] == "minute" else 1) if said else None


def runs(path: Path) -> bool:
    """Whether the site is built with it: it says that it takes seconds, and has its data."""
    text = path.read_text()
    needs_data = "needs data" in text
    return bool(re.search(r"Takes (about )?\d+ second", text)) and (not needs_data or DATA.exists())


def that_run(examples: Path) -> str:
    """The pattern of the files that are run."""
    names = [re.escape(path.name) for path in sorted(examples.glob("*.py")) if runs(path)]
    return rf"/({'|'.join(names)})$"


def argv(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The arguments of an example: where the data are, if it takes them, and where pictures go."""
    path = Path(script_vars["src_file"])
    arguments = ["--outdir", str(Path(gallery_conf["src_dir"]) / "_build" / "outputs")]
    if DATA.exists() and '"--data-root"' in path.read_text():
        arguments += ["--data-root", str(DATA)]
    return arguments


def seeds(gallery_conf: dict[str, Any], fname: str) -> None:
    """Before each example, as in a process of its own; what warns names no path of this machine."""
    import pyro
    import torch

    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    # The gallery tries shorter paths of each name that an example imports, old ones too.
    warnings.filterwarnings("ignore", r".* has moved, and its old path", FutureWarning)

    # Where torch could use CUDA, and there is no GPU, it says so, with a path of this machine.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
