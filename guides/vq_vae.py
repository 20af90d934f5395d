"""VQ-VAE: the guide (van den Oord et al. 2017, arXiv 1711.00937)."""

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor

from pplmodels.models.vq_vae import VQVAE
from pplmodels.module import PairModule, data_plate
from pplmodels.nn.residual import residual_encoder
from pplmodels.nn.vector_quantizer import straight_through


class VQGuide(PairModule):
    """Selects the code whose vector is nearest to the encoder's output, at each position of the map.

    .. code-block:: text

        z_e   = encoder(x)
        codes = argmin_k |z_e - e_k|^2
        z     = e(codes), with the gradient of z_e                     straight-through (section 3.2)

    In addition to the bound, there are two losses per image, summed over the map (equation 3). They move the codebook
    vectors toward z_e, unless they are running means, and z_e toward the vectors::

        codebook   = |sg(z_e) - e(codes)|^2,  commitment = beta |z_e - sg(e(codes))|^2

    Both are auxiliary factors of the guide, which are not part of any reported bound.

    =====  ============  ===========  ============  =======================
    site   support       batch shape  event shape   in the paper
    =====  ============  ===========  ============  =======================
    codes  0..K-1        (B)          (H/4, W/4)    deterministic
    z      real          (B)          (D, H/4, ..)  deterministic
    =====  ============  ===========  ============  =======================

    Arguments:
        model: provides the sizes and the codebook, which belongs to the model. Pass the model to
            :meth:`from_pretrained`, too.
        channels, blocks: arguments of the encoder (:func:`pplmodels.nn.residual.residual_encoder`).
        commitment: beta.
    """

    role = "guide"
    model: VQVAE

    def __init__(self, model: VQVAE, channels: int = 128, blocks: int = 2, commitment: float = 0.25):
        super().__init__("vq_guide")
        self.__dict__["model"] = model  # not a submodule: the guide neither owns nor saves it
        self.encoder = residual_encoder(model.image, channels, blocks, model.codebook.vectors.shape[1])
        self.commitment = commitment

    @pyro_method
    def q_codes(self, z_e: Tensor) -> TorchDistributionMixin:
        """q(codes | x), a single map, event shape (H/4, W/4), from ``z_e (..., B, D, H/4, W/4)``."""
        return dist.Delta(self.model.codebook.nearest(z_e), event_dim=2)

    @pyro_method
    def q_z(self, z_e: Tensor, e: Tensor) -> TorchDistributionMixin:
        """q(z | codes, x), a single value, event shape (D, H/4, W/4), from the codes' vectors ``e`` of that shape."""
        return dist.Delta(straight_through(z_e, e.detach()), event_dim=3)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Infer the codes of the images ``x (B, C, H, W)``. In training mode, this updates codebook statistics."""
        if x is None:
            raise ValueError("a VQ-VAE's guide infers latents from images: x is required")
        codebook = self.model.codebook
        with data_plate(len(x)):
            z_e = self.encoder(x)
            codes = pyro.sample("codes", self.q_codes(z_e))
            if self.training:
                codebook.update_ema(z_e, codes)
            e = codebook.embed(codes)
            if codebook.decay is None:
                apart = (z_e.detach() - e).square().sum((-3, -2, -1))
                pyro.factor("codebook", apart, has_rsample=True)
            apart = (z_e - e.detach()).square().sum((-3, -2, -1))
            pyro.factor("commitment", self.commitment * apart, has_rsample=True)
            pyro.sample("z", self.q_z(z_e, e))
            return codes

    @pyro_method
    def init_codebook(self, x: Tensor) -> None:
        """Initialize the codebook with encoder outputs for the images ``x (B, C, H, W)``."""
        self.model.codebook.init_from(self.encoder(x).detach())
