"""Ratings of films by users of MovieLens: the small set of 2018, real and sparse.

Its licence allows research, and no commercial use: see `README.txt` beside the files.

References:
    | The MovieLens Datasets: History and Context (Harper & Konstan, 2015)
    | https://doi.org/10.1145/2827872
"""

import csv
import io
import os
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.datasets.images import Folder
from ppl_models.prompt.lines import in_a_line

URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
FILES = ("ratings.csv", "movies.csv", "README.txt")
TIMEOUT = 30.0  # seconds to wait for a server that does not answer


class MovieLens(NamedTuple):
    """Ratings, and what was rated.

    Example:
        >>> pairs, ratings, users = torch.tensor([[0, 0]]), torch.tensor([5.0]), torch.tensor([7])
        >>> films = torch.tensor([608])
        >>> data = MovieLens(pairs, ratings, ["Fargo (1996)"], [["Crime"]], users, films)
        >>> data.titles[data.pairs[0, 1]], data.ratings[0]
        ('Fargo (1996)', tensor(5.))
    """

    pairs: Tensor  # users and films, numbered from 0 on, (N, 2)
    ratings: Tensor  # 0.5 to 5 stars in halves, (N,)
    titles: list[str]  # of the films that were rated
    genres: list[list[str]]
    user_ids: Tensor  # as in the files, (U,)
    film_ids: Tensor  # (I,)

    def __repr__(self) -> str:
        return in_a_line(self)


def movielens(root: Folder, *, download: bool = True) -> MovieLens:
    """Returns ml-latest-small: 100,836 ratings by 610 users of 9,724 films, in half stars.

    Arguments:
        root: A folder with `MovieLens/ratings.csv` and `MovieLens/movies.csv`. It is written to
            only where one is missing.
        download: Whether to download what is missing, from grouplens.org.

    Raises:
        ValueError: If a file is truncated, or a foreign one.
        FileNotFoundError: If files are missing and could not be downloaded.

    Example:
        >>> pairs, ratings, titles, *_ = movielens("data")  # doctest: +SKIP
        >>> titles[0]  # doctest: +SKIP
        'Toy Story (1995)'
    """
    folder = Path(root).expanduser() / "MovieLens"
    _require(folder, download)
    ids, stars = _read_ratings(folder / "ratings.csv")
    films = _read_films(folder / "movies.csv")
    user_ids, users = ids[:, 0].unique(return_inverse=True)
    film_ids, items = ids[:, 1].unique(return_inverse=True)
    if unknown := [i for i in film_ids.tolist() if i not in films]:
        raise ValueError(
            f"{folder / 'movies.csv'}: expected all films that were rated, but {len(unknown)} are "
            f"not in it, such as {unknown[0]}. Try fetching both files again."
        )
    titles, genres = zip(*(films[i] for i in film_ids.tolist()), strict=True)
    pairs = torch.stack([users, items], 1)
    return MovieLens(pairs, stars, list(titles), list(genres), user_ids, film_ids)


def _read_ratings(path: Path) -> tuple[Tensor, Tensor]:
    """The ids of users and films, (N, 2), and the stars, (N,)."""
    rows = _read(path, ["userId", "movieId", "rating", "timestamp"])
    try:
        ids = torch.tensor([(int(user), int(film)) for user, film, *_ in rows])
        stars = torch.tensor([float(row[2]) for row in rows])
    except ValueError as error:
        raise ValueError(
            f"{path}: expected numbers, but {error}. Try fetching it again."
        ) from error
    off = (stars * 2 != (stars * 2).round()) | (stars < 0.5) | (stars > 5)
    if off.any():
        raise ValueError(
            f"{path}: expected half stars from 0.5 to 5, got {int(off.sum())} other ratings, such "
            f"as {stars[off][0].item():g}. Try fetching it again."
        )
    return ids, stars


def _read_films(path: Path) -> dict[int, tuple[str, list[str]]]:
    """The title and the genres of each film."""
    return {
        int(film): (title, [] if genres.startswith("(") else genres.split("|"))
        for film, title, genres in _read(path, ["movieId", "title", "genres"])
    }


def _read(path: Path, header: list[str]) -> list[list[str]]:
    """The rows of a table with this header."""
    text = path.read_text(encoding="utf-8", errors="strict")
    table = list(csv.reader(io.StringIO(text)))
    first, rows = (table[0], table[1:]) if table else ([], [])
    short = next((n for n, row in enumerate(rows) if len(row) != len(header)), None)
    if first != header or not rows or short is not None:
        found = f"its first line is {first}" if first != header else f"it has {len(rows)} rows"
        found = found if short is None or first != header else f"row {short} is {rows[short]}"
        raise ValueError(
            f"{path}: expected a table of {', '.join(header)}, but {found}. Try deleting it and "
            f"fetching it again."
        )
    return rows


def _require(folder: Path, download: bool) -> None:
    """Downloads the files if one is missing, or says where to put them."""
    failure: Exception | None = None
    missing = [file for file in FILES[:2] if not (folder / file).is_file()]
    if missing and download:
        try:
            _download(folder, missing)
        except (OSError, HTTPException, KeyError, zipfile.BadZipFile) as error:
            failure = error
        missing = [file for file in missing if not (folder / file).is_file()]
    if missing:
        why = f"the download failed ({failure})" if download else "download=False"
        raise FileNotFoundError(
            f"movielens: expected {', '.join(missing)} in {folder}, found none of them, and {why}. "
            f"Try fetching {URL}, and putting its files into that folder."
        ) from failure


def _download(folder: Path, files: list[str]) -> None:
    """Downloads what is missing, each file whole or not at all."""
    with urllib.request.urlopen(URL, timeout=TIMEOUT) as answer:
        packed = zipfile.ZipFile(io.BytesIO(answer.read()))
    folder.mkdir(parents=True, exist_ok=True)
    readme = [FILES[2]] if not (folder / FILES[2]).exists() else []
    for file in [*files, *readme]:
        content = packed.read(f"ml-latest-small/{file}")  # with its checksum
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
            part.write(content)
        os.replace(part.name, folder / file)
