"""Conditional autoencoders: labels that do not fit."""

import pytest
import torch

from guides.conditional import ConditionalNormal, LabelNormal
from ppl_models import elbo
from ppl_models.autoencoders.conditional import ConditionalVAE
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from tests.support.oracles import binary
from tests.support.runs import quiet

LABELS = torch.arange(12) % 3


def test_labels_that_do_not_fit():
    hot = torch.eye(3)[LABELS]
    for model, guide in (
        (ConditionalVAE(4, 3, 2), ConditionalNormal(4, 3, 2)),
        (SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2)),
    ):
        with pytest.raises(ValueError, match=r"one-hot labels"):
            quiet(elbo(model, guide), (binary(12), hot), epochs=1, seed=0)
        if isinstance(model, ConditionalVAE):
            with pytest.raises(TypeError, match=r"Try data=\(x, y\)"):
                quiet(elbo(model, guide), binary(12), epochs=1, seed=0)
