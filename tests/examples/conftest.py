"""What is asked of each example: `check` has nothing to say of any model that one of them fits."""

import pytest

from ppl_models import check
from ppl_models.infer.objectives.elbo import EvidenceLowerBound
from ppl_models.infer.training.descent import Descent


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    """Each pair of programs is checked on its first batch."""
    known, original, found = [], Descent.check, []

    def wrapped(descent, batch, data=None):
        original(descent, batch, data)
        for objective in descent.objectives:
            if isinstance(objective, EvidenceLowerBound) and objective not in known:
                known.append(objective)
                found.append(
                    check(objective.model, objective.guide, *batch.values, size=batch.size)
                )

    monkeypatch.setattr(Descent, "check", wrapped)
    yield
    assert all(found), "\n".join(map(str, found))
