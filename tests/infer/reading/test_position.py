"""A loader that says where it is: a resumed run goes on there, and reads nothing again."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ppl_models import elbo
from ppl_models.infer.training.ahead.streamed import BatchesAhead
from ppl_models.infer.training.batches import source
from tests.support.oracles import binary, state
from tests.support.runs import dropout_vae, quiet

torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
pytestmark = pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated:UserWarning", "ignore:This DataLoader will create:UserWarning"
)


class Noting(Dataset):
    """Rows whose reading is noted."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 22

    def __getitem__(self, i: int) -> Tensor:
        self.read.append(i)
        return binary()[i]


class Counting(Noting):
    """With a state that the loader keeps, too."""

    def __init__(self, kept: object = None) -> None:
        super().__init__()
        self.kept = kept

    def state_dict(self) -> dict:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict) -> None:
        self.kept = state["kept"]


def loader(dataset: Dataset | None = None, **options) -> DataLoader:
    dataset = Noting() if dataset is None else dataset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchdata.StatefulDataLoader(
            dataset, **{"batch_size": 5, "shuffle": True, **options}
        )


def run(data: DataLoader, **options):
    pair = dropout_vae()
    found = quiet(elbo(*pair), data, lr=1e-2, seed=0, **options)
    return state(*pair), found.history


def assert_resumes(path, make, stop: int, total: int, **options) -> DataLoader:
    whole, history = run(make(), steps=total, **options)
    run(make(), steps=stop, checkpoint=path, **options)
    resumed = make()
    got, its_history = run(resumed, steps=total, checkpoint=path, resume=True, **options)
    assert its_history == history
    for name, value in whole.items():
        assert torch.equal(value, got[name]), name
    return resumed


@pytest.mark.parametrize("stop", [3, 5, 7])  # in an epoch, at its end, in the next one
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, stop):
    resumed = assert_resumes(tmp_path / "run", loader, stop, 11)
    read = resumed.dataset.read[5:]  # after the first batch, by which all is checked
    assert len(read) == (11 - stop) * 5 - 3 * (10 // 5 - stop // 5)


def test_other_workers_that_read(tmp_path):
    assert_resumes(tmp_path / "run", lambda: loader(num_workers=2), 7, 11)


def test_what_was_read_ahead_of_a_block_is_not_lost(tmp_path, graphs_as_traced):
    resumed = assert_resumes(tmp_path / "run", loader, 23, 60, compile=True)
    assert len(resumed.dataset.read[5:]) < 60 * 5 - 22 * 4


def test_a_run_of_a_plain_loader_goes_on_as_before(tmp_path):
    data = Noting()
    run(DataLoader(data, batch_size=5), steps=3, checkpoint=tmp_path / "run")
    run(DataLoader(data, batch_size=5), steps=4, checkpoint=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loader(num_workers=1), "had num_workers=0, got num_workers=1.*Try num_workers=0"),
        (lambda: DataLoader(Noting(), batch_size=5), "a StatefulDataLoader.*got DataLoader"),
    ],
)
def test_another_loader_cannot_go_on(tmp_path, make, message):
    run(loader(), steps=3, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        run(make(), steps=7, checkpoint=tmp_path / "run", resume=True)


def test_a_state_that_no_checkpoint_can_hold_is_refused_at_once(tmp_path):
    data = Counting(kept={1, 2})
    with pytest.raises(TypeError, match=r"cannot write /the state of the DataLoader.*type set"):
        run(loader(data), steps=3, checkpoint=tmp_path / "run")
    run(loader(data), steps=3)  # which nobody asked it to
    assert_resumes(tmp_path / "run", lambda: loader(Counting(kept=[1, 2])), 3, 7)


def test_where_it_was_after_a_step_and_not_where_it_has_read_to():
    progress = SimpleNamespace(order_seed=0, epoch=0, batch=0)
    ahead = BatchesAhead(progress, source(loader(), None, None), whole_epochs=False)
    ahead.most = 4
    assert ahead.plan(4, {ahead.kind: 10}) == [(ahead.kind, 4)]
    progress.batch = 2
    assert ahead.position()["state"]["_num_yielded"] == 2
