"""The example of words runs on a part of the text, and says what kind its number is."""

import pytest

from tests.support.examples import check_pictures, numbers, run
from tests.support.oracles import need_data


@pytest.mark.filterwarnings("ignore:.*KMeans.*:UserWarning")
def test_word_map(tmp_path, capsys):
    root = need_data("TinyShakespeare").resolve()
    size = ["--rows", 240, "--test-rows", 10, "--epochs", 1, "--words", 80]
    run("word_map", "--data-root", root, "--outdir", tmp_path, *size)
    printed = capsys.readouterr().out
    assert "228233 words to learn from, 25360 to test, 3099 known" in printed
    assert "pseudo-likelihood (of each feature given all others: no density of rows)" in printed
    (perplexity,) = numbers(r"perplexity of a hidden word: (\S+)", printed)
    assert 50 < perplexity < 1500
    assert printed.count("near '") == 5
    check_pictures(tmp_path, count=2)
