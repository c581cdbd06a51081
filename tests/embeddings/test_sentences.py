"""Sentences: their words and numbers, classifiers of them, and what is refused."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ppl_models import SentenceClassifier, Vocabulary, elbo, freeze, log_evidence, ngrams
from ppl_models.datasets import sst2, tiny_shakespeare, trec
from ppl_models.embeddings.networks import AveragedWords, TextCNN
from tests.support.oracles import need_data
from tests.support.runs import quiet

SENTENCES = [["who", "was", "he"], ["how", "far", "is", "it"], ["who", "is", "it"], ["how", "far"]]


def test_words_are_numbered_by_how_often_they_come():
    vocabulary = Vocabulary.of(SENTENCES)
    assert vocabulary.words[0] == "<unk>"
    assert set(vocabulary.words[1:6]) == {"who", "how", "far", "is", "it"}
    assert len(vocabulary) == 8
    x = vocabulary.encode([*SENTENCES, ["who", "sings"]])
    assert x.shape == (5, 4)
    assert vocabulary.decode(x[0]) == SENTENCES[0]
    assert vocabulary.decode(x[4]) == ["who", "<unk>"]
    assert x[4, 2:].tolist() == [0, 0]
    assert len(Vocabulary.of(SENTENCES, min_count=2)) == 6
    assert "he" not in Vocabulary.of(SENTENCES, min_count=2)


def test_unknown_words_are_counted_and_the_unknown_token_offered():
    vocabulary = Vocabulary.of(SENTENCES, unknown=None)
    assert "<unk>" not in vocabulary
    with pytest.raises(ValueError, match=r"3 of 5 words \(2 different ones\) .* 'sings'.*'<unk>'"):
        vocabulary.encode([["who", "sings", "sings"], ["was", "Ann"]])


@pytest.mark.parametrize(
    ("sentences", "error", "message"),
    [
        ([["who"], [], ["is"], []], ValueError, r"2 of 4 without any \(rows 1, 3\)"),
        ([], ValueError, "0 of 0 without any"),
        (["who was he"], TypeError, "the text 'who was he', whose letters"),
    ],
)
def test_sentences_without_words_are_refused(sentences, error, message):
    with pytest.raises(error, match=message):
        Vocabulary.of(SENTENCES).encode(sentences)


def test_a_vocabulary_has_each_word_once():
    for words, unknown, message in (
        (["a", "b", "a"], None, "1 came before"),
        ([], None, "got 0"),
        (["a"], "<unk>", "expected '<unk>', which is to stand"),
    ):
        with pytest.raises(ValueError, match=message):
            Vocabulary(words, unknown)
    assert ngrams([[]]) == [[]]
    with pytest.raises(TypeError, match="lists of words"):
        ngrams(["who"])


def rows(count: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.randint(1, 9, (count, 6))
    x[::2, 4:] = 0
    return x, (x == 3).any(1).long()


def test_averaged_words_are_a_logistic_regression_on_counts():
    """Its logits are linear in the counts, over the root of their number."""
    model = SentenceClassifier(8, 2, num_dims=5).double().eval()
    x, _ = rows()
    counts = nn.functional.one_hot(x, 9)[..., 1:].sum(1).double()
    weight = model.vectors.weight[1:] @ model.head.weight.T  # (V, C)
    by_hand = counts / counts.sum(1, keepdim=True).sqrt() @ weight + model.head.bias
    expected = by_hand.log_softmax(1)
    torch.testing.assert_close(model.conditional(x).logits, expected)


@pytest.mark.parametrize("network", [AveragedWords, TextCNN])
def test_no_word_counts_nothing(network):
    model = SentenceClassifier(8, 3, 5, network(5)).eval()
    x, _ = rows()
    longer = nn.functional.pad(x, (0, 4))
    torch.testing.assert_close(model.conditional(longer).logits, model.conditional(x).logits)


def test_convolutions_see_the_order_of_words_and_averages_do_not():
    x = torch.tensor([[1, 2, 3, 4]])
    for network, same in ((AveragedWords(5), True), (TextCNN(5, (2,)), False)):
        model = SentenceClassifier(8, 3, 5, network).eval()
        assert torch.allclose(model.features(x), model.features(x.flip(1)), atol=1e-6) == same


def test_the_evidence_of_labels_is_exact():
    model, (x, y) = SentenceClassifier(8, 2).eval(), rows()
    evidence = log_evidence(model, None, x, y)
    assert evidence.kind == "exact"
    torch.testing.assert_close(evidence.value.float(), model.conditional(x).log_prob(y).detach())


def test_labels_are_learned_with_vectors_tuned_and_static():
    x, y = rows(300)
    counts = nn.functional.one_hot(x, 9)[..., 1:].sum(1).numpy()
    peer = LogisticRegression(C=100).fit(counts, y).score(counts, y)
    for static in (False, True):
        model = SentenceClassifier(8, 2, 16, AveragedWords(16, 0.0, 0.0))
        before = model.vectors.weight.detach().clone()
        if static:
            freeze(model, "vectors")
        quiet(elbo(model), (x, y), epochs=60, batch_size=30, lr=0.02, seed=0)
        assert (model.predict(x) == y).double().mean() > peer - 0.02
        assert torch.equal(model.vectors.weight[0], torch.zeros(16))
        assert torch.equal(model.vectors.weight, before) == static


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3, 2), TypeError, "numbers of words, of type int64, got torch.float32"),
        (torch.tensor([[1, 2], [0, 0]]), ValueError, r"1 of 2 without any \(rows 1\)"),
        (torch.tensor([[1, 9], [1, 2]]), ValueError, "from 0 to 8, got 1 of 4 others, such as 9"),
        (torch.tensor([1, 2]), ValueError, r"rows of words, \(B, L\)"),
    ],
)
def test_rows_that_are_no_words_are_refused_before_the_first_step(x, error, message):
    model, y = SentenceClassifier(8, 2), torch.zeros(len(x), dtype=torch.int64)
    with pytest.raises(error, match=message):
        quiet(elbo(model), (x, y), steps=1)


def test_a_network_says_how_many_features_it_gives():
    with pytest.raises(ValueError, match="Identity with num_outputs=None"):
        SentenceClassifier(8, 2, network=nn.Identity())


def test_labels_off_the_classes_are_refused():
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        SentenceClassifier(8, 2)(torch.tensor([[1]]), torch.tensor([2]))


def test_real_sentences():
    root = need_data("Sentences")
    train, test = trec(root)
    assert (len(train.words), len(test.words)) == (5452, 500)
    assert train.y.bincount().tolist() == [1162, 1250, 86, 1223, 835, 896]
    strange = {letter for s in train.words for word in s for letter in word if ord(letter) > 127}
    assert strange == {"\xf0"}  # in latin-1
    assert [len(part.words) for part in sst2(root)] == [6920, 872, 1821]


def test_real_words():
    train, test = tiny_shakespeare(need_data("TinyShakespeare"))
    assert len(train) == 9 * len(test) - 7
    vocabulary = Vocabulary.of([train], min_count=5)
    assert len(vocabulary) == 3099
    assert train[:8] == ["first", "citizen", ":", "before", "we", "proceed", "any", "further"]


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"TREC\.train\.all"):
        trec(tmp_path)
    (tmp_path / "Sentences").mkdir()
    for part in ("train", "test"):
        (tmp_path / "Sentences" / f"TREC.{part}.all").write_text("1 who was he\n6 what\n")
    with pytest.raises(ValueError, match="line 2: expected a label from 0 to 5"):
        trec(tmp_path)
