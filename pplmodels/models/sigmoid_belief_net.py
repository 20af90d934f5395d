"""Sigmoid belief networks: the generative model (Neal 1992, Artificial Intelligence 56)."""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.models.likelihoods import Bernoulli
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate


class SigmoidBeliefNet(PairModule):
    """Layers of binary units, each of which is a logistic regression on the layer above.

    .. code-block:: text

        p(x, z) = p(z_L) prod_{i=1..L-1} p(z_i | z_{i+1}) p(x | z_1)

        zL ~ Bernoulli(sigmoid(bias))
        zi ~ Bernoulli(sigmoid(weight_i z_{i+1} + bias_i))
        x  ~ Bernoulli(sigmoid(weight_0 z1 + bias_0))

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  in the paper
    ====  ============  ===========  ===========  ===================
    z1    0, 1          (B)          (D_1)        hidden units
    ...
    zL    0, 1          (B)          (D_L)        hidden units
    x     0, 1          (B)          an image's   visible units
    ====  ============  ===========  ===========  ===================

    Arguments:
        image: (C, H, W).
        hidden_dims: D_1..D_L, bottom to top. The default is the network of two layers of Mnih & Rezende 2016, arXiv
            1602.06725, section 5.
    """

    role = "model"

    def __init__(self, image: Sequence[int] = (1, 28, 28), hidden_dims: Sequence[int] = (200, 200)):
        super().__init__("sigmoid_belief_net")
        if not hidden_dims:
            raise ValueError("a sigmoid belief network needs at least one layer: hidden_dims is empty")
        self.image, self.hidden_dims = tuple(image), tuple(hidden_dims)
        layers = range(1, len(self.hidden_dims) + 1)
        self.dims = {f"z{layer}": (f"unit_{layer}",) for layer in layers} | {"x": IMAGE_DIMS}
        self.top = nn.Parameter(torch.zeros(self.hidden_dims[-1]))
        self.layers = nn.ModuleList(map(nn.Linear, self.hidden_dims[1:], self.hidden_dims))
        self.decoder = nn.Sequential(
            nn.Linear(self.hidden_dims[0], math.prod(self.image)), nn.Unflatten(-1, self.image)
        )
        self.likelihood = Bernoulli()

    @pyro_method
    def p_z(self, layer: int, above: Tensor | None = None) -> TorchDistributionMixin:
        """p(z_layer | z_{layer+1}), event shape (D_layer), from ``above (..., B, D_{layer+1})``, or p(z_L) if None."""
        return dist.Bernoulli(logits=self.top if above is None else self.layers[layer - 1](above)).to_event(1)

    @pyro_method
    def p_x(self, z: Tensor) -> TorchDistributionMixin:
        """p(x | z_1) from ``z (..., B, D_1)``."""
        return self.likelihood(self.decoder(z))

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the images ``x (B, C, H, W)`` or sample ``n`` images; returns x."""
        with data_plate(n if x is None else len(x)):
            drawn: list[Tensor] = []
            for layer in range(len(self.hidden_dims), 0, -1):
                drawn.append(pyro.sample(f"z{layer}", self.p_z(layer, drawn[-1] if drawn else None)))
            return pyro.sample("x", self.p_x(drawn[-1]), obs=x)
