"""AIR in three dimensions: the guide (Eslami et al. 2016, arXiv 1603.08575, section 4.3)."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.nn.functional import softplus

from pplmodels.distributions import Masked, WrappedNormal
from pplmodels.distributions.presence import clamp_logits, masked_bernoulli
from pplmodels.distributions.wrapped_normal import EVEN
from pplmodels.infer import NeuralBaseline
from pplmodels.module import PairModule, data_plate
from pplmodels.nn import mlp, read_window
from pplmodels.nn.batch_apply import BatchApply
from pplmodels.nn.renderer import KINDS, PERIODS, Renderer

WINDOW, GLIMPSE = 0.45, 16  # a glimpse's side as a fraction of the image's side, and in pixels
PATCH = 0.43  # radius in which an inferred solid is erased from the image, in halves of the table's side
POOLED = 4  # size of the pooled features of the whole image for the baselines


class AIR3DGuide(PairModule):
    """A network that in each step attends to one solid, infers it from a glimpse, and erases it from the image.

    .. code-block:: text

        q(z | x) = prod_{t=1..T} q(z_pres_t | f_t, z_pres_{t-1})
                                 [q(z_kind_t | f_t) q(z_place_t | f_t) q(z_yaw_t | f_t)]^{z_pres_t}

        s_t     = attend(x_t), a point of the image
        f_t     = encode(read(x_t, s_t), s_t)
        x_{t+1} = erase(x_t, z_place_t),  x_1 = x

    ==========  ============  ===========  ===========  ====================================
    site        support       batch shape  event shape  factor
    ==========  ============  ===========  ===========  ====================================
    z_pres_t    {0, 1}        (B)          ()           Bernoulli, a stop; REINFORCE or summed out
    z_kind_t    {0..3}        (B)          ()           Categorical, a choice; REINFORCE or summed out
    z_place_t   real          (B)          (2)          Normal, reparameterized
    z_yaw_t     [-pi, pi]     (B)          ()           WrappedNormal, reparameterized
    ==========  ============  ===========  ===========  ====================================

    To change a factor, override its ``q_*`` method in a subclass (and decorate it with ``@pyro_method``).

    Deviations. The paper uses a recurrent state to remember explained objects. Here, an explained solid of any kind is
    replaced by a round patch of the empty table. So each step solves the same problem, and no later site depends on a
    kind, which allows both discrete sites to be summed out (:class:`pplmodels.infer.PerSite_ELBO`). The logits of
    z_pres contain the prior's ``log_k``, and the logits of both are bounded, as in :class:`guides.AIRGuide`.

    Arguments:
        image, num_steps: as for the model.
        channels: channels of the feature maps for attention and for glimpses.
        hidden_dim: size of f_t.
        place_scale, yaw_scale: initial standard deviations, in halves of the table's side and in radians.
        presence_bias: initial logit of z_pres.
        log_k: as for the model; a buffer.
        presence_limit: largest absolute logit of z_pres; a buffer.
        kind_limit: largest difference between two logits of z_kind; a buffer.
        yaw_limit: largest standard deviation of a yaw, in radians; a buffer. The mean of a wide distribution has almost
            no gradient.
    """

    role = "guide"
    log_k: Tensor
    presence_limit: Tensor
    kind_limit: Tensor
    yaw_limit: Tensor
    repeats: Tensor  # (4), the rotation period of each kind as a fraction of the circle

    def __init__(
        self,
        image: Sequence[int] = (32, 32),
        num_steps: int = 3,
        channels: int = 32,
        hidden_dim: int = 128,
        place_scale: float = 0.1,
        yaw_scale: float = 1.0,
        presence_bias: float = 2.0,
        log_k: float = 0.0,
        presence_limit: float = 4.6,
        kind_limit: float = 5.0,
        yaw_limit: float = EVEN,
    ):
        super().__init__("air3d_guide")
        self.num_steps = num_steps
        self.renderer = Renderer(image)
        self.feature_net = BatchApply(
            nn.Sequential(
                *(nn.Conv2d(3, channels, 5, 2, 2), nn.ReLU()),
                *(nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU()),
                *(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.ReLU()),
            ),
            3,
        )
        self.attention = BatchApply(nn.Conv2d(channels, 1, 1, bias=False), 3)  # a softmax ignores a bias
        self.pool = BatchApply(nn.Sequential(nn.AdaptiveAvgPool2d(POOLED), nn.Flatten()), 3)
        self.glimpse_net = BatchApply(
            nn.Sequential(
                *(nn.Conv2d(3, channels, 3, 1, 1), nn.ReLU()),
                *(nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.ReLU()),
                *(nn.Conv2d(2 * channels, 2 * channels, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            ),
            3,
        )
        self.glimpse_mlp = mlp(2 * channels * (GLIMPSE // 4) ** 2 + 2, (hidden_dim, hidden_dim))
        self.presence = nn.Linear(hidden_dim, 1)
        self.kind = nn.Linear(hidden_dim, len(KINDS))
        self.place = nn.Linear(hidden_dim, 4)
        self.yaw = nn.Linear(hidden_dim, 5)
        context_dim = channels * POOLED**2
        self.baseline = NeuralBaseline(context_dim, hidden_dim)
        self.kind_baseline = NeuralBaseline(context_dim, hidden_dim)
        limits = {"presence_limit": presence_limit, "kind_limit": kind_limit, "yaw_limit": yaw_limit}
        for name, value in {"log_k": log_k, **limits}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.get_default_dtype()))
        repeats = [period / (2 * math.pi) for period in PERIODS]  # as fractions of the circle
        self.register_buffer("repeats", torch.tensor(repeats, dtype=torch.get_default_dtype()), persistent=False)
        with torch.no_grad():
            self.presence.bias.fill_(presence_bias - log_k)
            self.kind.bias.sub_((self.repeats == 0).float())  # yaws are not learned for spheres
            self.place.weight.mul_(0.1)
            raw = [math.log(math.expm1(scale)) for scale in (place_scale, place_scale, yaw_scale)]
            self.place.bias.copy_(torch.tensor([0.0, 0.0, *raw[:2]]))
            self.yaw.bias.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0, raw[2]]))

    @pyro_method
    def q_z_pres(self, features: Tensor, present: Tensor) -> TorchDistributionMixin:
        """q(z_pres_t | f_t, z_pres_{t-1}) from ``features (..., B, hidden_dim)`` and ``present (..., B)``."""
        evidence = self.presence(features).squeeze(-1)
        return masked_bernoulli(clamp_logits(evidence + self.log_k, self.presence_limit), present)

    @pyro_method
    def q_z_kind(self, features: Tensor) -> TorchDistributionMixin:
        """q(z_kind_t | f_t), one of :data:`pplmodels.nn.renderer.KINDS`."""
        logits = self.kind(features)
        below = logits - logits.max(-1, keepdim=True).values
        return dist.Categorical(logits=clamp_logits(below, self.kind_limit))

    @pyro_method
    def q_z_place(self, features: Tensor, seen: Tensor) -> TorchDistributionMixin:
        """q(z_place_t | f_t), event shape (2), relative to the place seen at ``seen (..., B, 2)``."""
        shift, raw = self.place(features).chunk(2, -1)
        return dist.Normal(self.renderer.standing_at(seen) + shift, softplus(raw) + 1e-3).to_event(1)

    @pyro_method
    def q_z_yaw(self, features: Tensor) -> TorchDistributionMixin:
        """q(z_yaw_t | f_t), on a circle that represents the period of the most probable kind.

        It is uniform for rotationally symmetric kinds.
        """
        *whole, cos, sin, raw = self.yaw(features).unbind(-1)
        share = self.repeats[self.kind(features).argmax(-1)]
        loc = torch.where(share < 1, torch.atan2(sin, cos), torch.atan2(*whole))
        scale = share * clamp_logits(softplus(raw) + 1e-3, self.yaw_limit)
        return WrappedNormal(share * loc, torch.where(share > 0, scale, EVEN))

    @pyro_method
    def attend(self, maps: Tensor) -> Tensor:
        """The attended point, ``(..., B, 2)`` in [-1, 1], right and down: the mean of a softmax over the ``maps``."""
        height, width = maps.shape[-2:]
        logits = self.attention(maps).flatten(-3)
        v, u = ((2 * torch.arange(n, dtype=maps.dtype, device=maps.device) + 1) / n - 1 for n in (height, width))
        points = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1).flatten(0, 1)  # (height * width, 2)
        return logits.softmax(-1) @ points

    @pyro_method
    def encode_glimpse(self, picture: Tensor, seen: Tensor) -> Tensor:
        """The features f_t, ``(..., B, hidden_dim)``, of ``picture (..., B, 3, H, W)`` around ``seen (..., B, 2)``."""
        where = torch.cat([torch.full_like(seen[..., :1], math.log(WINDOW)), seen], -1)
        glimpse = read_window(picture, where, GLIMPSE)
        return self.glimpse_mlp(torch.cat([self.glimpse_net(glimpse), seen], -1))

    @pyro_method
    def erase(self, picture: Tensor, z_place: Tensor) -> Tensor:
        """Replace the surroundings of ``z_place`` in the image by the empty table."""
        return torch.lerp(picture, self.renderer.empty(), self.renderer.around(z_place, PATCH))

    def forward(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Sample the latents of the images ``x (B, 3, H, W)``. ``n`` is an argument of the model and unused here."""
        if x is None:
            raise ValueError("AIR3DGuide infers solids from images: x is required")
        left, maps, present = x, self.feature_net(x), x.new_ones(len(x))
        whole = self.pool(maps)
        context, kind_context = self.baseline.context(whole), self.kind_baseline.context(whole)
        with data_plate(len(x)):
            for t in range(1, self.num_steps + 1):
                seen = self.attend(maps)
                features = self.encode_glimpse(left, seen)
                # Pyro's InferDict does not list the keys of baselines and of stopping chains
                infer: Any = {"stop": True, **self.baseline.infer_config(context, features, present)}
                present = pyro.sample(f"z_pres_{t}", self.q_z_pres(features, present), infer=infer)
                there = present > 0
                infer = {"choice": True, **self.kind_baseline.infer_config(kind_context, features, present)}
                pyro.sample(f"z_kind_{t}", Masked(self.q_z_kind(features), there), infer=infer)
                z_place = pyro.sample(f"z_place_{t}", self.q_z_place(features, seen).mask(there))
                pyro.sample(f"z_yaw_{t}", self.q_z_yaw(features).mask(there))
                if t < self.num_steps:
                    left = self.erase(left, z_place)
                    maps = self.feature_net(left)
