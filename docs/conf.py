"""How the site is built: `make docs`. Nothing is read from other hosts."""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # stories.py
sys.path.insert(0, str(DOCS.parent))  # the library of this checkout
os.environ["PYTHONPATH"] = str(DOCS.parent)  # for what examples start

# After the path that they are found by.
import stories  # noqa: E402

import ppl_models  # noqa: E402

project = "ppl_models"
author = "The ppl_models maintainers"
copyright = author
version = release = ppl_models.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "_templates",
    "sg_execution_times.rst",
    "**/sg_execution_times.rst",
    "gallery/*.py",
    "gallery/*.ipynb",
    "**/README.*",
]
templates_path = ["_templates"]
default_role = "py:obj"  # `fit` in a docstring is a link, `x=None` code

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# A page for each public name; its members are those of its own class and of the library's bases.
autosummary_generate = True
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {
    "members": True,
    # Not those of torch, Pyro and scikit-learn, which have pages of their own.
    "inherited-members": "Module,Dataset,Distribution,TorchDistributionMixin,BaseEstimator,"
    "TransformerMixin,DensityMixin,ClusterMixin,_SetOutputMixin,_MetadataRequester,"
    "ClassNamePrefixFeaturesOutMixin,tuple,dict,list,RuntimeError",
    "exclude-members": "training,set_output,get_metadata_routing,set_fit_request,"
    "set_score_request,set_transform_request,set_inverse_transform_request,set_predict_request",
}
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
viewcode_line_numbers = True

html_context = {"default_mode": "auto"}
html_theme = "pydata_sphinx_theme"
html_title = "ppl_models"
html_favicon = "_static/icon.svg"
# MathJax from its package, not from another host.
(mathjax,) = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations
html_static_path = ["_static", f"{mathjax}/static"]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {"changelog": [], "index": []}
html_theme_options = {
    "show_prev_next": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": stories.that_run(DOCS.parent / "examples"),
    "within_subsection_order": "stories.order",
    "reset_argv": "stories.argv",
    "reset_modules": ("matplotlib", "stories.seeds"),
    "image_scrapers": ("matplotlib",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "first_notebook_cell": "import sys\n\nsys.argv = sys.argv[:1]  # of the notebook, not its own",
    "doc_module": ("ppl_models", "guides"),
    "backreferences_dir": "api/examples",
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,  # its table is drawn by code from another host
    "show_signature": False,
    "plot_gallery": not tags.has("quick"),  # noqa: F821, Sphinx knows it: make docs QUICK=1
    "parallel": True,
    "junit": "../gallery-times.xml",
}
suppress_warnings = ["config.cache"]
# Of a worker that has grown, and goes on as a new one.
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)


def setup(app):
    # Fields of named tuples are told of in the docstring of their class.
    app.connect(
        "autodoc-skip-member",
        lambda app, what, name, obj, skip, options: type(obj).__name__ == "_tuplegetter" or None,
    )
