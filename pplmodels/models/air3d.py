"""AIR in three dimensions: inverse graphics (Eslami et al. 2016, arXiv 1603.08575, section 4.3)."""

from collections.abc import Sequence
from types import MappingProxyType

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor

from pplmodels.distributions import WrappedNormal
from pplmodels.distributions.presence import masked_bernoulli, presence_prior_logits
from pplmodels.distributions.wrapped_normal import EVEN
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn.renderer import KINDS, Renderer

Latents = tuple[Tensor, Tensor, Tensor, Tensor]


class AIR3D(PairModule):
    """An image is a rendering of a few solids on a table. The latents are the coordinates of the scene.

    .. code-block:: text

        p(x, z) = p(x | z) prod_{t=1..T} p(z_pres_t | z_pres_{t-1}) [p(z_kind_t) p(z_place_t) p(z_yaw_t)]^{z_pres_t}

        p(n)        proportional to k^n for n = 0..T solids; log k is the buffer `log_k`
        z_pres_t    ~ Bern(rho_t z_pres_{t-1}), as in AIR
        z_kind_t    ~ Categorical(1/4): sphere, cube, cylinder, cup
        z_place_t   ~ N(0, place_scale^2), the center of the solid's base; the table is [-1, 1]^2
        z_yaw_t     ~ uniform on the circle
        x           ~ N(render(z), pixel_scale^2)

    ==========  ============  ===========  ===========  ================================
    site        support       batch shape  event shape  symbol in the paper
    ==========  ============  ===========  ===========  ================================
    z_pres_t    {0, 1}        (B)          ()           z_pres^t, the unary code of n
    z_kind_t    {0..3}        (B)          ()           z_what^t, the identity
    z_place_t   real          (B)          (2)          z_where^t, the pose's position
    z_yaw_t     [-pi, pi]     (B)          ()           z_where^t, the pose's rotation
    x           real          (B)          (3, H, W)    x
    ==========  ============  ===========  ===========  ================================

    Sites are numbered by their step from 1. After the stop, z_pres is 0 and the other sites are masked. The decoder is
    the fixed :class:`pplmodels.nn.renderer.Renderer`, so the model has no parameters.

    Deviations: the paper uses a graphics engine with finite differences, while this renderer is soft and
    differentiable. The solids are not those of the paper.

    Arguments:
        image: (height, width) of the images in pixels.
        num_steps: T, the maximum number of solids.
        place_scale: standard deviation of a place, in halves of the table's side.
        pixel_scale: standard deviation of a pixel's channels around the rendering, a buffer that is annealed.
        log_k: log of the prior's ratio p(n+1)/p(n); a buffer.
    """

    role = "model"
    dims = MappingProxyType({"z_place": ("place",), "x": IMAGE_DIMS})
    coords = MappingProxyType({"place": ("x", "y"), "channel": ("red", "green", "blue")})
    pixel_scale: Tensor
    log_k: Tensor

    def __init__(
        self,
        image: Sequence[int] = (32, 32),
        num_steps: int = 3,
        place_scale: float = 0.45,
        pixel_scale: float = 0.1,
        log_k: float = 0.0,
    ):
        super().__init__("air3d")
        self.num_steps = num_steps
        self.place_scale = place_scale
        self.renderer = Renderer(image)
        self.register_buffer("pixel_scale", torch.tensor(pixel_scale, dtype=torch.get_default_dtype()))
        self.register_buffer("log_k", torch.tensor(log_k, dtype=torch.get_default_dtype()))

    @pyro_method
    def p_z_pres(self, logits: Tensor, present: Tensor) -> TorchDistributionMixin:
        """p(z_pres_t | z_pres_{t-1}), from ``logits ()`` of rho_t and ``present (B)``, the previous z_pres."""
        return masked_bernoulli(logits, present)

    @pyro_method
    def p_z_kind(self) -> TorchDistributionMixin:
        """p(z_kind_t), an index into :data:`pplmodels.nn.renderer.KINDS`."""
        return dist.Categorical(logits=self.log_k.new_zeros(len(KINDS)))

    @pyro_method
    def p_z_place(self) -> TorchDistributionMixin:
        """p(z_place_t), event shape (2)."""
        zeros = self.log_k.new_zeros(2)
        return dist.Normal(zeros, zeros + self.place_scale).to_event(1)

    @pyro_method
    def p_z_yaw(self) -> TorchDistributionMixin:
        """p(z_yaw_t)."""
        return WrappedNormal(self.log_k.new_zeros(()), EVEN)

    @pyro_method
    def p_x(self, z_pres: Tensor, z_kind: Tensor, z_place: Tensor, z_yaw: Tensor) -> TorchDistributionMixin:
        """p(x | z) from ``z_pres, z_kind, z_yaw (..., B, T)`` and ``z_place (..., B, T, 2)``."""
        return dist.Normal(self.render(z_pres, z_kind, z_place, z_yaw), self.pixel_scale).to_event(3)

    @pyro_method
    def render(self, z_pres: Tensor, z_kind: Tensor, z_place: Tensor, z_yaw: Tensor) -> Tensor:
        """The image without noise, ``(..., B, 3, H, W)``."""
        return self.renderer(z_pres, z_kind, z_place, z_yaw)

    @pyro_method
    def latents(self, n: int) -> Latents:
        """Sample the latents of ``n`` scenes inside their plate: z_pres, z_kind, z_yaw (n, T), z_place (n, T, 2)."""
        pres, kinds, places, yaws = [], [], [], []
        present = self.log_k.new_ones(n)
        for t, logits in enumerate(presence_prior_logits(self.log_k, self.num_steps).unbind(), start=1):
            present = pyro.sample(f"z_pres_{t}", self.p_z_pres(logits, present))
            seen = present > 0
            pres.append(present)
            kinds.append(pyro.sample(f"z_kind_{t}", self.p_z_kind().mask(seen)))
            places.append(pyro.sample(f"z_place_{t}", self.p_z_place().mask(seen)))
            yaws.append(pyro.sample(f"z_yaw_{t}", self.p_z_yaw().mask(seen)))
        return torch.stack(pres, -1), torch.stack(kinds, -1), torch.stack(places, -2), torch.stack(yaws, -1)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the images ``x (B, 3, H, W)`` or sample ``n`` images; returns x."""
        batch = n if x is None else len(x)
        if batch is None:
            raise ValueError("AIR3D needs either x, the images to score, or n, the number of images to sample")
        with data_plate(batch):
            latents = self.latents(batch)
            return pyro.sample("x", self.p_x(*latents), obs=x)
