"""Sigmoid belief networks: the guide, a network in the opposite direction (Mnih & Gregor 2014, arXiv 1402.0030)."""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.module import PairModule, data_plate


class SigmoidBeliefGuide(PairModule):
    """A sigmoid belief network from the image to the top layer.

    .. code-block:: text

        q(z | x) = q(z_1 | x) prod_{i=2..L} q(z_i | z_{i-1})

        z1 ~ Bernoulli(sigmoid(weight_1 x + bias_1))
        zi ~ Bernoulli(sigmoid(weight_i z_{i-1} + bias_i))

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  in the paper
    ====  ============  ===========  ===========  ===================
    z1    0, 1          (B)          (D_1)        score function
    ...
    zL    0, 1          (B)          (D_L)        score function
    ====  ============  ===========  ===========  ===================

    Arguments:
        image, hidden_dims: as for :class:`pplmodels.SigmoidBeliefNet`.
    """

    role = "guide"

    def __init__(self, image: Sequence[int] = (1, 28, 28), hidden_dims: Sequence[int] = (200, 200)):
        super().__init__("sigmoid_belief_guide")
        self.layers = nn.ModuleList(map(nn.Linear, (math.prod(image), *hidden_dims), hidden_dims))

    @pyro_method
    def q_z(self, layer: int, below: Tensor) -> TorchDistributionMixin:
        """q(z_layer | z_{layer-1}), event shape (D_layer), from the layer below; the image is flattened for z_1."""
        return dist.Bernoulli(logits=self.layers[layer - 1](below)).to_event(1)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Sample the units of the images ``x (B, C, H, W)``; returns z_L. ``n`` is unused here."""
        if x is None:
            raise ValueError("a sigmoid belief network's guide infers units from images: x is required")
        with data_plate(len(x)):
            below = x.flatten(-3)
            for layer in range(1, len(self.layers) + 1):
                below = pyro.sample(f"z{layer}", self.q_z(layer, below))
            return below
