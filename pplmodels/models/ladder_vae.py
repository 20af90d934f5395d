"""Ladder variational autoencoders: the generative model (Soenderby et al. 2016, arXiv 1602.02282)."""

import math
from collections.abc import Sequence
from functools import partial

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.memo import memoised
from pplmodels.models.likelihoods import Bernoulli
from pplmodels.models.priors import StandardNormal
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn.mlp import NormalHead, mlp


class LadderVAE(PairModule):
    """A hierarchy of latents, from abstract features at the top to the image at the bottom.

    .. code-block:: text

        p(x, z) = p(z_L) prod_{i=1..L-1} p(z_i | z_{i+1}) p(x | z_1)

        zL ~ N(0, I)
        zi ~ N(loc_i(z_{i+1}), variance_i(z_{i+1}))     one network per layer
        x  ~ Bernoulli(decoder(z1))

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  symbol in the paper
    ====  ============  ===========  ===========  ===================
    z1    real          (B)          (D_1)        z_1
    ...
    zL    real          (B)          (D_L)        z_L
    x     0, 1          (B)          an image's   x
    ====  ============  ===========  ===========  ===================

    Each network has two hidden layers with leaky ReLUs. Batch norm is applied to the hidden layers, the means and the
    inputs of the variances (sections 2.2 and 3). In evaluation mode, running statistics are used, and images are
    independent of each other.

    Arguments:
        image: (C, H, W).
        z_dims: D_1..D_L, bottom to top.
        hidden_dims: widths of the networks between the image and z_1, z_1 and z_2, ...
        batch_norm: whether to use batch norm.
    """

    role = "model"

    def __init__(
        self,
        image: Sequence[int] = (1, 28, 28),
        z_dims: Sequence[int] = (64, 32, 16, 8, 4),
        hidden_dims: Sequence[int] = (512, 256, 128, 64, 32),
        batch_norm: bool = True,
    ):
        super().__init__("ladder_vae")
        if not z_dims or len(z_dims) != len(hidden_dims):
            raise ValueError(
                f"z_dims ({len(z_dims)}) and hidden_dims ({len(hidden_dims)}) must both have one number per layer"
            )
        self.image, self.z_dims, self.hidden_dims = tuple(image), tuple(z_dims), tuple(hidden_dims)
        self.batch_norm = batch_norm
        self.dims = {f"z{layer}": (f"latent_{layer}",) for layer in range(1, len(z_dims) + 1)} | {"x": IMAGE_DIMS}
        self.top = StandardNormal(z_dims[-1])
        network = partial(mlp, activation="leaky-relu", batch_norm=batch_norm)
        self.layers = nn.ModuleList(
            nn.Sequential(network(above, (width, width)), NormalHead(width, dim, batch_norm))
            for dim, above, width in zip(z_dims, z_dims[1:], hidden_dims[1:], strict=False)
        )
        to_image = network(z_dims[0], (hidden_dims[0],) * 2, math.prod(image))
        self.decoder = nn.Sequential(to_image, nn.Unflatten(-1, self.image))
        self.likelihood = Bernoulli()

    @pyro_method
    @memoised
    def p_z(self, layer: int, above: Tensor | None = None) -> TorchDistributionMixin:
        """p(z_layer | z_{layer+1}), event shape (D_layer), from ``above (..., B, D_{layer+1})``, or p(z_L) if None."""
        if above is None:
            return self.top()
        loc, variance = self.layers[layer - 1](above)
        return dist.Normal(loc, variance.sqrt()).to_event(1)

    @pyro_method
    def p_x(self, z: Tensor) -> TorchDistributionMixin:
        """p(x | z_1) from ``z (..., B, D_1)``."""
        return self.likelihood(self.decoder(z))

    @pyro_method
    def codes(self) -> Tensor:
        """Sample all layers inside their plate, top-down; returns z_1."""
        drawn: list[Tensor] = []
        for layer in pyro.markov(range(len(self.z_dims), 0, -1)):
            drawn.append(pyro.sample(f"z{layer}", self.p_z(layer, drawn[-1] if drawn else None)))
        return drawn[-1]

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the images ``x (B, C, H, W)`` or sample ``n`` images; returns x."""
        with data_plate(n if x is None else len(x)):
            return pyro.sample("x", self.p_x(self.codes()), obs=x)
