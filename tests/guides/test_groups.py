"""Latents of groups: exact by networks that are set by hand, and near it by one that is fitted."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from guides import GroupNormal, SharedAndLocal
from ppl_models import data_plate, elbo, fit, from_pyro_svi, khat, load, log_evidence, save

DOUBLE = torch.float64
WITHIN, BETWEEN, CENTER = 0.7, 1.5, 0.4  # standard deviations, and the mean of groups
G = 5
GROUP = torch.tensor([3, 0, 0, 1, 3, 0, 0, 4, 3, 0, 1, 0])  # of 6, 2, 0, 3 and 1 rows
N = len(GROUP)


def numbers(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def model(x, group, size=None, center=None, num_groups=G):
    """Rows around the mean of their group."""
    center = torch.full((1,), CENTER, dtype=DOUBLE) if center is None else center
    with pyro.plate("group", num_groups, dim=-1):
        z = pyro.sample("z", dist.Normal(center, BETWEEN).to_event(1))
    with data_plate(x, size):
        law = dist.Normal(z.index_select(-2, group), WITHIN)
        return pyro.sample("x", law.to_event(1), obs=x)


def around_a_center(x, group, size=None):
    """The same, with a mean of groups that is not known."""
    return model(x, group, size, pyro.sample("center", standard().to_event(1)))


def standard():
    return dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0)


def rows(group=GROUP):
    return numbers(len(group), 1) + group[:, None]


def evidence(x, group=GROUP, center_variance=0.0):
    same = (group[:, None] == group).to(DOUBLE)
    covariance = WITHIN**2 * torch.eye(len(x)) + BETWEEN**2 * same + center_variance
    loc = torch.full_like(x[:, 0], 0.0 if center_variance else CENTER)
    return dist.MultivariateNormal(loc, covariance).log_prob(x[:, 0])


class Conjugate(nn.Module):
    """The posterior of a normal mean, from the mean of rows, their number, and the prior's mean."""

    def forward(self, inputs):
        mean, log_count, *center = inputs.unbind(1)
        count = log_count.expm1()
        precision = BETWEEN**-2 + count / WITHIN**2
        center = center[0] if center else CENTER
        loc = (center / BETWEEN**2 + count * mean / WITHIN**2) / precision
        return torch.stack([loc, -precision.log() / 2], 1)


def exact(**settings):
    return GroupNormal(1, 1, G, encoder=nn.Identity(), head=Conjugate(), **settings)


def test_the_posterior_is_one_of_them():
    """For any draw, with groups of any number of rows, one without."""
    x, guide = rows(), exact()
    for _ in range(3):
        torch.testing.assert_close(elbo(model, guide).loss(x, GROUP), -evidence(x) / N)
    found = log_evidence(model, guide, x, GROUP, num_samples=50)
    torch.testing.assert_close(found.value, evidence(x).reshape(1))
    assert found.kind == "lower bound"
    assert khat(model, guide, x, GROUP, num_samples=50).value.tolist() == [0.0]


def test_of_groups_of_one_size_it_is_linear():
    group = torch.arange(12) % 3
    head = nn.Linear(2, 2).double()
    precision = BETWEEN**-2 + 4 / WITHIN**2
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0] = 4 / WITHIN**2 / precision
        head.bias.copy_(torch.tensor([CENTER / BETWEEN**2 / precision, -math.log(precision) / 2]))
    guide = GroupNormal(1, 1, 3, encoder=nn.Identity(), head=head)

    def in_three(x, group, size=None):
        return model(x, group, size, num_groups=3)

    loss = elbo(in_three, guide).loss(rows(group), group)
    torch.testing.assert_close(loss, -evidence(rows(group), group) / 12)


def test_minibatches_see_all_rows_where_they_are_given():
    x = rows()
    guide = exact(data=(x, GROUP))
    parts = []
    for part in torch.arange(N).split(4):
        torch.manual_seed(0)  # the same latents in each
        parts.append(elbo(model, guide).loss(x[part], GROUP[part], size=N))
    torch.testing.assert_close(torch.stack(parts).mean(), -evidence(x) / N)


def test_minibatches_are_refused_where_they_are_not():
    guide = GroupNormal(1, 1, G).double()
    before = guide.head[0].weight.clone()
    with pytest.raises(ValueError, match=r"expected all rows, got 4 of 12.*Try batch_size=12, or"):
        fit(elbo(model, guide), (rows(), GROUP), steps=3, batch_size=4)
    assert torch.equal(guide.head[0].weight, before)


def test_then_it_sees_these_whatever_it_is_called_with():
    """So that minibatches of any size, all rows among them, are parts of one bound."""
    x, guide = rows(), exact(data=(rows(), GROUP))
    loc = guide.posterior(x, GROUP).mean
    for part in (slice(None), slice(0, 4)):
        with pyro.poutine.trace() as trace:
            guide(x[part] + 1, GROUP[part])
        torch.testing.assert_close(trace.trace.nodes["z"]["fn"].mean, loc)
    other = GroupNormal(1, 1, G, encoder=guide.encoder, head=guide.head)
    torch.testing.assert_close(elbo(model, other).loss(x + 1, GROUP), -evidence(x + 1) / N)


def test_order_does_not_matter_nor_do_other_groups():
    guide, x = GroupNormal(1, 2, G).double(), rows()
    order = torch.randperm(N)
    before = guide.posterior(x, GROUP).mean
    torch.testing.assert_close(guide.posterior(x[order], GROUP[order]).mean, before)
    after = guide.posterior(torch.where(GROUP[:, None] == 0, 9.0, x), GROUP).mean
    torch.testing.assert_close(after[1:], before[1:])
    assert not torch.allclose(after[0], before[0])


def test_as_many_rows_again_are_more():
    guide, x = GroupNormal(1, 2, G).double(), rows()
    twice = guide.posterior(torch.cat([x, x]), torch.cat([GROUP, GROUP])).mean
    assert ((twice - guide.posterior(x, GROUP).mean).abs() > 1e-4).any(1).tolist() == [
        True,
        True,
        False,  # without rows
        True,
        True,
    ]


def test_groups_without_rows_are_alike_and_have_the_prior():
    few = torch.tensor([0, 0, 3])
    found = GroupNormal(1, 2, G).double().posterior(rows(few), few)
    torch.testing.assert_close(found.mean[1], found.mean[2])
    torch.testing.assert_close(found.mean[1], found.mean[4])
    prior = exact().posterior(rows(few), few)
    torch.testing.assert_close(prior.mean[1], torch.tensor([CENTER], dtype=DOUBLE))
    torch.testing.assert_close(prior.stddev[1], torch.tensor([BETWEEN], dtype=DOUBLE))


def test_outcomes_are_features():
    x, y, group = numbers(N, 2), numbers(N), GROUP
    guide = GroupNormal(3, 2, G).double()
    both = guide.posterior(torch.cat([x, y[:, None]], 1), group).mean
    torch.testing.assert_close(guide.posterior(x, y, group).mean, both)


def test_what_is_shared_stands_after_the_features():
    """Before outcomes, as `SharedAndLocal` widens the rows."""
    x, y, shared = numbers(N, 2), numbers(N), torch.full((N, 1), 0.3, dtype=DOUBLE)
    guide = GroupNormal(3, 2, G, num_shared=1).double()
    found = guide.posterior(torch.cat([x, shared], 1), y, GROUP).mean
    sets = GroupNormal(3, 2, G, encoder=guide.encoder, head=nn.Identity())
    inputs = sets._sets(torch.cat([x, y[:, None]], 1), GROUP, shared[0])
    torch.testing.assert_close(found, guide.head(inputs)[:, :2])


def of_center(x, group, size=None):
    """The posterior of the mean of groups, by the means of all groups."""
    count = torch.bincount(group, minlength=G).to(DOUBLE)
    total = torch.zeros(G, dtype=DOUBLE).index_add(0, group, x[:, 0])
    weight = count / (WITHIN**2 + BETWEEN**2 * count)  # of each mean, its precision
    precision = 1 + weight.sum()
    loc = (weight * total / count.clamp(min=1)).sum() / precision
    pyro.sample("center", dist.Normal(loc.reshape(1), precision**-0.5).to_event(1))


def test_shared_latents_are_given():
    """Then all is exact, that of the group without rows, too."""
    x = rows()
    guide = SharedAndLocal(of_center, exact(num_shared=1), ["center"])
    for _ in range(3):
        loss = elbo(around_a_center, guide).loss(x, GROUP)
        torch.testing.assert_close(loss, -evidence(x, center_variance=1.0) / N)
    found = log_evidence(around_a_center, guide, x, GROUP, num_samples=20)
    torch.testing.assert_close(found.value, evidence(x, center_variance=1.0).reshape(1))


def test_without_the_shared_latents_something_is_lost():
    x, guide = rows(), SharedAndLocal(of_center, exact())
    with torch.no_grad():
        loss = torch.stack([elbo(around_a_center, guide).loss(x, GROUP) for _ in range(50)]).mean()
    assert loss > -evidence(x, center_variance=1.0) / N + 0.005


def test_shared_latents_are_given_in_minibatches():
    x = rows()
    local = exact(num_shared=1, data=(x, GROUP))
    guide = SharedAndLocal(lambda *_, size: of_center(x, GROUP), local, ["center"])
    parts = []
    for part in torch.arange(N).split(4):
        torch.manual_seed(0)
        parts.append(elbo(around_a_center, guide).loss(x[part], GROUP[part], size=N))
    torch.testing.assert_close(torch.stack(parts).mean(), -evidence(x, center_variance=1.0) / N)


def test_draws_are_those_of_the_posterior():
    x = rows()
    z = from_pyro_svi(model, exact(), x, GROUP, num_samples=4000)["posterior"]["z"]
    expected = exact().posterior(x, GROUP)
    draws = torch.tensor(z.values)[0]  # (S, G, 1)
    assert draws.shape == (4000, G, 1)
    torch.testing.assert_close(draws.mean(0), expected.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), expected.stddev, atol=0.1, rtol=0)


def test_weights_are_saved_without_the_data(tmp_path):
    guide, other = (GroupNormal(1, 1, G, data=(rows(), GROUP)).double() for _ in range(2))
    save(tmp_path / "weights", guide=guide)
    load(tmp_path / "weights", guide=other)
    assert not {"rows", "group"} & set(guide.state_dict())
    x = rows()
    assert torch.equal(other.posterior(x, GROUP).mean, guide.posterior(x, GROUP).mean)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 6])
def test_compiled_steps_are_those_of_the_program(batch_size):
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        guide = GroupNormal(1, 1, G, data=(rows(), GROUP)).double()
        options = {"steps": 8, "seed": 0, "batch_size": batch_size, "compile": compile}
        histories.append(fit(elbo(model, guide), (rows(), GROUP), **options).history["loss"])
    assert histories[0] == pytest.approx(histories[1], rel=1e-6)


def to_zero(optimizer, steps):
    return CosineAnnealingLR(optimizer, steps)


@pytest.mark.slow
def test_it_is_fitted_and_serves_other_groups():
    """Many groups of 0 to 5 rows: of new ones the bound is near the evidence, without a step."""
    group = torch.arange(100).repeat_interleave(torch.arange(100) % 6)
    other = torch.arange(100).repeat_interleave(torch.arange(100).flip(0) % 6)

    def draws(group, seed):
        return (
            CENTER + BETWEEN * numbers(100, 1, seed=seed)[group] + WITHIN * numbers(len(group), 1)
        )

    def of_many(x, group, size=None):
        return model(x, group, size, num_groups=100)

    torch.manual_seed(0)
    guide = GroupNormal(1, 1, 100).double()
    options = {"steps": 800, "lr": 0.005, "schedule": to_zero, "seed": 0}
    fit(elbo(of_many, guide), (draws(group, 1), group), **options)
    x = draws(other, 2)
    with torch.no_grad():
        loss = torch.stack([elbo(of_many, guide).loss(x, other) for _ in range(20)]).mean()
    assert loss.item() == pytest.approx(-evidence(x, other).item() / len(x), abs=0.02)
    empty = guide.posterior(x, other)
    assert empty.mean[99].item() == pytest.approx(CENTER, abs=0.3)
    assert empty.stddev[99].item() == pytest.approx(BETWEEN, rel=0.2)


@pytest.mark.slow
def test_it_is_fitted_with_an_autoguide():
    x = rows()
    shared = AutoNormal(poutine.block(around_a_center, hide=["z"]), init_scale=0.3)
    torch.manual_seed(0)
    guide = SharedAndLocal(shared, GroupNormal(1, 1, G, num_shared=1).double(), ["center"])
    options = {"steps": 2000, "lr": 0.003, "schedule": to_zero, "seed": 0}
    fit(elbo(around_a_center, guide), (x, GROUP), **options)
    found = log_evidence(around_a_center, guide, x, GROUP, num_samples=500, seed=0)
    assert found.value.item() == pytest.approx(evidence(x, center_variance=1.0).item(), abs=0.05)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda g: g - 1, ValueError, "groups from 0 to 4, got -1 to 3"),
        (lambda g: g + 1, ValueError, "groups from 0 to 4, got 1 to 5"),
        (lambda g: g.double(), TypeError, r"as whole numbers.*got torch.float64.*\.long"),
        (lambda g: g > 0, TypeError, "as whole numbers.*got torch.bool"),
        (lambda g: g[:, None], ValueError, r"of shape \(12,\), got .* \(12, 1\)"),
    ],
)
def test_groups_that_are_none(change, kind, message):
    guide, data = GroupNormal(1, 1, G).double(), (rows(), change(GROUP))
    with pytest.raises(kind, match=message):
        guide.posterior(*data)
    with pytest.raises(kind, match=message):
        fit(elbo(model, guide), data, steps=3)
    with pytest.raises(kind, match=message):
        log_evidence(model, guide, *data)
    with pytest.raises(kind, match=message):
        GroupNormal(1, 1, G, data=data)


def test_latents_that_are_not_of_groups():
    def of_rows(x, group, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", standard().to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def of_all(x, group, size=None):
        z = pyro.sample("z", standard().to_event(1))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    for program, shape in ((of_rows, r"\(12, 1\)"), (of_all, r"\(1,\)")):
        message = rf"site 'z': the Normal of the guide has shape \(5, 1\).* the model {shape}"
        with pytest.raises(ValueError, match=message):
            fit(elbo(program, GroupNormal(1, 1, G).double()), (rows(), GROUP), steps=3)
        with pytest.raises(ValueError, match=message):
            log_evidence(program, GroupNormal(1, 1, G).double(), rows(), GROUP)
    message = "the plate 'group' holds 5 entries in the model, and 6 in the guide"
    with pytest.raises(ValueError, match=message):
        fit(elbo(model, GroupNormal(1, 1, 6).double()), (rows(), GROUP), steps=3)


def test_rows_and_networks_of_another_shape():
    x = rows()
    with pytest.raises(ValueError, match="rows and after them the group of each, got one tensor"):
        GroupNormal(1, 1, G).posterior(x)
    with pytest.raises(ValueError, match="GroupNormal: expected rows of 2 features"):
        GroupNormal(2, 1, G).posterior(x, GROUP)
    with pytest.raises(ValueError, match=r"encoder to give 64 numbers.*got \(12, 3\)"):
        GroupNormal(1, 1, G, encoder=nn.Linear(1, 3).double()).posterior(x, GROUP)
    with pytest.raises(ValueError, match="GroupNormal: expected its head to give a mean and"):
        GroupNormal(1, 2, G, encoder=nn.Identity(), head=nn.Identity()).posterior(x, GROUP)
    with pytest.raises(ValueError, match="num_groups: expected a positive whole number, got 0"):
        GroupNormal(1, 1, 0)
