"""Attend, Infer, Repeat: the generative model (Eslami et al. 2016, arXiv 1603.08575)."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pplmodels.distributions.presence import masked_bernoulli, presence_prior_logits
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn import mlp, write_window

BACKGROUND_MODELS = ("none", "common", "scene")
SMALLEST_PIXEL_SCALE = 0.1
COARSE = 4  # side of the grid that is interpolated to a scene's background


class AIR(PairModule):
    """A scene is a background with a few objects, each with a position and an appearance.

    .. code-block:: text

        p(x, z) = p(x | z) p(z_background)
                  prod_{t=1..T} p(z_pres_t | z_pres_{t-1}) [p(z_where_t) p(z_what_t)]^{z_pres_t}

        p(n)          proportional to k^n for n = 0..T objects; log k is the buffer `log_k`
        z_background  ~ N(0, I), only with background_model="scene"
        z_pres_t      ~ Bern(rho_t z_pres_{t-1}),  rho_t = P(n >= t | n >= t-1),  z_pres_0 = 1
        z_where_t     ~ N(where_loc, where_scale^2)
        z_what_t      ~ N(0, I)
        x             ~ N(canvas_T, pixel_scale^2)

        canvas_0 = ground(z_background)
        canvas_t = canvas_{t-1} + z_pres_t y_t                               without occlusion
        canvas_t = canvas_{t-1} + z_pres_t (a_t y_t - a_t canvas_{t-1})      with occlusion
        y_t, a_t = the color and the mask of decode(z_what_t), written at z_where_t

    ============  ============  ===========  ===========  =============================
    site          support       batch shape  event shape  symbol in the paper
    ============  ============  ===========  ===========  =============================
    z_background  real          (B)          (G)          none, the background is black
    z_pres_t      {0, 1}        (B)          ()           z_pres^t, the unary code of n
    z_where_t     real          (B)          (3)          z_where^t = (log s, x, y)
    z_what_t      real          (B)          (D)          z_what^t
    x             real          (B)          (C, H, W)    x
    ============  ============  ===========  ===========  =============================

    Sites are numbered by their step from 1, ``z_pres_1`` to ``z_pres_T``. After the stop, z_pres is 0 and the other
    two sites are masked: their values do not affect log-probabilities. To change the background alone, override
    :meth:`ground` (and :meth:`p_z_background`).

    Source: sections 2 and 3.1 and the supplement. Deviations: the scale is stored as a logarithm
    (:mod:`pplmodels.nn.spatial_transformer`), so that no window is empty. The prior over counts is truncated at T, so
    that ``log_k`` has the same meaning for every T. Object intensities are the sigmoid of logits with a negative
    initial bias. So objects are initially dark, and the guide does not learn to infer empty scenes. The paper's scenes
    are black without objects, which add up where they overlap (background_model="none" without occlusion). Learned
    backgrounds, masks and occlusion follow MONet and GENESIS (Burgess et al. 2019, arXiv 1901.11390; Engelcke et al.
    2020, arXiv 1907.13052) in the sense that a mask decides what is visible.

    Arguments:
        canvas: (C, H, W) of the scenes; intensities are in [0, 1].
        num_steps: T, the maximum number of objects.
        what_dim: D, the size of an object's appearance code.
        window: side of an object's image in pixels.
        hidden_dims: hidden layer widths of the decoder.
        where_loc, where_scale: mean and standard deviation of (log s, x, y).
        pixel_scale: standard deviation of a pixel around the canvas; the initial value if it is learned.
        log_k: log of the prior's ratio p(n+1)/p(n), a buffer that is annealed in training.
        decoder_bias: initial bias of the logits of the object's intensities, or of its mask with occlusion.
        background_model: "none" is black. "common" is a learned picture, the same for all scenes. "scene" adds to this
            picture a smooth image with a latent per scene, interpolated from a grid of 4x4 points. It can represent
            slopes and large spots, but no edges.
        background_dim: G, the size of z_background.
        background_patterns: P <= G, the number of learned pictures that are also added, with the first P entries of
            z_background as weights. They can represent the lines of a grid, for example. A few pictures that all scenes
            share cannot represent objects at random places.
        occlusion: whether objects are drawn over the canvas with a mask, so that a later object hides what is below it.
            Otherwise they are added to the canvas.
        learn_pixel_scale: whether pixel_scale is a parameter, which is always above 0.1. With a smaller deviation,
            objects would be worth their prior if they corrected tiny errors of the background.
    """

    role = "model"
    dims = MappingProxyType(
        {"z_background": ("background",), "z_where": ("where",), "z_what": ("what",), "x": IMAGE_DIMS}
    )
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
        background_model: str = "none",
        background_dim: int = 8,
        background_patterns: int = 0,
        occlusion: bool = False,
        learn_pixel_scale: bool = False,
    ):
        super().__init__("air")
        if background_model not in BACKGROUND_MODELS:
            raise ValueError(f"background_model is one of {', '.join(BACKGROUND_MODELS)}, not {background_model!r}")
        self.canvas = tuple(canvas)
        self.num_steps = num_steps
        self.what_dim = what_dim
        self.window = window
        self.background_model = background_model
        self.background_dim = background_dim
        if not 0 <= background_patterns <= background_dim * (background_model == "scene"):
            raise ValueError(
                f"background_patterns must be from 0 to background_dim ({background_dim}), and 0 unless "
                f'background_model="scene", not {background_patterns}'
            )
        self.background_patterns = background_patterns
        self.occlusion = occlusion
        channels = self.canvas[0] + occlusion
        self.decoder = mlp(what_dim, hidden_dims, channels * window**2)
        with torch.no_grad():  # with occlusion, the last channel is the mask
            bias = self.decoder[-1].get_parameter("bias").view(channels, -1)
            bias.zero_()
            bias[-1 if occlusion else slice(None)] = decoder_bias
        if background_model != "none":
            self.picture = nn.Parameter(torch.zeros(self.canvas))
        if background_model == "scene":
            self.background_decoder = mlp(background_dim, (64,), self.canvas[0] * COARSE**2)
        if background_patterns:
            self.patterns = nn.Parameter(torch.zeros(background_patterns, *self.canvas))
        if learn_pixel_scale:
            if pixel_scale <= SMALLEST_PIXEL_SCALE:
                raise ValueError(f"a learned pixel_scale starts above {SMALLEST_PIXEL_SCALE}, not from {pixel_scale}")
            self.log_pixel_scale = nn.Parameter(torch.tensor(math.log(pixel_scale - SMALLEST_PIXEL_SCALE)))
        self.fixed_pixel_scale = None if learn_pixel_scale else pixel_scale
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
    def p_z_background(self) -> TorchDistributionMixin:
        """p(z_background), event shape (G)."""
        zeros = self.where_loc.new_zeros(self.background_dim)
        return dist.Normal(zeros, zeros + 1).to_event(1)

    @pyro_method
    def p_x(
        self, z_pres: Tensor, z_where: Tensor, z_what: Tensor, z_background: Tensor | None = None
    ) -> TorchDistributionMixin:
        """p(x | z) from ``z_pres (..., B, T), z_where (..., B, T, 3), z_what (..., B, T, D)``.

        ``z_background (..., B, G)`` is None if the scenes have no latent background.
        """
        return dist.Normal(self.render(z_pres, z_where, z_what, z_background), self.pixel_scale).to_event(3)

    @property
    def pixel_scale(self) -> Tensor | float:
        """The standard deviation of a pixel around the canvas."""
        if self.fixed_pixel_scale is None:
            return SMALLEST_PIXEL_SCALE + self.log_pixel_scale.exp()
        return self.fixed_pixel_scale

    @pyro_method
    def ground(self, z_background: Tensor | None = None) -> Tensor:
        """The canvas before the first object, ``(..., B, G) -> (..., B, C, H, W)``, or (C, H, W) without a latent.

        As the mean of a normal distribution, it may exceed the range of intensities.

        Raises ValueError if ``z_background`` is missing.
        """
        if self.background_model == "none":
            return self.where_loc.new_zeros(self.canvas)
        if self.background_model == "common":
            return self.picture
        if z_background is None:
            raise ValueError('the background of each scene has a latent (background_model="scene"): give z_background')
        coarse = self.background_decoder(z_background).unflatten(-1, (self.canvas[0], COARSE, COARSE))
        smooth = interpolate(coarse.flatten(0, -4), self.canvas[1:], mode="bilinear", align_corners=True)
        ground = self.picture + smooth.unflatten(0, coarse.shape[:-3])
        if self.background_patterns:
            weights = z_background[..., : self.background_patterns]
            ground = ground + (weights @ self.patterns.flatten(1)).unflatten(-1, self.canvas)
        return ground

    @torch.no_grad()
    def start_from(self, picture: Tensor, patterns: Tensor | None = None) -> None:
        """Initialize the learned background with a ``picture (C, H, W)`` of intensities in [0, 1].

        ``patterns (P, C, H, W)`` are deviations from it, one standard deviation each. Then there is no smooth image
        initially.
        """
        self.picture.copy_(picture)
        if patterns is not None:
            self.patterns.copy_(patterns)
            for parameter in self.background_decoder[-1].parameters():
                parameter.zero_()

    @pyro_method
    def decode(self, z_what: Tensor) -> Tensor:
        """The images of objects, ``(..., D) -> (..., C, window, window)`` in [0, 1].

        With occlusion there is one more channel, the mask, and the colors are multiplied by it.
        """
        image = self.decoder(z_what).sigmoid().unflatten(-1, (-1, self.window, self.window))
        if not self.occlusion:
            return image
        color, mask = image.split((self.canvas[0], 1), -3)
        return torch.cat([color * mask, mask], -3)

    @pyro_method
    def object_changes(self, z_where: Tensor, z_what: Tensor, ground: Tensor) -> Tensor:
        """The change of the canvas by each object, ``(..., B, T, C, H, W)``, if all T objects are present.

        ``z_where (..., B, T, 3), z_what (..., B, T, D), ground (..., C, H, W)``. As z_pres is a unary code, the changes
        of the objects that are present do not depend on the others.
        """
        objects = write_window(self.decode(z_what), z_where, *self.canvas[1:])
        if not self.occlusion:
            return objects
        changes, canvas = [], ground
        for color, mask in zip(*(part.unbind(-4) for part in objects.split((self.canvas[0], 1), -3)), strict=True):
            changes.append(color - mask * canvas)
            canvas = canvas + changes[-1]
        return torch.stack(changes, -4)

    @pyro_method
    def render(self, z_pres: Tensor, z_where: Tensor, z_what: Tensor, z_background: Tensor | None = None) -> Tensor:
        """The canvas of :meth:`p_x`, ``(..., B, C, H, W)``, which is exactly the ground outside of objects.

        ``z_pres`` may have more leading dimensions than the other latents. Then their changes are computed once.
        """
        ground = self.ground(z_background)
        changes = self.object_changes(z_where, z_what, ground)
        return ground + torch.einsum("...t,...tchw->...chw", z_pres, changes)

    def scene_changes(self, latents: Mapping[str, Tensor]) -> Tensor:
        """:meth:`object_changes` at the values of the sites, which are named as in the guide's trace."""
        numbers = range(1, self.num_steps + 1)
        z_where, z_what = (torch.stack([latents[f"{site}_{t}"] for t in numbers], -2) for site in ("z_where", "z_what"))
        return self.object_changes(z_where, z_what, self.ground(latents.get("z_background")))

    @pyro_method
    def latents(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the objects of ``n`` scenes inside their plate: z_pres (n, T), z_where (n, T, 3), z_what (n, T, D)."""
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
            has_latent = self.background_model == "scene"
            z_background = pyro.sample("z_background", self.p_z_background()) if has_latent else None
            latents = self.latents(batch)
            return pyro.sample("x", self.p_x(*latents, z_background), obs=x)
