"""Rewrites of graphs: what may be shared, folded and dropped, and what may not."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pplmodels.infer.compile.passes import simplified


def traced(function, *args):
    module, _ = simplified(make_fx(function)(*args), list(args))
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


def test_somebody_elses_tensor_is_read_when_the_graph_runs():
    mine = torch.zeros(2)
    module, _ = traced(lambda x: x + mine.exp(), torch.ones(2))
    mine.fill_(1)
    torch.testing.assert_close(module(torch.ones(2)), torch.full((2,), 1 + torch.e))


def test_batch_normalisation_updates_its_means_as_often_as_it_runs():
    """Its schema does not say that it writes."""
    norm = torch.nn.BatchNorm1d(2)
    x = torch.randn(5, 2)

    def twice(x, mean, var):
        first = torch.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)[0]
        return first + torch.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)[0]

    _, calls = traced(twice, x, torch.zeros(2), torch.ones(2))
    assert sum("native_batch_norm" in call for call in calls) == 2  # its name has changed
    mean, var = torch.zeros(2), torch.ones(2)
    module, _ = traced(twice, x, mean.clone(), var.clone())
    module(x, mean, var)
    norm(x), norm(x)
    torch.testing.assert_close((mean, var), (norm.running_mean, norm.running_var))


def test_reads_through_another_input_of_the_same_memory_are_not_shared_around_a_write():
    def write(x, y):
        before = y.exp()
        x.add_(1)
        return before, y.exp()

    x = torch.zeros(2)
    module, _ = traced(write, x, x.view(-1))
    x = torch.zeros(2)
    before, after = module(x, x.view(-1))
    assert before.tolist() == [1, 1] and after[0] > 2


def test_inputs_that_nothing_reads_are_dropped():
    inputs = [torch.ones(1), torch.ones(2), torch.ones(3)]
    module, used = simplified(make_fx(lambda x, y, z: x + z)(*inputs), inputs)
    assert used == [0, 2] and module(inputs[0], inputs[2]).tolist() == [2, 2, 2]


def test_equal_looking_numbers_of_other_types_are_not_the_same():
    _, calls = traced(lambda x: (torch.full_like(x, 1), torch.full_like(x, True, dtype=torch.bool)), torch.zeros(2))
    assert len(calls) == 2
