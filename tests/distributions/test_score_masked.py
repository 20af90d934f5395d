"""A masked discrete site: equal to Pyro's where it is there, without a score where it is not."""

import pyro.distributions as dist
import torch

from pplmodels.distributions import Masked


def test_it_is_pyros_but_for_the_score_of_what_is_masked():
    logits = torch.randn(6, 4, requires_grad=True)
    mask = torch.tensor([True, False] * 3)
    base, value = dist.Categorical(logits=logits), torch.arange(6) % 4
    ours, pyros = Masked(base, mask).score_parts(value), base.mask(mask).score_parts(value)
    assert torch.equal(ours.log_prob, pyros.log_prob)
    assert torch.equal(ours.score_function[mask], pyros.score_function[mask])
    (slope,) = torch.autograd.grad(ours.score_function.sum(), logits)
    assert slope[mask].abs().min() > 0
    assert slope[~mask].abs().max() == 0


def test_it_stays_so_when_expanded():
    mask = torch.tensor([True, False])
    wide = Masked(dist.Categorical(logits=torch.zeros(2, 4)), mask).expand([3, 2])
    assert isinstance(wide, Masked)
    score = wide.score_parts(torch.zeros(3, 2)).score_function
    assert torch.equal(score == 0, ~mask.expand(3, 2))
