"""What notebooks show of results: whole tables, well formed, escaped, and without colours."""

from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from guides import AmortizedNormal, ExactPosterior
from ppl_models import (
    VAE,
    Check,
    Evidence,
    FactorAnalysis,
    GaussianMixture,
    InferenceGap,
    aggregate,
    compare,
    inference_gap,
    predictive_pvalues,
    warm_start,
)
from ppl_models.infer.diagnostics.doctor.finding import Finding
from ppl_models.prompt.tables import table

VALUE = torch.tensor([-3.0, -1.0, -2.0])


def read(found):
    """The lines of a table, and what stands around it; an error where it is not well formed."""
    shown = found if isinstance(found, str) else found._repr_html_()
    assert "color" not in shown
    assert "background" not in shown
    root = ElementTree.fromstring(f"<div>{shown}</div>")
    (whole,) = root.findall("table")
    lines = [["".join(cell.itertext()) for cell in line] for line in whole.iter("tr")]
    return lines, ["".join(part.itertext()) for part in root.findall("p")]


def test_texts_are_escaped():
    lines, around = read(table(["<a>"], [["x < y & z"]], above="<b>\nc", below="<d>"))
    assert lines == [["<a>"], ["x < y & z"]]
    assert around == ["<b>c", "<d>"]


def test_numbers_are_short_and_to_the_right():
    shown = table(["", ""], [["of 3", 0.123456], ["-3.1 ± 0.2", 7]])
    assert shown.count("text-align: right") == 3
    assert "0.1235" in shown


def test_an_evidence():
    lines, _ = read(Evidence(VALUE, "lower bound", 3, 100, 4, torch.full((3,), 0.09)))
    assert dict(lines[1:]) == {
        "log evidence": "-2.000 ± 0.577 nats per row",
        "kind": "lower bound",
        "rows": "3",
        "draws": "100",
        "Monte Carlo error": "0.173 nats per row, unreliable: as good as 10.1 draws",
        "bits/dim": "0.7213",
    }
    exact, _ = read(Evidence(VALUE, "exact", 3, 0, None, torch.zeros(3)))
    assert [line[0] for line in exact[1:]] == ["log evidence", "kind", "rows"]


def test_a_check():
    found = Check((Finding("x < 0", "z", "model.py:3", "1 or more", "0", "x + 1"), Finding("odd")))
    lines, (above,) = read(found)
    assert lines[0] == ["what", "site", "line", "expected", "got", "try"]
    assert lines[1] == ["x < 0", "z", "model.py:3", "1 or more", "0", "x + 1"]
    assert lines[2] == ["odd", "", "", "", "", ""]
    assert above == "2 things are wrong"
    assert Check()._repr_html_() == "nothing wrong was found"


def test_an_inference_gap():
    torch.manual_seed(0)
    x, guide = torch.rand(8, 4).round(), AmortizedNormal(4, 2)
    found = inference_gap(VAE(4, 2), guide, x, num_samples=5, steps=2, seed=0)
    lines, (below,) = read(found)
    assert [line[0] for line in lines] == ["", "gap", "approximation", "amortisation"]
    assert float(lines[1][1]) == pytest.approx(found.total.mean().item(), abs=1e-3)
    assert below == str(found)
    whole, _ = read(InferenceGap(found.evidence, found.elbo, None, 8, 5))
    assert len(whole) == 2


def test_predictive_pvalues():
    torch.manual_seed(0)
    model, x = FactorAnalysis(4, 2), torch.randn(20, 4)
    x[7] = 40.0
    found = predictive_pvalues(model, ExactPosterior(model), x, num_simulations=500, seed=0)
    lines, (above,) = read(found)
    assert lines[0] == ["row", "p-value", "log evidence (nats)", "unlike"]
    assert len(lines) == 11
    assert lines[1][0] == "7"
    assert [line[3] for line in lines[1:]].count("yes") == len(found.unlike) >= 1
    assert above == str(found)


def test_a_comparison():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(30, 2), torch.randn(30, 2) + 9])
    models = {"<1>": GaussianMixture(2, 1), "two": GaussianMixture(2, 2)}
    found = compare(models, x, folds=3, progress=False)
    lines, (below,) = read(found)
    assert [line[0] for line in lines] == ["candidate", "<1>", "two"]
    assert lines[2][1:4] == ["11", f"{found.evidence[1]:.3f}", f"{found.bic[1]:.1f}"]
    assert "Best: two by held-out evidence" in below


def test_a_comparison_of_evidences():
    kinds = {"<a>": Evidence(VALUE, "exact", 3, 0, None, torch.zeros(3))}
    kinds["b"] = Evidence(VALUE - 1, "exact", 3, 0, None, torch.zeros(3))
    lines, (below,) = read(compare(kinds))
    assert [line[0] for line in lines] == ["candidate", "<a>", "b"]
    assert "Highest: <a>, proven on these rows." in below


def test_an_aggregate():
    torch.manual_seed(0)
    found = aggregate(VAE(4, 3), AmortizedNormal(4, 3), torch.rand(20, 4).round(), seed=0)
    lines, (above,) = read(found)
    assert sorted(line[0] for line in lines[1:]) == ["0", "1", "2"]
    assert above == repr(found)
    for _, kl, activity, mean, variance in lines[1:]:
        (line,) = (s for s in str(found).splitlines() if f"{activity}" in s)
        assert all(text in line for text in (kl, mean, variance))


def test_a_warm_start():
    found = warm_start(nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))[0])
    lines, (above,) = read(found)
    assert lines[1:] == [["weight", "(3, 2)", "taken"], ["bias", "(3,)", "taken"]]
    assert above == "2 of 2 tensors taken"
    assert str(found).splitlines()[0] == above
