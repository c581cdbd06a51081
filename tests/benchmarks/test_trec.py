"""The benchmark of sentences: no question is foreseen by a model that has seen it."""

import math

import pytest
import torch

from benchmarks.quality.sentences import CLASSES, cross_validate
from ppl_models.datasets import Sentences


@pytest.mark.parametrize("name", ["logistic", "averaged"])
def test_a_word_of_each_question_alone_tells_held_out_ones_nothing(name, capsys):
    questions = Sentences([[f"word{i}"] for i in range(240)], torch.arange(240) % CLASSES)
    cross_validate([name], questions, folds=3)
    right, nats = capsys.readouterr().out.split(f"{name} ")[-1].split()[:2]
    assert float(right.rstrip("%")) < 30
    assert float(nats) > math.log(CLASSES) - 0.05
