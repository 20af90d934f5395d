"""What is computed once, and what must not be."""

import torch
from torch import nn

from pplmodels.memo import memoise, memoised


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    @memoised
    def double(self, x, times=1):
        self.calls += 1
        return 2**times * x


def test_the_same_tensors_give_the_same_result_once():
    module, x = Doubling(), torch.ones(3)
    with memoise():
        first = module.double(x)
        assert module.double(x) is first and module.calls == 1
        module.double(x.clone())  # equal, but another tensor
        module.double(x, 2)
        Doubling().double(x)
        assert module.calls == 3
    with memoise():  # another step, whose parameters may have moved
        module.double(x)
    assert module.calls == 4


def test_outside_nothing_is_kept():
    module, x = Doubling(), torch.ones(3)
    assert torch.equal(module.double(x), module.double(x)) and module.calls == 2


def test_what_was_written_to_is_computed_again():
    module, x = Doubling(), torch.ones(3)
    with memoise():
        module.double(x)
        x.add_(1)
        assert torch.equal(module.double(x), torch.full((3,), 4.0))


def test_a_result_without_a_graph_does_not_stand_for_one_with():
    module, x = Doubling(), torch.ones(3, requires_grad=True)
    with memoise():
        with torch.no_grad():
            module.double(x)
        assert module.double(x).requires_grad


def test_a_freed_tensors_place_is_not_mistaken_for_it():
    module = Doubling()
    with memoise():
        for value in range(100):  # without references the allocator hands out the same addresses again
            assert module.double(torch.full((1,), float(value))).item() == 2 * value


def test_gradients_of_both_uses_add_up():
    module, x = Doubling(), torch.ones(3, requires_grad=True)
    with memoise():
        (module.double(x) * 3 + module.double(x) * 5).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 16.0)) and module.calls == 1
