"""Variational autoencoders: the generative model (Kingma & Welling 2014, arXiv 1312.6114)."""

import math
from collections.abc import Sequence
from types import MappingProxyType

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.models import likelihoods
from pplmodels.models.priors import AutoregressiveFlow, StandardNormal
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn import conv_decoder, mlp


class VAE(PairModule):
    """A VAE with one latent vector per image.

    .. code-block:: text

        p(x, z) = p(z) p(x | z)

        z ~ prior()
        x ~ likelihood(decoder(z))

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  symbol in the paper
    ====  ============  ===========  ===========  ===================
    z     real          (B)          (D)          z
    x     likelihood's  (B)          an image's   x
    ====  ============  ===========  ===========  ===================

    Arguments:
        prior: a module that returns a distribution over latents, such as those of :mod:`pplmodels.models.priors`.
        decoder: a module from latents ``(..., D)`` to the parameters of the likelihood.
        likelihood: a module from these parameters to a distribution, as in :mod:`pplmodels.models.likelihoods`.
    """

    role = "model"
    dims = MappingProxyType({"z": ("latent",)})

    def __init__(self, prior: nn.Module, decoder: nn.Module, likelihood: nn.Module):
        super().__init__("vae")
        self.prior, self.decoder, self.likelihood = prior, decoder, likelihood

    @pyro_method
    def p_z(self) -> TorchDistributionMixin:
        """p(z), event shape (D)."""
        return self.prior()

    @pyro_method
    def p_x(self, z: Tensor) -> TorchDistributionMixin:
        """p(x | z) from ``z (..., B, D)``."""
        return self.likelihood(self.decoder(z))

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the images ``x (B, C, H, W)`` or sample ``n`` images; returns x."""
        with data_plate(n if x is None else len(x)):
            z = pyro.sample("z", self.p_z())
            return pyro.sample("x", self.p_x(z), obs=x)


class MLPVAE(VAE):
    """A VAE of binary images with a fully connected decoder, the mirror image of :class:`guides.MLPGuide`.

    Arguments:
        image: (C, H, W).
        z_dim: D.
        hidden_dims: hidden layer widths, from the latent to the image.
        activation: a name in :data:`pplmodels.nn.mlp.ACTIVATIONS`.
    """

    dims = MappingProxyType({**VAE.dims, "x": IMAGE_DIMS})

    def __init__(
        self,
        image: Sequence[int] = (1, 28, 28),
        z_dim: int = 64,
        hidden_dims: Sequence[int] = (800, 800),
        activation: str = "silu",
    ):
        net = mlp(z_dim, hidden_dims, math.prod(image), activation)
        decoder = nn.Sequential(net, nn.Unflatten(-1, tuple(image)))
        super().__init__(StandardNormal(z_dim), decoder, likelihoods.Bernoulli())


class VectorVAE(VAE):
    """A VAE of vectors with a small fully connected decoder, which outputs mean and scale of a diagonal normal.

    Arguments:
        x_dim: size of the vectors.
        z_dim: D.
        hidden_dims: hidden layer widths, from the latent to the vector.
    """

    dims = MappingProxyType({**VAE.dims, "x": ("coordinate",)})

    def __init__(self, x_dim: int = 2, z_dim: int = 2, hidden_dims: Sequence[int] = (32,)):
        likelihood = likelihoods.DiagonalNormal()
        super().__init__(StandardNormal(z_dim), mlp(z_dim, hidden_dims, likelihood.num_params(x_dim)), likelihood)


class ConvVAE(VAE):
    """A VAE of images with a transposed-convolution decoder. With ``flow``, it is a VLAE without its local decoder.

    Arguments:
        image: (C, H, W).
        z_dim: D.
        channels, refine: arguments of the decoder (:func:`pplmodels.nn.conv_decoder`).
        likelihood: a name in :data:`pplmodels.models.likelihoods.LIKELIHOODS`.
        flow: hidden layer widths of the MADE of an autoregressive prior
            (:class:`pplmodels.models.priors.AutoregressiveFlow`); None for a standard normal.
    """

    dims = MappingProxyType({**VAE.dims, "x": IMAGE_DIMS})

    def __init__(
        self,
        image: Sequence[int] = (3, 32, 32),
        z_dim: int = 16,
        channels: Sequence[int] = (128, 128, 64, 32),
        refine: bool = True,
        likelihood: str = "mixture",
        flow: Sequence[int] | None = None,
    ):
        prior = AutoregressiveFlow(z_dim, flow) if flow else StandardNormal(z_dim)
        of_images = likelihoods.LIKELIHOODS[likelihood](image[0])
        decoder = conv_decoder(z_dim, channels, image, of_images.num_params(image[0]), refine)
        super().__init__(prior, decoder, of_images)
