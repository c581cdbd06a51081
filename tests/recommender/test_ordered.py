"""Matrix factorisation of ordered levels and of counts: what normal ratings have not."""

import pytest
import torch
from pyro import poutine

from guides import FactorisationNormal
from ppl_models import elbo, fit, fit_em, log_evidence, log_predictive, predict
from ppl_models.likelihoods import Normal, Ordered, Poisson
from tests.support.ratings import model, ratings

pytestmark = pytest.mark.filterwarnings("ignore:fit_em. still rising")
LEVELS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()
OWN = pytest.mark.parametrize("own", [False, True])


def stars(**sizes: int):
    x, y = ratings(**sizes)
    return x, y.round().clamp(1, 5)


def made(own=False, link="logit", **sizes: int):
    return model(Ordered(LEVELS, link, own), **sizes)


@OWN
def test_the_program_is_what_is_written(own):
    """Score and cutpoints of each rating, from the vectors of its user and its item."""
    x, y = stars()
    program = made(own)
    trace = poutine.trace(program).get_trace(x, y)
    trace.compute_log_prob()
    users, items = (trace.nodes[name]["value"] for name in ("users", "items"))
    gaps, first = program.likelihood.log_gaps, program.likelihood.first
    for n, (user, item) in enumerate(x[:20].tolist()):
        w, v = users[user], items[item]
        score = 3.0 + w[0] + v[0] + w[1] * v[1] + w[2] * v[2]
        cuts = first + torch.cat(
            [first.new_zeros(1), (gaps + (w[3:] if own else 0)).exp().cumsum(0)]
        )
        below = torch.cat([cuts.new_zeros(1), (cuts - score).sigmoid(), cuts.new_ones(1)])
        level = int(y[n]) - 1
        expected = (below[level + 1] - below[level]).log()
        torch.testing.assert_close(trace.nodes["y"]["log_prob"][n], expected)


@OWN
@pytest.mark.parametrize("link", ["logit", "probit"])
def test_it_starts_from_numbers_with_normal_noise(own, link):
    """Before any step of its own it predicts about what normal ratings do."""
    x, y = stars(num_users=60, num_items=40)
    sizes = {"num_users": 60, "num_items": 40}
    torch.manual_seed(0)
    guide = FactorisationNormal(made(own, link, **sizes))
    guide.initialise(x, y)
    normal = FactorisationNormal(model(**sizes))
    fit_em(normal, (x, y), max_steps=21, tolerance=0.0, seed=0, progress=False)
    found = [
        guide_.model.conditional(x, guide_.users.loc, guide_.items.loc).mean.detach()
        for guide_ in (guide, normal)
    ]
    assert torch.corrcoef(torch.stack(found))[0, 1] > 0.9
    cold = FactorisationNormal(made(own, link, **sizes))
    losses = [elbo(each.model, each).loss(x, y).item() for each in (guide, cold)]
    assert losses[0] < losses[1] - 0.1


def test_cutpoints_of_a_user_who_gives_whole_stars_only_are_found():
    generator = torch.Generator().manual_seed(0)
    x = torch.cartesian_prod(torch.arange(30), torch.arange(25))
    score = 3 + 1.2 * torch.randn(len(x), generator=generator)
    y = (2 * score).round() / 2
    whole = x[:, 0] < 15
    y = torch.where(whole, score.round(), y).clamp(1, 5)
    levels = torch.arange(2, 11) / 2
    found = {}
    for own in (False, True):
        torch.manual_seed(0)
        program = model(Ordered(levels, own_cutpoints=own), 1, num_users=30, num_items=25).float()
        guide = FactorisationNormal(program, "diag")
        guide.initialise(x, y)
        fit(elbo(program, guide), (x, y), steps=200, lr=0.05, seed=0, progress=False)
        pairs = torch.tensor([[0, 0], [20, 0]])
        laws = program.conditional(pairs, guide.users.loc, guide.items.loc)
        found[own] = laws.logits.exp()[:, 1::2].sum(1).detach()  # of half stars
    assert found[True][0] < 0.5 * found[True][1]
    assert (found[False] - found[False].mean()).abs().max() < 0.1


def test_held_out_ratings_and_predictions():
    x, y = stars()
    guide = FactorisationNormal(made())
    guide.initialise(x, y)
    held_out = log_predictive(guide.model, guide, x[:9], y[:9], num_samples=50, seed=0)
    assert held_out.value.shape == (9,)
    assert (held_out.value < 0).all()  # probabilities, not densities
    drawn = predict(guide.model, guide, x[:4], num_samples=7, seed=0)
    assert set(drawn["predictions"]["y"].values.flatten()) <= set(LEVELS.tolist())


def test_ratings_off_their_levels_are_refused_before_the_first_step():
    x, y = stars()
    guide = FactorisationNormal(made())
    for wrong in (y + 0.25, y.where(y < 5, 6.0)):
        for run in (
            lambda wrong=wrong: fit(elbo(guide.model, guide), (x, wrong), epochs=1, progress=False),
            lambda wrong=wrong: log_evidence(guide.model, guide, x, wrong, num_samples=2),
        ):
            with pytest.raises(ValueError, match="rows lie outside the support of its Ordered"):
                run()


def test_coordinate_ascent_is_of_normal_ratings():
    x, y = stars()
    message = r"closed forms for the likelihood Normal\(\) only, got (Ordered|Poisson|Normal)"
    for kind in (Ordered(LEVELS), Poisson(), Normal(own_scale=True)):
        with pytest.raises(ValueError, match=message):
            fit_em(FactorisationNormal(model(kind)), (x, y), progress=False)


def test_counts_and_own_noise_are_learned_by_gradients():
    x, y = stars()
    for kind in (Poisson(), Normal(own_scale=True)):
        guide = FactorisationNormal(model(kind))
        run = fit(elbo(guide.model, guide), (x, y), epochs=60, lr=0.03, seed=0, progress=False)
        assert run.history["loss"][-1] < run.history["loss"][0] - 0.1


def test_new_users_of_ordered_levels_are_folded_in():
    x, y = stars()
    guide = FactorisationNormal(made(own=True))
    guide.initialise(x, y)
    later = guide.for_new_users(2)
    new = torch.tensor([[0, 0], [0, 1], [1, 2]]), torch.tensor([5.0, 5.0, 1.0]).double()
    before = guide.model.likelihood.first.clone()
    fit(elbo(later.model, later), new, steps=150, lr=0.03, seed=0, progress=False)
    assert later.users.loc[0, 0] > later.users.loc[1, 0]
    assert torch.equal(later.items.loc, guide.items.loc)
    assert torch.equal(later.model.likelihood.first, before)
    predicted = predict(later.model, later, new[0], num_samples=50, seed=0)
    assert predicted["predictions"]["y"].shape == (1, 50, 3)
