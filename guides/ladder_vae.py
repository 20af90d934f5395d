"""Ladder variational autoencoders: the guide (Soenderby et al. 2016, arXiv 1602.02282)."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.models.ladder_vae import LadderVAE
from pplmodels.module import PairModule, data_plate
from pplmodels.nn.mlp import NormalHead, mlp

Message = tuple[Tensor, Tensor]  # mean and variance of the image's bottom-up estimate of a layer


class LadderGuide(PairModule):
    """Combines a bottom-up estimate of each layer from the image with the model's top-down prior of that layer.

    .. code-block:: text

        d_0 = x,  d_i = network_i(d_{i-1}),  (loc^_i, variance^_i) = head_i(d_i)             bottom up, once

        q(z | x) = q(z_L | x) prod_{i=1..L-1} q(z_i | z_{i+1}, x)
        zL ~ N(loc^_L, variance^_L)
        zi ~ N(loc^_i, variance^_i) N(loc_i(z_{i+1}), variance_i(z_{i+1})), normalized       top down

    The second factor is the model's p(z_i | z_{i+1}) given the sample of the layer above (equations 8 to 10 and
    figure 1). So model and guide share the top-down path, and the bottom-up estimate only has to correct it.

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  in the paper
    ====  ============  ===========  ===========  ===================
    z1    real          (B)          (D_1)        reparameterized
    ...
    zL    real          (B)          (D_L)        reparameterized
    ====  ============  ===========  ===========  ===================

    Arguments:
        model: provides the sizes and the top-down path. Its parameters belong to the model, but also get gradients
            through the guide. Pass the model to :meth:`from_pretrained`, too.
    """

    role = "guide"
    model: LadderVAE

    def __init__(self, model: LadderVAE):
        super().__init__("ladder_guide")
        self.__dict__["model"] = model  # not a submodule: the guide neither owns nor saves it
        below, layers, heads = math.prod(model.image), [], []
        for dim, width in zip(model.z_dims, model.hidden_dims, strict=True):
            layers.append(mlp(below, (width, width), activation="leaky-relu", batch_norm=model.batch_norm))
            heads.append(NormalHead(width, dim, model.batch_norm))
            below = width
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)

    @pyro_method
    def bottom_up(self, x: Tensor) -> list[Message]:
        """Bottom-up estimates from ``x (..., B, C, H, W)``: (loc^_i, variance^_i) per layer, both ``(..., B, D_i)``."""
        features, bottom_up = x.flatten(-3), []
        for layer, head in zip(self.layers, self.heads, strict=True):
            features = layer(features)
            bottom_up.append(head(features))
        return bottom_up

    @pyro_method
    def q_z(self, layer: int, message: Message, above: Tensor | None) -> TorchDistributionMixin:
        """q(z_layer | z_{layer+1}, x), event shape (D_layer); ``above`` is None for the top layer."""
        if above is None:
            loc, variance = message
        else:
            loc, variance = product_of_gaussians(message, self.model.p_z(layer, above))
        return dist.Normal(loc, variance.sqrt()).to_event(1)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Sample the latents of the images ``x (B, C, H, W)``; returns z_1. ``n`` is unused here."""
        if x is None:
            raise ValueError("a ladder's guide infers latents from images: x is required")
        with data_plate(len(x)):
            bottom_up = self.bottom_up(x)
            drawn: list[Tensor] = []
            for layer in pyro.markov(range(len(bottom_up), 0, -1)):
                above = drawn[-1] if drawn else None
                drawn.append(pyro.sample(f"z{layer}", self.q_z(layer, bottom_up[layer - 1], above)))
            return drawn[-1]


def product_of_gaussians(message: Message, expected: torch.distributions.Distribution) -> Message:
    """Mean and variance of the normalized product of two normals, ``message`` and ``expected``; precisions add up."""
    loc, variance = message
    share = expected.variance / (expected.variance + variance)  # weight of the message
    return expected.mean + share * (loc - expected.mean), share * variance
