"""Attend, Infer, Repeat: the generative model (Eslami et al. 2016, arXiv 1603.08575)."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor

from pplmodels.distributions.presence import masked_bernoulli, presence_prior_logits
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn import mlp, write_window


class AIR(PairModule):
    """A scene is the sum of a few objects, each with a position and an appearance.

    .. code-block:: text

        p(x, z) = p(x | z) prod_{t=1..T} p(z_pres_t | z_pres_{t-1}) [p(z_where_t) p(z_what_t)]^{z_pres_t}

        p(n)       proportional to k^n for n = 0..T objects; log k is the buffer `log_k`
        z_pres_t   ~ Bern(rho_t z_pres_{t-1}),  rho_t = P(n >= t | n >= t-1),  z_pres_0 = 1
        z_where_t  ~ N(where_loc, where_scale^2)
        z_what_t   ~ N(0, I)
        x          ~ N(sum_t z_pres_t write(decode(z_what_t), z_where_t), pixel_scale^2)

    ==========  ============  ===========  ===========  ==========================
    site        support       batch shape  event shape  symbol in the paper
    ==========  ============  ===========  ===========  ==========================
    z_pres_t    {0, 1}        (B)          ()           z_pres^t, the unary code of n
    z_where_t   real          (B)          (3)          z_where^t = (log s, x, y)
    z_what_t    real          (B)          (D)          z_what^t
    x           real          (B)          (C, H, W)    x
    ==========  ============  ===========  ===========  ==========================

    Sites are numbered by their step from 1, ``z_pres_1`` to ``z_pres_T``. After the stop, z_pres is 0 and the other
    two sites are masked: their values do not affect log-probabilities.

    Source: sections 2 and 3.1 and the supplement. Deviations: the scale is stored as a logarithm
    (:mod:`pplmodels.nn.spatial_transformer`), so that no window is empty. The prior over counts is truncated at T, so
    that ``log_k`` has the same meaning for every T. Object intensities are the sigmoid of logits with a negative
    initial bias. So objects are initially dark, and the guide does not learn to infer empty scenes.

    Arguments:
        canvas: (C, H, W) of the scenes; intensities are in [0, 1].
        num_steps: T, the maximum number of objects.
        what_dim: D, the size of an object's appearance code.
        window: side of an object's image in pixels.
        hidden_dims: hidden layer widths of the decoder.
        where_loc, where_scale: mean and standard deviation of (log s, x, y).
        pixel_scale: standard deviation of a pixel around the canvas.
        log_k: log of the prior's ratio p(n+1)/p(n), a buffer that is annealed in training.
        decoder_bias: initial bias of the object's logits.
    """

    role = "model"
    dims = MappingProxyType({"z_where": ("where",), "z_what": ("what",), "x": IMAGE_DIMS})
    coords = MappingProxyType({"where": ("log_size", "x", "y")})
    where_loc: Tensor
    where_scale: Tensor
    log_k: Tensor

    def __init__(
        self,
        canvas: Sequence[int] = (1, 50, 50),
        num_steps: int = 3,
        what_dim: int = 50,
        window: int = 28,
        hidden_dims: Sequence[int] = (200,),
        where_loc: Sequence[float] = (math.log(0.35), 0.0, 0.0),
        where_scale: Sequence[float] = (0.1, 0.4, 0.4),
        pixel_scale: float = 0.3,
        log_k: float = math.log(0.1),
        decoder_bias: float = -2.0,
    ):
        super().__init__("air")
        self.canvas = tuple(canvas)
        self.num_steps = num_steps
        self.what_dim = what_dim
        self.window = window
        self.pixel_scale = pixel_scale
        self.decoder = mlp(what_dim, hidden_dims, self.canvas[0] * window**2)
        torch.nn.init.constant_(self.decoder[-1].get_parameter("bias"), decoder_bias)
        self.register_buffer("where_loc", torch.tensor(where_loc, dtype=torch.get_default_dtype()))
        self.register_buffer("where_scale", torch.tensor(where_scale, dtype=torch.get_default_dtype()))
        self.register_buffer("log_k", torch.tensor(log_k, dtype=torch.get_default_dtype()))

    @pyro_method
    def presence_logits(self) -> Tensor:
        """Logits of rho_1..rho_T, (T), from :func:`presence_prior_logits`."""
        return presence_prior_logits(self.log_k, self.num_steps)

    @pyro_method
    def p_z_pres(self, logits: Tensor, present: Tensor) -> TorchDistributionMixin:
        """p(z_pres_t | z_pres_{t-1}), from ``logits ()`` of rho_t and ``present (B)``, the previous z_pres."""
        return masked_bernoulli(logits, present)

    @pyro_method
    def p_z_where(self) -> TorchDistributionMixin:
        """p(z_where_t), event shape (3)."""
        return dist.Normal(self.where_loc, self.where_scale).to_event(1)

    @pyro_method
    def p_z_what(self) -> TorchDistributionMixin:
        """p(z_what_t), event shape (D)."""
        zeros = self.where_loc.new_zeros(self.what_dim)
        return dist.Normal(zeros, zeros + 1).to_event(1)

    @pyro_method
    def p_x(self, z_pres: Tensor, z_where: Tensor, z_what: Tensor) -> TorchDistributionMixin:
        """p(x | z) from ``z_pres (..., B, T), z_where (..., B, T, 3), z_what (..., B, T, D)``."""
        return dist.Normal(self.render(z_pres, z_where, z_what), self.pixel_scale).to_event(3)

    @pyro_method
    def decode(self, z_what: Tensor) -> Tensor:
        """The images of objects, ``(..., D) -> (..., C, window, window)`` in [0, 1]."""
        return self.decoder(z_what).sigmoid().unflatten(-1, (self.canvas[0], self.window, self.window))

    @pyro_method
    def render(self, z_pres: Tensor, z_where: Tensor, z_what: Tensor) -> Tensor:
        """The canvas of :meth:`p_x`, ``(..., B, C, H, W)``, which is exactly black outside of objects."""
        return torch.einsum("...t,...tchw->...chw", z_pres, self.object_changes(z_where, z_what))

    @pyro_method
    def object_changes(self, z_where: Tensor, z_what: Tensor, ground: Tensor | None = None) -> Tensor:
        """The change that each object makes to the canvas, ``(..., B, T, C, H, W)`` in the order of the steps.

        All objects are taken to be present. ``ground (..., B, C, H, W)`` is the canvas before the first of them, which
        does not affect what objects add.
        """
        return write_window(self.decode(z_what), z_where, *self.canvas[1:])

    def scene_changes(self, latents: Mapping[str, Tensor]) -> Tensor:
        """:meth:`object_changes` at the values of the sites, which are named as in the guide's trace."""
        numbers = range(1, self.num_steps + 1)
        z_where, z_what = (torch.stack([latents[f"{site}_{t}"] for t in numbers], -2) for site in ("z_where", "z_what"))
        return self.object_changes(z_where, z_what)

    @pyro_method
    def latents(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the latents of ``n`` scenes inside their plate: z_pres (n, T), z_where (n, T, 3), z_what (n, T, D)."""
        z_pres, z_where, z_what = [], [], []
        present = self.where_loc.new_ones(n)
        p_z_where, p_z_what = self.p_z_where(), self.p_z_what()
        for t, logits in enumerate(self.presence_logits().unbind(), start=1):
            present = pyro.sample(f"z_pres_{t}", self.p_z_pres(logits, present))
            seen = present > 0
            z_pres.append(present)
            z_where.append(pyro.sample(f"z_where_{t}", p_z_where.mask(seen)))
            z_what.append(pyro.sample(f"z_what_{t}", p_z_what.mask(seen)))
        return torch.stack(z_pres, -1), torch.stack(z_where, -2), torch.stack(z_what, -2)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the scenes ``x (B, C, H, W)`` or sample ``n`` scenes; returns x."""
        batch = n if x is None else len(x)
        if batch is None:
            raise ValueError("AIR needs either x, the scenes to score, or n, the number of scenes to sample")
        with data_plate(batch):
            latents = self.latents(batch)
            return pyro.sample("x", self.p_x(*latents), obs=x)
