"""VQ-VAE: the generative model (van den Oord et al. 2017, arXiv 1711.00937)."""

from collections.abc import Sequence
from types import MappingProxyType

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor

from pplmodels.models.likelihoods import LIKELIHOODS
from pplmodels.models.pixelcnn import GatedPixelCNN, PixelCNN
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn.residual import latent_grid_shape, residual_decoder
from pplmodels.nn.vector_quantizer import Codebook

MAP = ("map_row", "map_column")  # dimensions


class VQVAE(PairModule):
    """A VAE with one map of discrete codes per image.

    .. code-block:: text

        p(x, codes) = p(codes) p(x | z = e(codes))

        codes ~ uniform over K at each position, or a PixelCNN
        z     = e(codes)                                codebook vectors
        x     ~ likelihood(decoder(z))

    =====  ============  ===========  ============  ===================
    site   support       batch shape  event shape   symbol in the paper
    =====  ============  ===========  ============  ===================
    codes  0..K-1        (B)          (H/4, W/4)    z
    z      real          (B)          (D, H/4, ..)  z_q, e_k
    x      likelihood's  (B)          (C, H, W)     x
    =====  ============  ===========  ============  ===================

    z is determined by the codes. It is a site so that the guide can pass the same value with the encoder's gradient
    (straight-through estimator). At this value, log p(z | codes) is 0.

    Arguments:
        image: (C, H, W); H and W are multiples of 4.
        codes: K.
        dim: D.
        channels, blocks: arguments of the decoder (:func:`pplmodels.nn.residual.residual_decoder`).
        likelihood: a name in :data:`pplmodels.models.likelihoods.LIKELIHOODS`.
        decay: decay of the codebook's running means; None to learn it by gradient.
    """

    role = "model"
    dims = MappingProxyType({"codes": MAP, "z": ("vector", *MAP), "x": IMAGE_DIMS})
    prior: PixelCNN | GatedPixelCNN | None  # None: uniform

    def __init__(
        self,
        image: Sequence[int] = (3, 32, 32),
        codes: int = 128,
        dim: int = 256,
        channels: int = 128,
        blocks: int = 2,
        likelihood: str = "logistic",
        decay: float | None = 0.99,
    ):
        super().__init__("vq_vae")
        self.image, self.grid = tuple(image), latent_grid_shape(image)
        self.codebook = Codebook(codes, dim, decay)
        self.likelihood = LIKELIHOODS[likelihood](image[0])
        self.decoder = residual_decoder(dim, channels, blocks, self.likelihood.num_params(image[0]))
        self.__dict__["prior"] = None

    def use_prior(self, prior: PixelCNN | GatedPixelCNN | None) -> None:
        """Use a trained prior for the codes; None stands for the uniform one. It is neither trained nor saved here.

        Raises ValueError if the prior is one of other maps or of another number of values.
        """
        if prior is not None and (prior.grid, prior.levels) != (self.grid, len(self.codebook)):
            raise ValueError(
                f"the prior models {prior.grid} maps of {prior.levels} values, but the codes are {self.grid} maps of "
                f"{len(self.codebook)} values"
            )
        self.__dict__["prior"] = prior  # not a submodule

    @pyro_method
    def p_codes(self) -> TorchDistributionMixin:
        """p(codes), event shape (H/4, W/4)."""
        if self.prior is not None:
            return self.prior.p_x()
        levels = self.codebook.vectors
        return dist.Categorical(logits=levels.new_zeros(*self.grid, len(levels))).to_event(2)

    @pyro_method
    def p_z(self, codes: Tensor) -> TorchDistributionMixin:
        """p(z | codes), event shape (D, H/4, W/4), from ``codes (..., B, H/4, W/4)``."""
        return dist.Delta(self.codebook.embed(codes), event_dim=3)

    @pyro_method
    def p_x(self, z: Tensor) -> TorchDistributionMixin:
        """p(x | z) from ``z (..., B, D, H/4, W/4)``."""
        return self.likelihood(self.decoder(z))

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the images ``x (B, C, H, W)`` or sample ``n`` images; returns x."""
        with data_plate(n if x is None else len(x)):
            codes = pyro.sample("codes", self.p_codes())
            z = pyro.sample("z", self.p_z(codes))
            return pyro.sample("x", self.p_x(z), obs=x)
