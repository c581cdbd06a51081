"""The example of words runs on a part of the text, and says what kind its number is."""

import pytest

from ppl_models import log_evidence
from tests.support.examples import check_pictures, load, numbers
from tests.support.oracles import need_data


@pytest.mark.filterwarnings("ignore:.*KMeans.*:UserWarning")
def test_word_map(tmp_path, capsys, monkeypatch):
    root = str(need_data("TinyShakespeare").resolve())
    size = ["--rows", "240", "--epochs", "1", "--words", "40"]
    example = load("word_map")
    few = lambda model, guide, x, **options: log_evidence(model, guide, x[::40], **options)  # noqa: E731
    monkeypatch.setattr(example, "log_evidence", few)
    example.main(["--data-root", root, "--outdir", str(tmp_path), *size])
    printed = capsys.readouterr().out
    assert "228233 words to learn from, 25360 to test, 3099 known" in printed
    assert "pseudo-likelihood (of each feature given all others: no density of rows)" in printed
    (perplexity,) = numbers(r"perplexity of a hidden word: (\S+)", printed)
    assert 50 < perplexity < 1500
    assert printed.count("near '") == 5
    check_pictures(printed, tmp_path, count=2)
