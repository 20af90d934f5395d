"""A bound that gradients can leave."""

import torch

from pplmodels.nn import projected_clamp


def test_values_are_clamped_and_gradients_only_lead_back(float64):
    x = torch.tensor([-9.0, -9.0, -1.0, 1.0, 9.0, 9.0], requires_grad=True)
    y = projected_clamp(x, torch.tensor(4.0))
    assert y.tolist() == [-4, -4, -1, 1, 4, 4]
    (y * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])).sum().backward()
    # descent moves against the gradient: at -9 only a negative one leads back, at 9 only a positive one
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]


def test_inside_the_bound_it_is_the_identity(float64):
    x = torch.linspace(-3.9, 3.9, 9, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: projected_clamp(x, torch.tensor(4.0)), x)
    assert torch.equal(projected_clamp(x, torch.tensor(4.0)), x)
