"""The noise of gradient estimates, where it is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

from pplmodels.infer import SVI
from pplmodels.metrics import gradient_variance


class Model(PyroModule):
    def __init__(self):
        super().__init__("noise_model")

    def forward(self, n):
        with pyro.plate("data", n):
            pyro.sample("z", dist.Normal(torch.zeros(n), 1.0))


class Guide(PyroModule):
    """q(z) = N(loc, scale^2), and a buffer that counts its runs."""

    def __init__(self, loc):
        super().__init__("noise_guide")
        self.loc = torch.nn.Parameter(torch.tensor(loc))
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, n):
        self.runs += 1
        with pyro.plate("data", n):
            pyro.sample("z", dist.Normal(self.loc, self.scale).expand([n]))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_variance_is_the_known_one_and_nothing_is_moved(compiled):
    """The bound is -z^2/2 + const with z = loc + scale eps: d/dloc = -z, so its mean over n images varies by scale^2/n.

    The estimate over 3,000 repeats has a relative standard error of (2 / 3000)^0.5 = 2.6 %.
    """
    guide = Guide(0.7)
    svi = SVI(Model(), guide, torch.optim.SGD(guide.parameters(), lr=0.1), compile=compiled)
    svi.step(4)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    generator = torch.get_rng_state()
    variance = gradient_variance(svi, (4,), [guide.loc], repeats=3000)
    assert variance == pytest.approx(float(guide.scale.detach()) ** 2 / 4, rel=0.11)
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
