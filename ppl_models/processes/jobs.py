"""Work that is parallel by nature: one piece after the other here, or as joblib's context says.

.. code-block:: python

    with joblib.parallel_config(backend="loky", n_jobs=2):  # or "dask", "ray", as they document it
        compare(candidates, x)

Each piece is computed with as many threads as there are here, and from a seed of its own, so that
it comes to the same bits wherever it is. Threads of one process cannot be what runs side by side:
Pyro's handlers, its parameters and the generators of random numbers are those of a whole process.
Nor can its forks: torch's threads do not survive one, and the first sum would wait for ever.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pickle import PicklingError
from typing import Any, NamedTuple

import torch

from ppl_models.processes.group import together
from ppl_models.user_line import warn

ONE_AT_A_TIME = threading.Lock()  # in a process, such as one of Dask's that has several threads


def jobs_at_once(where: str, num_jobs: int | None = None, otherwise: int = 1) -> int:
    """How many pieces of work are done side by side.

    Under `torchrun` it is one at a time, on which all processes work together.

    Arguments:
        where: Who asks, the first word of an error.
        num_jobs: How many are wanted; None for what joblib's context says.
        otherwise: How many there are without a context.

    Raises:
        ValueError: If the context has threads do it, or forks.

    Example:
        >>> import joblib
        >>> with joblib.parallel_config(n_jobs=2):
        ...     jobs_at_once("compare")
        2
    """
    # Nobody has entered a context of a module that was not imported.
    if (
        num_jobs is None and otherwise == 1 and "joblib" not in sys.modules
    ) or not together().alone:
        return 1
    from joblib import effective_n_jobs
    from joblib.parallel import BACKENDS, get_active_backend

    backend, of_context = get_active_backend()
    if getattr(backend, "nesting_level", 0):  # this is such a piece of work itself
        return 1
    jobs = of_context if num_jobs is None else num_jobs
    if jobs is None:
        jobs = otherwise if backend.default_n_jobs == 1 else backend.default_n_jobs
    jobs = effective_n_jobs(jobs)
    shares = getattr(backend, "uses_threads", False)
    if jobs > 1 and (shares or type(backend) is BACKENDS.get("multiprocessing")):
        which = (
            "threads, which share Pyro's handlers" if shares else "forks, without torch's threads"
        )
        raise ValueError(
            f"{where}: expected joblib to have work done by processes of their own, got "
            f"{type(backend).__name__}: {which}. "
            f"Try joblib.parallel_config(backend='loky', n_jobs={jobs})."
        )
    return jobs


def side_by_side(
    work: Callable[..., Any],
    pieces: Sequence[tuple[Any, ...]],
    where: str,
    *,
    names: Sequence[str] = (),
    num_jobs: int | None = None,
    otherwise: int = 1,
) -> Iterator[Any]:
    """Yields what a function returns for each piece, in their order.

    Here it changes what it is given; in another process a copy. What it warns of there is warned
    of here.

    Arguments:
        work: The function.
        pieces: Its arguments, each time.
        where: Who asks, the first word of an error.
        names: What to call pieces in an error.
        num_jobs: As in `jobs_at_once`.
        otherwise: As in `jobs_at_once`.

    Raises:
        TypeError: If a piece cannot be sent to another process.

    Example:
        >>> list(side_by_side(pow, [(2, 3), (3, 2)], "example"))
        [8, 9]
    """
    jobs = min(jobs_at_once(where, num_jobs, otherwise), len(pieces))
    if jobs <= 1:
        yield from (work(*piece) for piece in pieces)
        return
    settings = Settings.of_here()
    results = _results(jobs, [(work, piece, settings) for piece in pieces])
    try:
        for result, warned in results:
            for message, category in warned:
                warn(message, category)
            yield result
    except PicklingError as error:
        raise TypeError(
            f"{where}: expected what can be sent to another process, got "
            f"{_unsendable(pieces, names)} ({error.__cause__ or error}). Try classes and functions "
            f"of a module of their own, or without joblib.parallel_config."
        ) from None
    finally:
        with warnings.catch_warnings():  # that who asked has had enough is no news
            warnings.simplefilter("ignore")
            results.close()


def _results(jobs: int, calls: list[tuple[Any, ...]]) -> Generator[Any, None, None]:
    from joblib import Parallel, delayed
    from joblib.parallel import get_active_backend

    streams = getattr(get_active_backend()[0], "supports_return_generator", False)
    parallel = Parallel(n_jobs=jobs, return_as="generator" if streams else "list")
    yield from parallel(delayed(_apart)(*call) for call in calls)


def _unsendable(pieces: Sequence[tuple[Any, ...]], names: Sequence[str]) -> str:
    """The first piece of work that cannot be sent, and what of it, in words."""
    try:
        import cloudpickle
    except ImportError:  # joblib before 1.6 brings its own
        from joblib.externals import cloudpickle

    for number, piece in enumerate(pieces):
        for part in piece:
            try:
                cloudpickle.dumps(part)
            except Exception:
                name = names[number] if names else f"piece {number + 1} of {len(pieces)}"
                return f"{type(part).__name__} of {name}"
    return "something else"


@cache
def _libraries() -> Any:
    """Those of linear algebra that NumPy and SciPy brought along; found once, in 5 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


class Settings(NamedTuple):
    """What numbers depend on beside seeds, as far as it is the same for a whole process."""

    threads: int
    blas: int  # threads of NumPy's linear algebra
    dtype: torch.dtype
    precision: str

    @classmethod
    def of_here(cls) -> "Settings":
        blas = [found["num_threads"] for found in _libraries().info()]
        return cls(
            torch.get_num_threads(),
            max(blas, default=1),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
        )

    def set(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.precision)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A context with these, after which all is as before."""
        before = Settings.of_here()
        try:
            self.set()
            with _libraries().limit(limits=self.blas):
                yield
        finally:
            before.set()


def _apart(
    work: Callable[..., Any], piece: tuple[Any, ...], settings: Settings
) -> tuple[Any, list[tuple[str, type[Warning]]]]:
    """What a function returns in another process, and what it warned of."""
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(settings.kept())
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        result = work(*piece)
    return result, [(str(warning.message), warning.category) for warning in caught]
