"""The split LSTM cell against torch's."""

import torch

from pplmodels.nn import ContextLSTMCell


def test_equals_torch_on_the_concatenation(float64):
    ours, torchs = ContextLSTMCell(5, 3, 4), torch.nn.LSTMCell(8, 4)
    with torch.no_grad():
        torchs.weight_ih.copy_(torch.cat([ours.context.weight, ours.recurrent.weight[:, :3]], 1))
        torchs.weight_hh.copy_(ours.recurrent.weight[:, 3:])
        torchs.bias_ih.copy_(ours.context.bias)
        torchs.bias_hh.zero_()
    context, state = torch.randn(2, 5), (torch.randn(2, 4), torch.randn(2, 4))
    gates = ours.gates(context)
    expected = state
    for _ in range(3):
        z = torch.randn(2, 3)
        state = ours(gates, z, state)
        expected = torchs(torch.cat([context, z], -1), expected)
        torch.testing.assert_close(state, expected)
