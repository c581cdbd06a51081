"""Rows become images: dark on light, each in its place."""

import matplotlib.pyplot as plt
import pytest
import torch

from ppl_models.pictures import images


def drawn(figure):
    (picture,) = figure.axes[0].images
    return torch.as_tensor(picture.get_array())


def test_each_row_is_where_it_belongs():
    rows = torch.rand(5, 4)
    found = drawn(images(rows, columns=3))
    assert found.shape == (5, 8)  # two lines of three images of 2 x 2, and gaps of a pixel
    for n, row in enumerate(rows):
        top, left = n // 3 * 3, n % 3 * 3
        torch.testing.assert_close(found[top : top + 2, left : left + 2], row.reshape(2, 2))
    assert found[2].eq(0).all()  # the gap
    assert found[:, 2].eq(0).all()
    assert found[3:, 6:].eq(0).all()  # there is no sixth


def test_ink_is_dark_on_light():
    figure = images(torch.tensor([[0.0, 1.0, 0.5, 2.0]]))
    (picture,) = figure.axes[0].images
    white, black, grey, clipped = picture.to_rgba(picture.get_array())[..., 0].flat
    assert white == 1
    assert black == clipped == 0
    assert 0.4 < grey < 0.6


def test_images_that_are_not_square_say_their_shape():
    assert drawn(images(torch.rand(2, 3, 5))).shape == (3, 11)


@pytest.mark.parametrize("shape", [(2, 6), (4,), (0, 4), (1, 2, 2, 2)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"rows: expected images.*got \(.*Try rows\.reshape"):
        images(torch.rand(shape))


def test_axes_that_are_given_are_drawn_into():
    figure, axes = plt.subplots()
    assert images(torch.rand(2, 4), axes, title="two") is figure
    assert axes.get_title() == "two"
    plt.close(figure)


def test_a_figure_of_its_own_is_not_held_by_pyplot():
    images(torch.rand(2, 4))
    assert not plt.get_fignums()


def test_the_look_is_found_by_its_name_and_changes_nothing_outside():
    before = plt.rcParams["image.cmap"]
    with plt.style.context("ppl_models.look"):
        assert plt.rcParams["image.cmap"] == "gray_r"
        assert len(plt.rcParams["axes.prop_cycle"]) == 8
    assert plt.rcParams["image.cmap"] == before
