"""What the benchmark compares with: the losses and gradients of stock Pyro, written by hand."""

import copy

import pyro
import pytest
from pyro.infer import TraceGraph_ELBO
from step_time import CASES


@pytest.mark.parametrize("case", CASES)
def test_by_hand_are_pyros_loss_and_gradients(case, float64):
    model, guide = CASES[case].build()
    twins, x = copy.deepcopy((model, guide)), CASES[case].images(4)
    x = x.double() if x.is_floating_point() else x
    pyro.set_rng_seed(1)
    loss, surrogate = CASES[case].losses(model, guide, x)
    surrogate.backward()
    pyro.set_rng_seed(1)
    assert float(loss) == pytest.approx(TraceGraph_ELBO().loss_and_grads(*twins, x), rel=1e-10)
    ours, pyros = ([p.grad for module in pair for p in module.parameters()] for pair in ((model, guide), twins))
    assert [g is None for g in ours] == [g is None for g in pyros]
    for one, other in zip(ours, pyros, strict=True):
        if one is not None:
            assert (one - other).norm() <= 1e-8 * other.norm()
