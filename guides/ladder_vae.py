"""Ladder variational autoencoders: the inference half (Soenderby et al. 2016, arXiv 1602.02282)."""

import math

import pyro
import pyro.distributions as dist
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.models.ladder_vae import LadderVAE
from pplmodels.module import PairModule, data_plate
from pplmodels.nn.mlp import NormalHead, mlp

Message = tuple[Tensor, Tensor]  # mean and variance of what the image says of a layer


class LadderGuide(PairModule):
    """What the image says of a layer, weighed against what the layer above leads the model to expect.

    .. code-block:: text

        d_0 = x,  d_i = network_i(d_{i-1}),  (loc^_i, variance^_i) = head_i(d_i)             bottom up, once

        q(z | x) = q(z_L | x) prod_{i=1..L-1} q(z_i | z_{i+1}, x)
        zL ~ N(loc^_L, variance^_L)
        zi ~ N(loc^_i, variance^_i) N(loc_i(z_{i+1}), variance_i(z_{i+1})), normalised       top down

    The second factor is the model's p(z_i | z_{i+1}) at the code above that was just sampled (equations 8 to 10 and
    figure 1): the two halves share the way down, and the image only has to correct it.

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  in the paper
    ====  ============  ===========  ===========  ===================
    z1    real          (B)          (D_1)        reparameterised
    ...
    zL    real          (B)          (D_L)        reparameterised
    ====  ============  ===========  ===========  ===================

    Arguments:
        model: gives the sizes and the way down. Its parameters stay the model's, and the gradient of the bound reaches
            them through the guide as well; :meth:`from_pretrained` is given the model again.
    """

    role = "guide"

    def __init__(self, model: LadderVAE):
        super().__init__("ladder_guide")
        self.__dict__["model"] = model  # not a submodule: the guide neither owns nor saves it
        below, layers, heads = math.prod(model.image), [], []
        for dim, width in zip(model.z_dims, model.hidden_dims, strict=True):
            options = {"activation": "leaky-relu", "batch_norm": model.batch_norm}
            layers.append(mlp(below, (width, width), **options))
            heads.append(NormalHead(width, dim, model.batch_norm))
            below = width
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)

    @pyro_method
    def messages(self, x: Tensor) -> list[Message]:
        """What ``x (..., B, C, H, W)`` says of each layer: (loc^_i, variance^_i), both ``(..., B, D_i)``."""
        features, messages = x.flatten(-3), []
        for layer, head in zip(self.layers, self.heads, strict=True):
            features = layer(features)
            messages.append(head(features))
        return messages

    @pyro_method
    def q_z(self, layer: int, message: Message, above: Tensor | None) -> dist.Distribution:
        """q(z_layer | z_{layer+1}, x), event shape (D_layer); ``above`` is None for the top layer."""
        if above is None:
            loc, variance = message
        else:
            loc, variance = merge(message, self.model.p_z(layer, above))
        return dist.Normal(loc, variance.sqrt()).to_event(1)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Sample the codes of the images ``x (B, C, H, W)``, return z_1; ``n`` is the model's and unused here."""
        if x is None:
            raise ValueError("a ladder's guide infers codes from images: x is required")
        with data_plate(len(x)):
            messages, z = self.messages(x), None
            for layer in pyro.markov(range(len(messages), 0, -1)):
                z = pyro.sample(f"z{layer}", self.q_z(layer, messages[layer - 1], z))
            return z


def merge(message: Message, expected: dist.Distribution) -> Message:
    """Mean and variance of the normalised product of two normals, ``message`` and ``expected``: precisions add up."""
    loc, variance = message
    share = expected.variance / (expected.variance + variance)  # of what the message says
    return expected.mean + share * (loc - expected.mean), share * variance
