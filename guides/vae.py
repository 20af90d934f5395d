"""Variational autoencoders: the guide (Kingma & Welling 2014, arXiv 1312.6114)."""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.nn.functional import softplus

from pplmodels.models.priors import identity_made
from pplmodels.module import PairModule, data_plate
from pplmodels.nn import ImageRowEncoder, conv_encoder, mlp


class VAEGuide(PairModule):
    """An encoder that outputs the mean and the scale of each image's latent.

    .. code-block:: text

        q(z | x) = N(loc, scale^2),  (loc, scale) = encoder(x)

    With ``flow``, a sample of this normal is transformed by one autoregressive step, which is the same for all images
    (inverse autoregressive flow, Kingma et al. 2016, arXiv 1606.04934). This posterior is as flexible as a flow prior.

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  in the paper
    ====  ============  ===========  ===========  ===================
    z     real          (B)          (D)          reparameterized
    ====  ============  ===========  ===========  ===================

    Arguments:
        encoder: a module from ``x (..., B, C, H, W)`` to ``(..., B, 2 D)``.
        z_dim: D.
        flow: hidden layer widths of the step's MADE, or None for a normal posterior.
    """

    role = "guide"

    def __init__(self, encoder: nn.Module, z_dim: int, flow: Sequence[int] | None = None):
        super().__init__("vae_guide")
        self.encoder = encoder
        self.network = identity_made(z_dim, flow) if flow else None

    @pyro_method
    def q_z(self, x: Tensor) -> TorchDistributionMixin:
        """q(z | x), event shape (D), from ``x (..., B, C, H, W)``."""
        loc, raw = self.encoder(x).chunk(2, -1)
        normal = dist.Normal(loc, softplus(raw)).to_event(1)
        if self.network is None:
            return normal
        return dist.TransformedDistribution(normal, [AffineAutoregressive(self.network)])

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Sample the latents of the images ``x (B, C, H, W)``. ``n`` is an argument of the model and unused here."""
        if x is None:
            raise ValueError("a VAE's guide infers latents from images: x is required")
        with data_plate(len(x)):
            return pyro.sample("z", self.q_z(x))


class MLPGuide(VAEGuide):
    """A fully connected encoder of images (C, H, W). Arguments are as for :class:`pplmodels.MLPVAE`, reversed."""

    def __init__(
        self,
        image: Sequence[int] = (1, 28, 28),
        z_dim: int = 64,
        hidden_dims: Sequence[int] = (800, 800),
        activation: str = "silu",
    ):
        net = mlp(math.prod(image), hidden_dims, 2 * z_dim, activation)
        super().__init__(nn.Sequential(nn.Flatten(-3), net), z_dim)


class VectorGuide(VAEGuide):
    """A small fully connected encoder of vectors. Arguments are as for :class:`pplmodels.VectorVAE`."""

    def __init__(self, x_dim: int = 2, z_dim: int = 2, hidden_dims: Sequence[int] = (32,)):
        super().__init__(mlp(x_dim, hidden_dims, 2 * z_dim), z_dim)


class ConvGuide(VAEGuide):
    """A convolutional encoder of images (C, H, W).

    Arguments:
        image, z_dim: as for :class:`pplmodels.ConvVAE`.
        channels: channels of the convolutions, fine to coarse. Each one except the first halves the sides.
        flow: as for :class:`VAEGuide`.
    """

    def __init__(
        self,
        image: Sequence[int] = (3, 32, 32),
        z_dim: int = 16,
        channels: Sequence[int] = (32, 64, 128, 256),
        flow: Sequence[int] | None = None,
    ):
        super().__init__(conv_encoder(image, channels, 2 * z_dim), z_dim, flow)


class LSTMGuide(VAEGuide):
    """An LSTM encoder that reads the rows of an image (C, H, W) from top to bottom.

    Arguments:
        image, z_dim: as for :class:`pplmodels.ConvVAE`.
        hidden_dim: size of the LSTM's state.
    """

    def __init__(self, image: Sequence[int] = (1, 28, 28), z_dim: int = 16, hidden_dim: int = 256):
        super().__init__(ImageRowEncoder(image, hidden_dim, 2 * z_dim), z_dim)
