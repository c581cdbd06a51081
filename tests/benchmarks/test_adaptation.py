"""The benchmark of domain adaptation scores and counts as it says."""

import pytest
import sklearn
import torch

from tests.support.oracles import need_data


@pytest.fixture
def benchmark():
    pytest.importorskip("skada")
    pytest.importorskip("ot")
    from benchmarks.quality import adaptation

    sklearn.set_config(enable_metadata_routing=False)  # which skada switches on for all
    return adaptation


def test_a_task_holds_out_a_tenth_and_follows_its_seed(benchmark):
    root = need_data("Semeion") and need_data("MNIST")
    first, again, other = (benchmark.task("boxed", str(root), 300, seed) for seed in (0, 0, 1))
    assert (len(first.x), len(first.held), len(first.target)) == (270, 30, 1593)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.x, other.x)
    back = benchmark.task("back", str(root), 300, 0)
    assert (len(back.x), len(back.held), len(back.target)) == (1434, 159, 300)
    assert len(back.y[:100].unique()) == 10  # mixed, not by digit
    cropped = benchmark.task("cropped", str(root), 300, 0)
    assert torch.equal(cropped.y, first.y)
    assert cropped.x.mean() < first.x.mean()  # smaller digits
    with pytest.raises(SystemExit, match="expected boxed, back, cropped or tuning, got all"):
        benchmark.task("all", str(root), 300, 0)


def test_losses_and_gains_are_counted(benchmark, capsys):
    y = torch.arange(300) % 3
    x = torch.eye(3)[y].repeat_interleave(4, 1)
    x = (x - torch.bernoulli(torch.full_like(x, 0.1))).abs()
    task = benchmark.Task(x, y, x[:30], x, y)
    none, half = y.where(torch.arange(300) >= 60, 0), y.where(torch.arange(300) >= 240, 0)
    rows = []
    for labels, lost, gained, warned in ((none, 0, 0, 0), (y, 0, 1, 0), (half, 1, 0, 1)):
        before = benchmark.Labels("one", "source only", none, 0.0)
        after = benchmark.Labels("one", "another", labels, 0.0)
        rows.append(benchmark.score(task, before, after))
        assert [rows[-1][key] for key in ("lost", "gained", "warned")] == [lost, gained, warned]
    assert rows[1]["right"] == 1
    benchmark.conclude(rows)
    printed = capsys.readouterr().out
    assert "Of 1 cases that lost against source only 1 were warned of, of which 1" in printed
    assert "Of 1 cases that gained against source only 0 were warned of, of which 0" in printed


def test_label_shift_takes_what_classifiers_of_scikit_learn_say(benchmark):
    held = torch.tensor([[0.9, 0.1], [0.1, 0.9], [1.0, 0.0], [0.0, 1.0]]).numpy()
    found = benchmark.shifted("one", held, held[[0, 0, 0, 1]])
    assert found.labels.tolist() == [0, 0, 0, 1]
    assert "exact" in found.evidence
