"""MovieLens: read from real files and from small ones, and fetched from a local archive."""

import zipfile

import pytest
import torch

from ppl_models.datasets import films as module
from ppl_models.datasets import movielens
from tests.support.oracles import need_data

RATINGS = "userId,movieId,rating,timestamp\n7,1,4.0,9\n7,30,0.5,9\n9,30,5.0,9\n"
MOVIES = (
    "movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n2,Nobody Saw (1999),Drama\n"
    '30,"Tale, A (1994)",(no genres listed)\n'
)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, RATINGS, MOVIES)
    return tmp_path


def write(root, ratings, movies):
    folder = root / "MovieLens"
    folder.mkdir(exist_ok=True)
    (folder / "ratings.csv").write_text(ratings)
    (folder / "movies.csv").write_text(movies)


def test_users_and_films_are_numbered_from_zero_on(root):
    found = movielens(root, download=False)
    assert found.pairs.tolist() == [[0, 0], [0, 1], [1, 1]]
    assert found.ratings.tolist() == [4.0, 0.5, 5.0]
    assert found.titles == ["Toy Story (1995)", "Tale, A (1994)"]  # those that were rated
    assert found.genres == [["Adventure", "Animation"], []]
    assert found.user_ids.tolist() == [7, 9]
    assert found.film_ids.tolist() == [1, 30]


def test_the_real_files():
    found = movielens(need_data("MovieLens/ratings.csv"), download=False)
    assert found.pairs.shape == (100_836, 2)
    assert found.pairs.amax(0).tolist() == [609, 9723]
    assert found.ratings.unique().tolist() == [k / 2 for k in range(1, 11)]
    assert len(found.titles) == len(found.genres) == 9724
    assert len(torch.unique(found.pairs, dim=0)) == 100_836


def archive(path, names):
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in names.items():
            packed.writestr(f"ml-latest-small/{name}", text)
    return path.as_uri()


def test_what_is_missing_is_fetched(tmp_path, monkeypatch):
    names = {"ratings.csv": RATINGS, "movies.csv": MOVIES, "README.txt": "the licence"}
    monkeypatch.setattr(module, "URL", archive(tmp_path / "small.zip", names))
    assert len(movielens(tmp_path).ratings) == 3
    folder = tmp_path / "MovieLens"
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)
    assert (folder / "README.txt").read_text() == "the licence"
    monkeypatch.setattr(module, "URL", "file:///nowhere")  # nothing is missing any more
    assert len(movielens(tmp_path).ratings) == 3


@pytest.mark.parametrize("broken", ["cut", "other", "none"])
def test_a_download_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, broken):
    path = tmp_path / "small.zip"
    url = archive(path, {"other.csv" if broken == "other" else "ratings.csv": RATINGS})
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:80])
    monkeypatch.setattr(module, "URL", "file:///nowhere" if broken == "none" else url)
    with pytest.raises(FileNotFoundError, match=r"the download failed .* Try fetching"):
        movielens(tmp_path)
    assert not list(tmp_path.glob("MovieLens/movies.csv"))


def test_nothing_is_fetched_unasked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected ratings.csv, movies.csv in .*=False"):
        movielens(tmp_path, download=False)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ("", "expected a table of userId, movieId"),
        ("user,item\n1,2\n", "its first line is .'user', 'item'."),
        (RATINGS.replace("0.5", "0.7"), "1 other ratings, such as 0.7"),
        (RATINGS.replace("5.0", "nan"), "1 other ratings, such as nan"),
        (RATINGS.replace("0.5", "two"), "could not convert string to float: 'two'"),
        (RATINGS + "9,1", "row 3 is .'9', '1'."),
        (RATINGS + "9,4,3.0,8\n", "not in it, such as 4"),
    ],
)
def test_foreign_files_are_refused(root, ratings, message):
    write(root, ratings, MOVIES)
    with pytest.raises(ValueError, match=message):
        movielens(root, download=False)
