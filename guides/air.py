"""Attend, Infer, Repeat: the guide (Eslami et al. 2016, arXiv 1603.08575, section 2.1)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from pplmodels.distributions.presence import clamp_logits, masked_bernoulli
from pplmodels.infer import NeuralBaseline
from pplmodels.models.air import AIR
from pplmodels.module import PairModule, data_plate
from pplmodels.nn import ContextLSTMCell, FeatureMaps, SpatialAttention, mlp, read_window


class ImageFeatures(NamedTuple):
    """The embedding of an image, its terms in the LSTM's gates and in the baseline, and the maps of the attention."""

    embedding: Tensor
    gates: Tensor
    context: Tensor
    maps: FeatureMaps


class AIRGuide(PairModule):
    """A recurrent network that attends to one object per step and decides in each step whether to continue.

    .. code-block:: text

        q(z | x) = q(z_background | x)
                   prod_{t=1..T} q(z_pres_t | f_t, z_pres_{t-1}) [q(z_where_t | f_t) q(z_what_t | glimpse_t)]^{z_pres_t}

        y         = x - ground(z_background), or x if the background has no latent
        h_t       = LSTM([embed(y), z_{t-1}], h_{t-1}),  z_t = z_pres_t [1, z_where_t, z_what_t]
        f_t       = [h_t, attend(y, z_where_{<t}, h_t)]
        glimpse_t = read(x, z_where_t)

    ============  ============  ===========  ===========  ===================================
    site          support       batch shape  event shape  in the paper
    ============  ============  ===========  ===========  ===================================
    z_background  real          (B)          (G)          none; only if the model has the site
    z_pres_t      {0, 1}        (B)          ()           Bern(pi^t z_pres^{t-1}), REINFORCE
    z_where_t     real          (B)          (3)          Normal, reparameterized
    z_what_t      real          (B)          (D)          Normal, reparameterized
    ============  ============  ===========  ===========  ===================================

    To change a factor, override its ``q_*`` method in a subclass (and decorate it with ``@pyro_method``).

    Deviations. The recurrent network gets an embedding of the image, which is computed once, like its term in the
    gates. In the paper, the pixels are an input of each step. A convolutional attention
    (:class:`pplmodels.nn.SpatialAttention`) selects a point near a proposal of the recurrent network and outside of
    earlier windows, and the mean of z_where is relative to this point. Without the attention, some windows contain no
    object. Such a window draws nothing and costs only its prior, but it is counted. The attended features also show
    whether any object is left. The logit of pi^t is the network's output plus the prior's ``log_k``, as in Bayes' rule.
    So the network learns the evidence for an object, which does not depend on the prior, and the posterior follows the
    prior while this is annealed. The logit is clamped to +-``presence_limit``, so that both decisions are still sampled
    occasionally. The baseline gets the same embedding and the recurrent state, which depends on z_{<t}, both detached.

    Arguments:
        canvas, num_steps, what_dim: as for the model.
        window: side of the glimpse in pixels.
        background_model, background_dim: as for the model.
        embed_dim: size of the image's embedding.
        hidden_dim: size of the LSTM's state.
        predict_dim: width of the hidden layer between the state, with the attended features, and the parameters of
            z_pres and z_where.
        attention_channels: channels of the attention's feature map.
        encoder_dims: hidden layer widths from the glimpse to z_what.
        where_loc: initial mean of z_where relative to the attended point, usually that of the prior.
        where_scale: initial standard deviation of (log s, x, y).
        presence_bias: initial logit of z_pres. If it is above 0, the guide starts with many objects and learns to stop.
        log_k: as for the model; a buffer that is annealed together with the model's.
        presence_limit: largest absolute logit of z_pres; a buffer. The default 4.6 keeps each probability above 0.01,
            so that a decision can still be reversed.
    """

    role = "guide"
    log_k: Tensor
    presence_limit: Tensor

    def __init__(
        self,
        canvas: Sequence[int] = (1, 50, 50),
        num_steps: int = 3,
        what_dim: int = 50,
        window: int = 28,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        predict_dim: int = 200,
        encoder_dims: Sequence[int] = (200,),
        where_loc: Sequence[float] = (math.log(0.35), 0.0, 0.0),
        where_scale: Sequence[float] = (0.1, 0.1, 0.1),
        presence_bias: float = 2.0,
        log_k: float = math.log(0.1),
        presence_limit: float = 4.6,
        background_model: str = "none",
        background_dim: int = 8,
        attention_channels: int = 24,
    ):
        super().__init__("air_guide")
        z_dim = 1 + 3 + what_dim
        self.canvas = tuple(canvas)
        self.num_steps = num_steps
        self.window = window
        self.hidden_dim = hidden_dim
        self.z_dim = z_dim
        self.embed = mlp(math.prod(canvas), (embed_dim,))
        self.lstm = ContextLSTMCell(embed_dim, z_dim, hidden_dim)
        self.attention = SpatialAttention(canvas[0], attention_channels, radius=0.5 * math.exp(where_loc[0]))
        self.proposal = nn.Linear(hidden_dim, 3)
        self.predict = mlp(hidden_dim + attention_channels + 1, (predict_dim,))
        self.presence = nn.Linear(predict_dim, 1)
        self.where = nn.Linear(predict_dim, 6)
        self.encoder = mlp(canvas[0] * window**2, encoder_dims, 2 * what_dim)
        self.background_model = background_model
        self.ground: nn.Linear | None = None
        if background_model == "scene":
            self.background = nn.Linear(embed_dim, 2 * background_dim)
            self.project = nn.Linear(math.prod(canvas), background_dim, bias=False)
            self.ground = nn.Linear(background_dim, math.prod(canvas))
            for parameter in self.ground.parameters():
                nn.init.zeros_(parameter)
        self.baseline = NeuralBaseline(embed_dim, hidden_dim)
        self.register_buffer("log_k", torch.tensor(log_k, dtype=torch.get_default_dtype()))
        self.register_buffer("presence_limit", torch.tensor(presence_limit, dtype=torch.get_default_dtype()))
        with torch.no_grad():
            self.presence.bias.fill_(presence_bias - log_k)
            self.where.bias.copy_(torch.tensor([*where_loc, *(math.log(math.expm1(s)) for s in where_scale)]))
            self.where.weight.mul_(0.1)  # all windows start at where_loc

    @pyro_method
    def q_z_background(self, x: Tensor, embedding: Tensor) -> TorchDistributionMixin:
        """q(z_background | x), event shape (G), from the images ``x (..., B, C, H, W)`` and their embedding.

        The mean is linear in the pixels, as for a linear model, plus a function of ``embedding (..., B, embed_dim)``.
        """
        loc, raw = self.background(embedding).chunk(2, -1)
        return dist.Normal(loc + self.project(x.flatten(-3)), softplus(raw)).to_event(1)

    @torch.no_grad()
    def start_from(self, picture: Tensor, patterns: Tensor, pixel_scale: float) -> None:
        """Initialize the canvas, and q(z_background | x) with the exact posterior of scenes without objects.

        ``picture (C, H, W)`` and orthogonal ``patterns (P, C, H, W)`` are those of :meth:`pplmodels.AIR.start_from`,
        and ``pixel_scale`` is the standard deviation of pixels (probabilistic PCA, Tipping & Bishop 1999).
        """
        number, rows = len(patterns), patterns.flatten(1)
        weights = rows / (rows.square().sum(1, keepdim=True) + pixel_scale**2)
        scale = pixel_scale / (rows.square().sum(1) + pixel_scale**2).sqrt()
        self.project.weight.zero_()[:number] = weights
        self.background.weight.zero_()
        loc, raw = self.background.bias.chunk(2)
        loc.zero_()[:number] = -(weights @ picture.flatten())
        raw[:number] = scale.expm1().log()
        if self.ground is not None:
            self.ground.weight[:, :number] = rows.mT
            self.ground.bias.copy_(picture.flatten())

    @pyro_method
    def q_z_pres(self, features: Tensor, present: Tensor) -> TorchDistributionMixin:
        """q(z_pres_t | f_t, z_pres_{t-1}) from ``features (..., B, predict_dim)`` and ``present (..., B)``."""
        evidence = self.presence(features).squeeze(-1)
        return masked_bernoulli(clamp_logits(evidence + self.log_k, self.presence_limit), present)

    @pyro_method
    def q_z_where(self, features: Tensor, point: Tensor) -> TorchDistributionMixin:
        """q(z_where_t | f_t), event shape (3), from ``features (..., B, predict_dim)`` and ``point (..., B, 2)``."""
        loc, raw = self.where(features).chunk(2, -1)
        return dist.Normal(loc + pad(point, (1, 0)), softplus(raw)).to_event(1)

    @pyro_method
    def q_z_what(self, glimpse: Tensor) -> TorchDistributionMixin:
        """q(z_what_t | glimpse_t), event shape (D), from ``glimpse (..., B, C, window, window)``."""
        loc, raw = self.encoder(glimpse.flatten(-3)).chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)

    @pyro_method
    def image_features(self, x: Tensor) -> ImageFeatures:
        """Features of the images ``x (..., B, C, H, W)`` that do not depend on the state."""
        embedding = self.embed(x.flatten(-3))
        maps = self.attention.maps(x)
        return ImageFeatures(embedding, self.lstm.gates(embedding), self.baseline.context(embedding), maps)

    @pyro_method
    def canvas_before(self, z_background: Tensor | None) -> Tensor | None:
        """The canvas before the first step, which is subtracted from the image; None if it is black.

        With a background per scene, it is a linear function of ``z_background (..., B, G)``. Objects on different
        backgrounds are then equally salient.
        """
        if z_background is None or self.ground is None:
            return None
        return self.ground(z_background).unflatten(-1, self.canvas)

    @pyro_method
    def canvas_after(self, canvas: Tensor, present: Tensor, z_where: Tensor, z_what: Tensor) -> Tensor | None:
        """The canvas after an object ``(present, z_where, z_what)``, if the object is subtracted, too; here None."""
        return None

    def forward(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Sample the latents of the scenes ``x (B, C, H, W)``. ``n`` is an argument of the model and unused here."""
        if x is None:
            raise ValueError("AIRGuide infers objects from scenes: x is required")
        z_background = None
        present = x.new_ones(len(x))
        state = (x.new_zeros(len(x), self.hidden_dim),) * 2
        z = x.new_zeros(len(x), self.z_dim)
        with data_plate(len(x)):
            if self.background_model == "scene":
                embedding = self.embed(x.flatten(-3))
                z_background = pyro.sample("z_background", self.q_z_background(x, embedding))
            canvas = self.canvas_before(z_background)
            image = self.image_features(x if canvas is None else x - canvas)
            marks = self.attention.no_marks(image.maps)
            for t in range(1, self.num_steps + 1):
                state = self.lstm(image.gates, z, state)
                proposal, raw = self.proposal(state[0]).split((2, 1), -1)
                glance = self.attention(image.maps, marks, proposal, softplus(raw).squeeze(-1))
                features = self.predict(torch.cat([state[0], glance.features], -1))
                # Pyro's InferDict does not list the keys of baselines and of stopping chains
                infer: Any = {"stop": True, **self.baseline.infer_config(image.context, state[0], present)}
                present = pyro.sample(f"z_pres_{t}", self.q_z_pres(features, present), infer=infer)
                there = present > 0
                z_where = pyro.sample(f"z_where_{t}", self.q_z_where(features, glance.point).mask(there))
                glimpse = read_window(x, z_where, self.window)  # (..., B, C, window, window)
                z_what = pyro.sample(f"z_what_{t}", self.q_z_what(glimpse).mask(there))
                pres = present[..., None]
                z = torch.cat([pres, pres * z_where, pres * z_what], -1)
                if t < self.num_steps:
                    marks = marks + pres[..., None] * self.attention.marks(image.maps, z_where)
                    after = None if canvas is None else self.canvas_after(canvas, present, z_where, z_what)
                    if after is not None:
                        canvas, image = after, self.image_features(x - after)


class DAIRGuide(AIRGuide):
    """AIR's guide with the unexplained part of the image as input (Difference AIR, Eslami et al., section 4.1).

    .. code-block:: text

        h_t = LSTM([embed(x - canvas_{t-1}), z_{t-1}], h_{t-1}), with the model's canvas after t - 1 objects

    The attention also looks at x - canvas_{t-1}. Sites, glimpses (of x itself) and deviations are those of
    :class:`AIRGuide`. Because the network does not have to remember explained objects, it generalizes to more objects
    than in training.

    Arguments:
        model: renders the objects. Its parameters belong to the model, but also get gradients through the guide. Pass
            the model to :meth:`from_pretrained`, too.
        sizes: as for :class:`AIRGuide`.
    """

    model: AIR

    def __init__(self, model: AIR, **sizes):
        super().__init__(**sizes)
        self.__dict__["model"] = model  # not a submodule: the guide neither owns nor saves it
        self.ground = None  # the model's is used

    @pyro_method
    def canvas_before(self, z_background: Tensor | None) -> Tensor:
        """The model's background."""
        return self.model.ground(z_background)

    @pyro_method
    def canvas_after(self, canvas: Tensor, present: Tensor, z_where: Tensor, z_what: Tensor) -> Tensor:
        """The canvas with the rendered object."""
        one = z_where[..., None, :], z_what[..., None, :]
        change = self.model.object_changes(*one, canvas).squeeze(-4)
        return canvas + present[..., None, None, None] * change
