"""The running moments of a neural baseline."""

import torch

from pplmodels.infer import NeuralBaseline


def test_moments_are_plain_averages_at_first(float64):
    baseline = NeuralBaseline(2, 2, hidden_dim=4)
    costs, signals = torch.randn(5, 1000) * 3 + 50, torch.randn(5, 1000) * 2
    for cost, signal in zip(costs, signals, strict=True):
        baseline.update_moments(cost, signal, torch.ones(1000))
    torch.testing.assert_close(baseline.cost_mean, costs.mean())
    torch.testing.assert_close(baseline.signal_std(), signals.square().mean().sqrt())
    assert 2.9 < float(baseline.cost_var.sqrt()) < 3.1


def test_predictions_are_in_nats():
    baseline = NeuralBaseline(2, 2, hidden_dim=4)
    baseline.cost_mean.fill_(300.0)
    baseline.cost_var.fill_(100.0)
    context, state = torch.randn(6, 2), torch.randn(6, 2)
    hidden = (baseline.context(context) + baseline.state(state)).relu()
    torch.testing.assert_close(
        baseline(baseline.context(context), state, torch.ones(6)), 300 + 10 * baseline.head(hidden).squeeze(-1)
    )


def test_a_small_signal_is_not_blown_up():
    baseline = NeuralBaseline(2, 2)
    baseline.update_moments(torch.randn(10), 1e-3 * torch.randn(10), torch.ones(10))
    assert float(baseline.signal_std()) == 1.0


def test_images_without_a_choice_do_not_count():
    baseline, alone = NeuralBaseline(2, 2), NeuralBaseline(2, 2)
    cost, signal = torch.randn(10), torch.randn(10)
    baseline.update_moments(
        torch.cat([cost, torch.full((5,), 1e6)]), torch.cat([signal, torch.full((5,), 1e6)]), torch.arange(15) < 10
    )
    alone.update_moments(cost, signal, torch.ones(10))
    before = {name: value.clone() for name, value in baseline.named_buffers()}
    for name, value in alone.named_buffers():
        torch.testing.assert_close(before[name], value)
    baseline.update_moments(cost, signal, torch.zeros(10))
    assert all(torch.equal(value, before[name]) for name, value in baseline.named_buffers())
