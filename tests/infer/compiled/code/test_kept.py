"""Code on disk: it is found for the same graph and inputs, and for no others."""

from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.code import kept, native
from ppl_models.infer.compiled.code.native import Native


def traced(number=2.0, held=None):
    """Adds a number to a tensor in place, or what is held."""

    def step(x, y):
        x.add_(y * number if held is None else y * held)
        return ()

    return make_fx(step)(torch.zeros(3), torch.ones(3))


def pair(size=3):
    return [torch.zeros(size), torch.ones(size)]


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """How often something was compiled, with a cache that is empty at first."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found, compile = [], native._compile
    monkeypatch.setattr(
        native, "_compile", lambda *args: (found.append(args[0]), compile(*args))[1]
    )
    native._driver.cache_clear()
    yield found
    native._driver.cache_clear()


def test_code_is_compiled_once(compilations):
    ends = []
    for _ in range(2):
        inputs = pair()
        Native(traced(), inputs)(3, inputs)
        ends.append(inputs[0])
    assert len(compilations) == 1
    assert torch.equal(ends[0], torch.full((3,), 6.0))
    assert torch.equal(*ends)


def test_code_for_a_graph_with_constants_is_compiled_once(compilations):
    """Each has its own, also where two are alike; a program may change what it holds."""
    ends = []
    for _ in range(2):
        held, inputs = torch.tensor([1.0, 2.0, 3.0]), pair()
        function = Native(traced(held=held), inputs)
        function(2, inputs)
        held.fill_(10.0)
        function(1, inputs)
        ends.append(inputs[0])
    assert len(compilations) == 1
    assert ends[0].tolist() == [12.0, 14.0, 16.0]
    assert torch.equal(*ends)


def test_the_key_is_that_of_all_that_code_depends_on(monkeypatch):
    x, wide = torch.zeros(3), torch.zeros(6)
    given = [
        (traced(), pair()),
        (traced(3.0), pair()),
        (traced(), pair(4)),
        (traced(), [x.double(), x.double()]),
        (traced(), [wide[::2], x]),
        (traced(), [x, x]),
        (traced(), [wide[:3], wide[3:]]),
        (traced(), [wide[:3], wide[2:5]]),
        (traced(held=torch.tensor(2.0)), pair()),
        (traced(held=torch.tensor(3.0)), pair()),
    ]
    keys = [kept.key_of(*each) for each in given]
    assert None not in keys
    assert keys[0] == kept.key_of(traced(), pair())
    keys.append(kept.key_of(*given[0], "a setting"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.append(kept.key_of(*given[0]))
    torch.set_num_threads(threads)
    assert len(set(keys)) == len(keys)


def test_a_library_that_is_gone_or_a_note_of_another_kind_is_not_found(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    library = tmp_path / "library.so"
    library.touch()
    kept.keep("name", str(library), [0, 1])
    assert kept.find("name") == (str(library), [0, 1])
    kept.keep("constants", str(library), [0, "held"])
    assert kept.find("constants") == (str(library), [0, "held"])
    library.unlink()
    assert kept.find("name") is None
    library.touch()
    Path(tmp_path, "ppl_models", "name.json").write_text('{"file": 1}')
    assert kept.find("name") is None
    assert kept.find(None) is None
