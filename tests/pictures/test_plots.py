"""What results draw: each number in its place, units on the axes, into axes that are given."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from guides import AmortizedNormal
from ppl_models import VAE, Evidence, Khat, LeftOut, Run, aggregate
from ppl_models.infer.evidence.pareto import threshold
from ppl_models.infer.evidence.streamed.parts import Shapes

STEEP = [500.0 * math.exp(-n) + 30 - n / 100 for n in range(100)]
VALUE = torch.tensor([-3.0, -1.0, -9.0, -2.0, -1.5, -4.0])


def evidence(value=VALUE, kind="lower bound", k=None):
    tails = None if k is None else Shapes(k)
    variance = torch.full((len(value),), 0.04)
    return Evidence(value, kind, max(6, len(value)), 100, None, variance, True, tails)


def khat():
    return Khat(VALUE + 3, 0.5, 100, evidence(), {}, {})


def named(axes):
    """What the legend says of single rows, the worst first."""
    return axes.get_legend().get_title().get_text().splitlines()


def test_losses_are_drawn_against_epochs():
    history = {"critic": [3.0, 2.0, 1.0], "generator": [1.0, 1.5, 2.0], "value": [0.0, 0.5, 0.25]}
    (axes,) = Run(history).plot().axes
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == history
    assert all(list(line.get_xdata()) == [1, 2, 3] for line in axes.lines)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs", "nats per row")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*history]


def test_a_loss_alone_is_named_on_its_axis():
    (axes,) = Run({"loss": [3.0, 2.0]}).plot().axes
    assert axes.get_ylabel() == "loss (nats per row)"
    assert axes.get_legend() is None


def test_validation_is_drawn_otherwise():
    (axes,) = Run({"loss": [3.0, 2.0], "validation": [3.5, 3.0]}).plot().axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]


def test_first_epochs_do_not_hide_the_rest():
    (axes,) = Run({"loss": STEEP}).plot().axes
    low, high = axes.get_ylim()
    assert low < min(STEEP)
    assert STEEP[10] < high < 32  # of the 500 of the first epoch
    assert axes.get_xlim()[0] < 1
    rest, first = axes.lines
    assert [*first.get_ydata(), *rest.get_ydata()[1:]] == STEEP  # none is left out
    assert axes.get_title(loc="right") == "epochs 1 to 10 go up to 530, beyond the scale"


def test_what_is_drawn_later_counts_for_the_scale():
    figure, axes = plt.subplots()
    assert Run({"loss": STEEP}).plot(axes) is figure
    axes.axhline(28.0)
    low, high = axes.get_ylim()
    assert low < 28
    assert high < 32
    plt.close(figure)


@pytest.mark.parametrize(
    "losses", [[9.0 - n / 10 for n in range(50)], [5.0, 4.0, 3.0], [2.0], [500.0, 3.0, 2.0]]
)
def test_other_losses_are_drawn_whole(losses):
    (axes,) = Run({"loss": losses}).plot().axes
    (line,) = axes.lines
    assert list(line.get_ydata()) == losses
    low, high = axes.get_ylim()
    assert low <= min(losses) <= max(losses) <= high


def test_first_epochs_may_be_below():
    (axes,) = Run({"value": [-x for x in STEEP]}).plot().axes
    assert axes.get_title(loc="right") == "epochs 1 to 10 go down to -530, beyond the scale"


def test_a_run_of_no_epoch_is_an_empty_picture():
    (axes,) = Run().plot().axes
    assert not axes.lines


def test_rows_are_sorted_and_the_worst_named():
    (axes,) = evidence().plot().axes
    rows, worst = axes.lines
    assert list(rows.get_ydata()) == sorted(VALUE.tolist())
    assert list(worst.get_ydata()) == [-9.0, -4.0, -3.0]
    assert named(axes) == ["row 2: -9.00", "row 5: -4.00", "row 0: -3.00"]
    assert axes.get_ylabel() == "log evidence (nats)"
    assert axes.get_title() == "-3.417 ± 1.200 nats per row, lower bound"


def test_heavy_tails_are_marked_and_said():
    k = torch.tensor([0.1, 0.2, 0.95, 0.3, 0.8, 0.0])
    (axes,) = evidence(k=k).plot().axes
    (marked,) = (line for line in axes.lines if line.get_label().startswith("k above"))
    assert marked.get_label() == f"k above {threshold(100):.2f}: too few draws"
    assert list(marked.get_ydata()) == [-9.0, -1.5]
    assert named(axes)[0] == "row 2: -9.00, k 0.95"


def test_a_row_without_density_is_named():
    value = VALUE.clone()
    value[3] = -math.inf
    (axes,) = evidence(value).plot().axes
    assert named(axes)[0] == "row 3: -inf"
    assert np.isfinite(axes.get_ylim()).all()


def test_many_rows_are_thinned_and_the_worst_kept():
    value = -torch.arange(20_000.0)
    (axes,) = evidence(value).plot().axes
    assert len(axes.lines[0].get_xdata()) == 5000
    assert named(axes)[0] == "row 19999: -19999.00"


def test_shared_latents_have_one_number():
    (axes,) = evidence(torch.tensor([-12.0])).plot().axes
    assert axes.get_xlabel() == "log evidence of all 6 rows (nats, ± Monte Carlo error)"
    (errors,) = axes.collections
    assert errors.get_segments()[0][:, 0].tolist() == pytest.approx([-12.2, -11.8])
    assert axes.get_title() == "-12.000 nats of all 6 rows (-2.000 per row), lower bound"


def test_rows_left_out_are_called_so():
    found = LeftOut(VALUE, "estimate", 6, 100, None, torch.zeros(6))
    assert str(found).startswith("leave-one-out log density -3.417 ± ")
    assert found.plot().axes[0].get_ylabel() == "leave-one-out log density (nats)"


def test_k_falls_beside_its_threshold():
    (axes,) = khat().plot().axes
    limit, rows, _ = axes.lines
    assert set(limit.get_ydata()) == {0.5}
    assert list(rows.get_ydata()) == sorted((VALUE + 3).tolist(), reverse=True)
    assert named(axes)[0] == "row 1: 2.00"
    assert axes.get_title() == "3 of 6 rows above the threshold, 100 draws each"


@pytest.mark.parametrize("result", [evidence(), khat(), Run({"loss": STEEP})])
def test_axes_that_are_given_are_drawn_into(result):
    figure, axes = plt.subplots()
    assert result.plot(axes) is figure
    assert axes.lines
    plt.close(figure)


@pytest.mark.parametrize("result", [evidence(), khat(), Run({"loss": STEEP})])
def test_the_look_is_that_of_the_project_and_of_nothing_else(result):
    before, drawn = dict(plt.rcParams), result.plot()
    assert dict(plt.rcParams) == before
    assert not plt.get_fignums()
    assert not drawn.axes[0].spines["top"].get_visible()
    assert drawn.get_layout_engine() is not None


def test_a_picture_is_shown_by_notebooks():
    content = evidence().plot()._repr_png_()
    assert content.startswith(b"\x89PNG")


def test_an_aggregate_has_the_look():
    x = torch.rand(20, 4).round()
    figure = aggregate(VAE(4, 2), AmortizedNormal(4, 2), x).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert not figure.axes[0].spines["top"].get_visible()
