"""What the models say, in the words of scikit-learn: hints name arguments that estimators have."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ppl_models.user_line import warn

WORDS = {
    "num_components": "n_components",
    "num_factors": "n_components",
    "max_steps": "max_iter",
    "tolerance": "tol",
    "restarts": "n_init",
    "covariance:": "covariance_type:",
    "min_scale ** 2": "reg_covar",
    "min_scale": "reg_covar",
}
OURS = re.compile("|".join(rf"\b{re.escape(word)}(?!\w)" for word in WORDS))


def in_their_words(text: str) -> str:
    """The same text with the arguments of estimators.

    Example:
        >>> in_their_words("restarts: expected a positive whole number. Try num_factors=2.")
        'n_init: expected a positive whole number. Try n_components=2.'
    """
    return OURS.sub(lambda found: WORDS[found.group()], text)


@contextmanager
def said_in_their_words() -> Iterator[None]:
    """A context whose errors and warnings name the arguments of estimators."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            yield
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            error.args = tuple(
                in_their_words(part) if isinstance(part, str) else part for part in error.args
            )
            raise
    for one in heard:
        warn(in_their_words(str(one.message)), one.category)
