"""Whether compiling pays: a function of counts alone, which are those of one step."""

import pytest
import torch

from ppl_models.infer.compiled.worth import LEAST, Operations, pays


@pytest.mark.parametrize("operations", [1, 100, 1_000, 100_000])
def test_more_steps_never_pay_less(operations):
    found = [pays(steps, operations, 0.0) for steps in range(0, 30_000, 100)]
    assert found == sorted(found)
    assert not any(pays(steps, operations, 0.0) for steps in (1, 100, 1_000, LEAST - 1))


def test_ten_thousand_steps_of_a_small_program_pay_and_two_thousand_do_not():
    for operations in (160, 250, 560):  # a VAE, a regression, a mixture
        assert pays(10_000, operations, 0.0)
        assert not pays(2_000, operations, 0.0)


def test_steps_that_are_arithmetic_alone_do_not_pay():
    assert pays(20_000, 200, arithmetic=5e-3)
    assert not pays(20_000, 200, arithmetic=5e-2)


def test_operations_are_counted_forwards_and_backwards():
    x = torch.ones(3, requires_grad=True)
    with Operations() as forwards:
        loss = x.exp().sum()
    with Operations() as backwards:
        loss.backward()
    assert forwards.count in (2, 3)  # some versions of torch detach the result of `exp`
    assert backwards.count >= 2


def test_arithmetic_grows_with_tensors():
    def of(size):
        x = torch.ones(size, size)
        with Operations() as found:
            x @ x
        return found.arithmetic

    assert of(200) > 6 * of(100)  # eight times the products, four times the numbers
