"""Rotations of loadings: closed forms and exhaustive search first, then scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import FactorAnalysis
from torch import Tensor

from ppl_models.factors.rotation import align, varimax, varimax_criterion, varimax_draws

EYE = torch.eye(3, dtype=torch.float64)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rotations(count: int, size: int) -> Tensor:
    """Random orthogonal matrices, reflections among them."""
    turns = torch.linalg.qr(draw(count, size, size)).Q
    return torch.cat([turns[..., :1] * draw(count, 1, 1).sign(), turns[..., 1:]], -1)


def simple(sizes: tuple[int, ...] = (5, 4, 3)) -> Tensor:
    """Each feature on one factor, by convention: most variance first, means positive."""
    blocks = [torch.linspace(0.9, 0.5, n, dtype=torch.float64)[:, None] for n in sizes]
    return torch.block_diag(*blocks)


def test_the_criterion_by_hand():
    loadings = torch.tensor([[1.0, 0.0], [2.0, 1.0]])  # squares 1, 4 and 0, 1
    torch.testing.assert_close(varimax_criterion(loadings), torch.tensor(2.25 + 0.25))


@pytest.mark.parametrize("shape", [(6, 1), (8, 2), (12, 3), (20, 6)])
def test_varimax_is_a_rotation_that_no_random_one_beats(shape):
    loadings = draw(*shape)
    rotated, rotation = varimax(loadings)
    identity = torch.eye(shape[1], dtype=torch.float64)
    torch.testing.assert_close(rotation.T @ rotation, identity)
    torch.testing.assert_close(rotated, loadings @ rotation)
    others = varimax_criterion(loadings @ rotations(3000, shape[1]))
    # One factor only changes its sign: then all are equal, up to the rounding of numbers about 1.
    least = max(others.max(), varimax_criterion(loadings)) - 1e-12
    assert varimax_criterion(rotated) >= least


def test_two_factors_by_every_angle():
    loadings = draw(9, 2)
    angle = torch.linspace(0, torch.pi / 2, 20_001, dtype=torch.float64)
    plane = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
    best = varimax_criterion(loadings @ plane.unflatten(-1, (2, 2))).max()
    found = varimax_criterion(varimax(loadings)[0])
    assert found >= best
    assert found == pytest.approx(best.item(), rel=1e-7)


def test_the_gradient_along_every_rotation_is_zero():
    rotated, _ = varimax(draw(15, 4))
    slope = rotated.T @ (rotated**3 - rotated * (rotated**2).mean(0))
    torch.testing.assert_close(slope, slope.T, atol=1e-8, rtol=0)


@pytest.mark.parametrize("sizes", [(5, 4, 3), (7, 2), (6, 5, 4, 3, 2)])
def test_a_simple_structure_is_found_again(sizes):
    truth = simple(sizes)
    for rotation in rotations(5, len(sizes)):
        torch.testing.assert_close(varimax(truth @ rotation)[0], truth, atol=1e-7, rtol=0)


def test_the_rotation_one_starts_from_does_not_matter():
    """Also without a simple structure, where the criterion has local maxima."""
    for seed in range(5):
        torch.manual_seed(seed)
        loadings = draw(20, 5)
        ours = varimax(loadings)[0]
        for rotation in rotations(3, 5):
            torch.testing.assert_close(varimax(loadings @ rotation)[0], ours, atol=1e-6, rtol=0)


def test_a_local_maximum_is_left():
    """From these loadings as they are, turning pairs of factors ends at 11.7288."""
    torch.manual_seed(58)
    rotated, _ = varimax(draw(20, 5))
    assert varimax_criterion(rotated).item() == pytest.approx(11.735168, abs=1e-6)


def test_conventions():
    rotated, rotation = varimax(-simple()[:, [2, 0, 1]])
    assert (rotated.mean(0) > 0).all()
    assert ((rotated**2).sum(0).diff() < 0).all()
    torch.testing.assert_close(rotation.abs(), EYE[[2, 0, 1]])
    assert varimax(torch.zeros(4, 2))[0].abs().max() == 0  # and no division by zero
    assert varimax(draw(5, 2).float())[0].dtype == torch.float32


def test_varimax_draws_from_a_generator_of_its_own():
    before = torch.get_rng_state()
    varimax(simple())
    assert torch.equal(before, torch.get_rng_state())


def test_varimax_is_that_of_scikit_learn():
    torch.manual_seed(3)
    x = (draw(500, 3) @ simple().T + 0.5 * draw(500, 12)).numpy()
    plain = FactorAnalysis(3, svd_method="lapack").fit(x).components_.T
    theirs = FactorAnalysis(3, svd_method="lapack", rotation="varimax").fit(x).components_.T
    ours = varimax(torch.from_numpy(plain.copy()))[0]
    sign = np.sign(theirs.mean(0))
    order = np.argsort(-(theirs**2).sum(0))
    np.testing.assert_allclose(ours, (theirs * sign)[:, order], atol=1e-3)  # their tolerance
    assert varimax_criterion(ours) >= varimax_criterion(torch.from_numpy(theirs.copy()))


def test_alignment_takes_rotations_and_reflections_away():
    reference = draw(10, 3)
    turns = rotations(50, 3)
    assert (torch.linalg.det(turns) < 0).any()
    aligned, rotation = align(reference @ turns, reference)
    torch.testing.assert_close(aligned, reference.expand(50, 10, 3))
    torch.testing.assert_close(rotation, turns.mT)


def test_alignment_is_that_of_scipy():
    loadings, reference = draw(10, 4), draw(10, 4)
    expected, _ = orthogonal_procrustes(loadings.numpy(), reference.numpy())
    np.testing.assert_allclose(align(loadings, reference)[1], expected, atol=1e-12)


def test_alignment_with_fewer_factors_is_the_best_of_all_rotations():
    loadings, reference = draw(10, 4), draw(10, 2)
    aligned, rotation = align(loadings, reference)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(aligned, loadings @ rotation)
    padded = torch.cat([reference, torch.zeros_like(reference)], 1)
    # The rest of a square rotation is any basis of what is left.
    square = torch.linalg.svd(rotation).U
    square = torch.cat([rotation, square[:, 2:]], 1)
    distances = (loadings @ rotations(3000, 4) - padded).square().sum((1, 2))
    assert (loadings @ square - padded).square().sum() <= distances.min()


def test_aligned_draws_do_not_depend_on_how_each_is_rotated():
    draws = simple() + 0.05 * draw(200, 12, 3)
    extra = torch.cat([draws, 0.05 * draw(200, 12, 2)], -1)  # two factors of chance
    once = varimax_draws(extra, 3)[0]
    again = varimax_draws(extra @ rotations(200, 5), 3)[0]
    torch.testing.assert_close(once, again)
    torch.testing.assert_close(once.mean(0), simple(), atol=0.03, rtol=0)
    assert once.std(0).max() < 0.08
    assert varimax_draws(extra.unflatten(0, (2, 100)), 3)[0].shape == (2, 100, 12, 3)
    assert varimax_draws(extra[0], 2)[0].shape == (12, 2)


def test_latents_turn_with_the_loadings():
    loadings, z = draw(10, 3), draw(7, 3)
    rotated, rotation = varimax(loadings)
    torch.testing.assert_close((z @ rotation) @ rotated.T, z @ loadings.T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: varimax(torch.randn(4)), r"shape \(D, K\)"),
        (lambda: varimax(torch.randn(2, 4, 3)), "varimax_draws for many"),
        (lambda: varimax(torch.full((4, 2), torch.nan)), "8 numbers not finite"),
        (lambda: varimax(torch.zeros(4, 0)), "finite loadings"),
        (lambda: align(torch.randn(5), torch.randn(5, 1)), r"shape \(\*, D, K\)"),
        (lambda: align(torch.randn(9, 5, 2), torch.randn(4, 2)), "reference of 5 features"),
        (lambda: align(torch.randn(9, 5, 2), torch.randn(5, 3)), "at most 2 factors"),
        (lambda: align(torch.randn(5, 2), torch.full((5, 2), torch.inf)), "not finite"),
        (lambda: varimax_draws(torch.randn(9, 5, 2), 3), "from 1 to 2 factors"),
        (lambda: varimax_draws(torch.randn(9, 5, 2), 0), "num_factors=0"),
        (lambda: varimax_draws(torch.full((9, 5, 2), torch.nan), 1), "not finite"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
