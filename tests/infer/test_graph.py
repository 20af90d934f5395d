"""Rewrites of graphs: what may be shared, folded and dropped, and what may not."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pplmodels.infer.graph import simplified


def traced(function, *args):
    module = simplified(make_fx(function)(*args))
    return module, [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def test_repeated_operations_are_shared():
    module, calls = traced(lambda x: x.sin() + x.sin() * x.sin(), torch.ones(3))
    assert calls.count("aten.sin.default") == 1
    torch.testing.assert_close(module(torch.ones(3)), torch.ones(3).sin() + torch.ones(3).sin() ** 2)


def test_two_draws_stay_two_draws_and_unread_ones_stay_too():
    def draw(x):
        torch.randn_like(x)
        return torch.randn_like(x) - torch.randn_like(x)

    module, calls = traced(draw, torch.ones(3))
    assert calls.count("aten.randn_like.default") == 3
    torch.manual_seed(0)
    expected = draw(torch.ones(3))
    torch.manual_seed(0)
    assert torch.equal(module(torch.ones(3)), expected)


def test_reads_around_a_write_are_not_shared():
    def write(x):
        view = x.view(-1)
        before = view.exp(), x.exp()
        x.add_(1)
        return *before, view.exp(), x.exp()

    x = torch.zeros(2, 2)
    module, _ = traced(write, x.clone())
    expected, got = write(x.clone()), module(x.clone())
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_writes_to_what_was_a_constant_happen_every_time():
    def write(x):
        total = torch.zeros(2)
        total.add_(x)
        total.add_(x)
        return total

    module, _ = traced(write, torch.ones(2))
    for _ in range(2):
        assert module(torch.ones(2)).tolist() == [2, 2]


def test_constants_are_computed_once():
    module, calls = traced(lambda x: x * (torch.arange(4) * 2 + 1).float().log(), torch.ones(4))
    assert calls == ["aten.mul.Tensor"]
    torch.testing.assert_close(module(torch.ones(4)), (torch.arange(4) * 2.0 + 1).log())


def test_equal_looking_numbers_of_other_types_are_not_the_same():
    _, calls = traced(lambda x: (torch.full_like(x, 1), torch.full_like(x, True, dtype=torch.bool)), torch.zeros(2))
    assert len(calls) == 2
