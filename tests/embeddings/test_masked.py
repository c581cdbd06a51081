"""Masked words: exact enumeration of three words at four places, and what is refused."""

import itertools
import math

import pyro
import pytest
import torch
from torch import Tensor, nn

from ppl_models import AnyOrderWords, MaskedWords, data_plate, elbo, log_evidence
from ppl_models.embeddings.any_order import WordsInOrder
from ppl_models.embeddings.masked import PseudoLikelihood
from ppl_models.embeddings.neighbours import (
    BagOfNeighbours,
    Neighbours,
    SelfMaskedTransformer,
    neighbours,
)
from tests.support.runs import cosine, quiet

V, L = 3, 4
EVERY = torch.cartesian_prod(*[torch.arange(1, V + 1)] * L)  # (81, 4)
ORDERS = torch.tensor(list(itertools.permutations(range(L))))  # (24, 4)


class Sees(nn.Module):
    """A network that looks at its own word where it is not hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(V + 1, 8)
        self.head = nn.Linear(8 * L, L * V)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.vectors(x).flatten(1)).view(-1, L, V)


class Leaks(Sees):
    sees_itself = False


class Unnormalised(PseudoLikelihood):
    def log_conditionals(self, value: Tensor, given: Tensor) -> Tensor:
        return super().log_conditionals(value, given) + 0.1


NETWORKS = {
    "bag": lambda: BagOfNeighbours(V, 8, 2),
    "neighbours": lambda: Neighbours(V, 8, 2, 16),
    "transformer": lambda: SelfMaskedTransformer(V, L, 8, num_heads=2),
    "one that sees itself": Sees,
}


def made(name: str) -> nn.Module:
    network = NETWORKS[name]().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return network


def joint() -> Tensor:
    """Probabilities of all rows, in which words lean on each other, (81,)."""
    return (1.5 * torch.randn(len(EVERY), dtype=torch.float64)).softmax(0)


def conditionals(p: Tensor) -> Tensor:
    """The log-probability of each word of each row given the others, (81, 4), by enumeration."""
    others = torch.stack([(EVERY.index_fill(1, torch.tensor([i]), 0)) for i in range(L)], 1)
    same = (others.unsqueeze(0) == others.unsqueeze(1)).all(-1)  # (81, 81, 4)
    return p.log()[:, None] - (p[None, :, None] * same).sum(1).log()


@pytest.mark.parametrize("name", NETWORKS)
def test_conditionals_do_not_depend_on_their_own_word(name):
    density = PseudoLikelihood(made(name), V, L)
    logits = density.conditionals(EVERY).logits
    for i in range(L):
        for word in range(1, V + 1):
            changed = EVERY.index_fill(1, torch.tensor([i]), word)
            torch.testing.assert_close(density.conditionals(changed).logits[:, i], logits[:, i])
    assert not torch.allclose(logits[:1].expand_as(logits), logits)  # but on the others


@pytest.mark.parametrize("name", NETWORKS)
def test_its_terms_are_the_passes_with_each_word_hidden(name):
    network = made(name)
    by_hand = torch.zeros(len(EVERY), dtype=torch.float64)
    for i in range(L):
        hidden = EVERY.index_fill(1, torch.tensor([i]), 0)
        log_p = network(hidden)[:, i].log_softmax(-1)
        by_hand += log_p.gather(1, EVERY[:, i : i + 1] - 1).squeeze(1)
    found = PseudoLikelihood(network, V, L).log_prob(EVERY)
    torch.testing.assert_close(found, by_hand)
    evidence = log_evidence(MaskedWords(V, L, network), None, EVERY)
    torch.testing.assert_close(evidence.value, by_hand.detach())


def test_a_pseudo_likelihood_is_no_density():
    found = [PseudoLikelihood(made(name), V, L).log_prob(EVERY) for name in NETWORKS]
    assert max(abs(log_p.exp().sum().item() - 1) for log_p in found) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "one that sees itself"])
def test_it_learns_the_conditionals_of_the_true_joint(name):
    """Its maximum is at them: the mean by enumeration, and each of them nearly."""
    p = joint()
    model = MaskedWords(V, L, nn.Sequential(Table()) if name != "transformer" else Table(False))
    x = EVERY.repeat_interleave((4000 * p).round().long(), 0)
    quiet(elbo(model), x, steps=150, lr=0.2, schedule=cosine)
    best = conditionals(p).sum(1)
    found = log_evidence(model, None, EVERY).value
    expected, reached = (p * best).sum(), (p * found).sum()
    assert reached == pytest.approx(expected.item(), abs=2e-3)
    likely = p > 0.01
    torch.testing.assert_close(found[likely], best[likely], atol=0.1, rtol=0)


class Table(nn.Module):
    """Any conditionals at all: logits for each place and all words around it."""

    def __init__(self, sees_itself: bool = True) -> None:
        super().__init__()
        self.sees_itself = sees_itself
        self.logits = nn.Parameter(torch.zeros(L, (V + 1) ** L, V))

    def forward(self, x: Tensor) -> Tensor:
        own = torch.eye(L, dtype=torch.bool)
        hidden = x.unsqueeze(1).masked_fill(own, 0)  # (B, L, L)
        key = (hidden * (V + 1) ** torch.arange(L)).sum(-1)  # (B, L)
        return self.logits[torch.arange(L), key]


@pytest.mark.parametrize("name", NETWORKS)
def test_words_in_any_order_are_a_density(name):
    network = made(name)
    for order in ORDERS[::5]:
        density = WordsInOrder(network, V, order.expand(len(EVERY), L))
        assert density.log_prob(EVERY).exp().sum().item() == pytest.approx(1)


@pytest.mark.slow
def test_the_bound_of_a_drawn_order_rises_to_the_exact_evidence():
    """Over all 24 orders: of each row the evidence, and the bound of a single draw."""
    network = made("transformer")
    model = AnyOrderWords(V, L, network).double()
    x = EVERY[::7]
    each = WordsInOrder(network, V, ORDERS[:, None].expand(-1, len(x), L)).log_prob(x)  # (24, 12)
    exact, single = each.logsumexp(0) - math.log(24), each.mean(0)
    assert (exact > single + 1e-4).any()
    evidence = log_evidence(model, model.masking, x, num_samples=2000, seed=0)
    assert evidence.kind == "lower bound"
    assert ((evidence.value - exact).abs() <= 4 * evidence.row_variance.sqrt()).all()
    assert evidence.row_variance.sqrt().max() < 0.1
    one = torch.stack([-elbo(model, model.masking).loss(x) for _ in range(200)])
    assert one.mean().item() == pytest.approx(single.mean().item(), abs=4 * one.std().item() / 14)
    assert evidence.mean > single.mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log_evidence. 100 draws have weights of infinite variance")
def test_it_learns_a_joint_distribution():
    p = joint()
    model = AnyOrderWords(V, L, SelfMaskedTransformer(V, L, 32, num_heads=2, dropout=0.0))
    x = EVERY.repeat_interleave((2000 * p).round().long(), 0)
    quiet(elbo(model, model.masking), x, epochs=8, batch_size=200, lr=1e-2, schedule=cosine)
    found = log_evidence(model, model.masking, EVERY, num_samples=100, seed=0).value
    entropy = -(p * p.log()).sum()
    assert -(p * found).sum() < entropy + 0.25
    assert -(p * -math.log(81)).sum() > entropy + 0.5  # what knows nothing is far off


@pytest.mark.parametrize("name", ["bag", "one that sees itself"])
def test_draws_are_words(name):
    x = MaskedWords(V, L, made(name))(size=50)
    assert x.shape == (50, L)
    assert set(x.unique().tolist()) <= {1, 2, 3}
    x = AnyOrderWords(V, L, made(name)).double()(size=50)
    assert set(x.unique().tolist()) <= {1, 2, 3}


def test_the_kind_is_printed():
    evidence = log_evidence(MaskedWords(V, L, made("bag")), None, EVERY)
    assert evidence.kind == "pseudo-likelihood"
    assert evidence.num_samples == 0
    assert "pseudo-likelihood (of each feature given all others: no density" in str(evidence)
    assert "bits/dim" in str(evidence)


def test_a_kind_is_earned():
    """A network that looks at the word itself, a product that is none, and what is no density."""
    with pytest.raises(ValueError, match="entry 0 depends on the entry itself"):
        log_evidence(MaskedWords(V, L, Leaks()), None, EVERY)

    network = made("bag")

    def unnormalised(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", Unnormalised(network, V, L), obs=x)

    with pytest.raises(ValueError, match=r"entry 0 sums to 1\.105 over its 3 values"):
        log_evidence(unnormalised, None, EVERY)

    class Doubled(PseudoLikelihood):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    def doubled(x, size=None):
        with data_plate(x, size):
            pyro.sample("x", Doubled(network, V, L), obs=x)

    with pytest.raises(ValueError, match="not the sum of its log_conditionals"):
        log_evidence(doubled, None, EVERY)
    with pytest.raises(ValueError, match="there is no exact value"):
        log_evidence(MaskedWords(V, L, made("bag")), None, EVERY, method="exact")


def test_a_bag_knows_no_order():
    x = torch.tensor([[1, 2, 3, 1, 2]])
    swapped = x[:, [1, 0, 2, 4, 3]]
    bag, ordered = BagOfNeighbours(V, 8, 2), Neighbours(V, 8, 2).eval()
    torch.testing.assert_close(bag(x)[0, 2], bag(swapped)[0, 2])
    assert not torch.allclose(ordered(x)[0, 2], ordered(swapped)[0, 2])
    assert neighbours(x, 2)[0, 0].tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (EVERY.float(), TypeError, "numbers of words, of type int64, got torch.float32"),
        (EVERY + 1, ValueError, "numbers of words from 0 to 3, got 108 of 324 others, such as 4"),
        (EVERY - 1, ValueError, "one word or more in each row, got 1 of 81|outside the support"),
        (EVERY[1:] - 1, ValueError, "outside the support"),
        (EVERY[:, :3], ValueError, "rows of 4 words, with shape .B, 4., got .81, 3."),
    ],
)
@pytest.mark.parametrize("kind", [MaskedWords, AnyOrderWords])
def test_rows_that_are_none_are_refused_before_the_first_step(x, error, message, kind):
    model = kind(V, L, BagOfNeighbours(V, 8))
    guide = model.masking if kind is AnyOrderWords else None
    with pytest.raises(error, match=message):
        quiet(elbo(model, guide), x, steps=1)


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="the logits of 3 words at each place"):
        elbo(MaskedWords(V, L, BagOfNeighbours(5, 8))).loss(EVERY)
