"""Attend, Infer, Repeat: the inference half (Eslami et al. 2016, arXiv 1603.08575, section 2.1)."""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.nn.functional import softplus

from pplmodels.distributions.presence import clamp_logits, masked_bernoulli
from pplmodels.infer import NeuralBaseline
from pplmodels.models.air import AIR
from pplmodels.module import PairModule, data_plate
from pplmodels.nn import ContextLSTMCell, mlp, read_window

ImageFeatures = tuple[Tensor, Tensor]  # the image's share of the LSTM's gates, and of the baseline


class AIRGuide(PairModule):
    """A recurrent network that looks at one object a step and decides after each whether to go on.

    .. code-block:: text

        q(z | x) = prod_{t=1..T} q(z_pres_t | h_t, z_pres_{t-1}) [q(z_where_t | h_t) q(z_what_t | glimpse_t)]^{z_pres_t}

        h_t       = LSTM([embed(x), z_{t-1}], h_{t-1}),  z_t = z_pres_t [1, z_where_t, z_what_t]
        glimpse_t = read(x, z_where_t)

    ==========  ============  ===========  ===========  ===================================
    site        support       batch shape  event shape  in the paper
    ==========  ============  ===========  ===========  ===================================
    z_pres_t    {0, 1}        (B)          ()           Bern(pi^t z_pres^{t-1}), REINFORCE
    z_where_t   real          (B)          (3)          Normal, reparameterised
    z_what_t    real          (B)          (D)          Normal, reparameterised
    ==========  ============  ===========  ===========  ===================================

    To change a factor, override its ``q_*`` method in a subclass (and decorate it with ``@pyro_method``).

    Deviations. The recurrent network reads an embedding of the image, computed once together with its share of the
    gates; the paper feeds the pixels again at each step. The logit of pi^t is the network's output plus the prior's
    ``log_k``, as in Bayes' rule: the network learns the evidence for an object, which does not depend on the prior, so
    that the posterior follows while the prior is annealed instead of staying where a permissive one has pushed it. The
    logit is held within +-``presence_limit``, so that every decision is still tried both ways now and then. The
    baseline reads, detached, the same embedding and the recurrent state, which knows z_{<t}.

    Arguments:
        canvas, num_steps, what_dim: as the model's.
        window: side of the glimpse in pixels.
        embed_dim: size of the image's embedding.
        hidden_dim: size of the LSTM's state.
        predict_dim: hidden layer between the state and the parameters of z_pres and z_where.
        encoder_dims: hidden layers from the glimpse to z_what.
        where_loc: where the windows start, usually the prior's mean.
        where_scale: initial standard deviation of (log s, x, y).
        presence_bias: initial logit of z_pres: above 0 the guide begins by looking, and learns when to stop.
        log_k: the model's, a buffer that training anneals together with the model's.
        presence_limit: largest absolute logit of z_pres; a buffer. At 4.6 a decision that has become sure is tried the
            other way once in a hundred, without which it could not be unlearned.
    """

    role = "guide"

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
        where_scale: Sequence[float] = (0.1, 0.3, 0.3),
        presence_bias: float = 2.0,
        log_k: float = math.log(0.1),
        presence_limit: float = 4.6,
    ):
        super().__init__("air_guide")
        z_dim = 1 + 3 + what_dim
        self.num_steps = num_steps
        self.window = window
        self.hidden_dim = hidden_dim
        self.z_dim = z_dim
        self.embed = mlp(math.prod(canvas), (embed_dim,))
        self.lstm = ContextLSTMCell(embed_dim, z_dim, hidden_dim)
        self.predict = mlp(hidden_dim, (predict_dim,))
        self.presence = nn.Linear(predict_dim, 1)
        self.where = nn.Linear(predict_dim, 6)
        self.encoder = mlp(canvas[0] * window**2, encoder_dims, 2 * what_dim)
        self.baseline = NeuralBaseline(embed_dim, hidden_dim)
        self.register_buffer("log_k", torch.tensor(log_k, dtype=torch.get_default_dtype()))
        self.register_buffer("presence_limit", torch.tensor(presence_limit, dtype=torch.get_default_dtype()))
        with torch.no_grad():
            self.presence.bias.fill_(presence_bias - log_k)
            self.where.bias.copy_(torch.tensor([*where_loc, *(math.log(math.expm1(s)) for s in where_scale)]))
            self.where.weight.mul_(0.1)  # windows start together, at where_loc

    @pyro_method
    def q_z_pres(self, features: Tensor, present: Tensor) -> dist.Distribution:
        """q(z_pres_t | h_t, z_pres_{t-1}) from ``features (..., B, predict_dim)`` of h_t and ``present (..., B)``."""
        evidence = self.presence(features).squeeze(-1)
        return masked_bernoulli(clamp_logits(evidence + self.log_k, self.presence_limit), present)

    @pyro_method
    def q_z_where(self, features: Tensor) -> dist.Distribution:
        """q(z_where_t | h_t), event shape (3), from ``features (..., B, predict_dim)`` of h_t."""
        loc, raw = self.where(features).chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)

    @pyro_method
    def q_z_what(self, glimpse: Tensor) -> dist.Distribution:
        """q(z_what_t | glimpse_t), event shape (D), from ``glimpse (..., B, C, window, window)``."""
        loc, raw = self.encoder(glimpse.flatten(-3)).chunk(2, -1)
        return dist.Normal(loc, softplus(raw)).to_event(1)

    @pyro_method
    def glance(self, x: Tensor) -> ImageFeatures:
        """What the recurrent network and the baseline know of an image ``x (..., B, C, H, W)``, before any state."""
        embedding = self.embed(x.flatten(-3))
        return self.lstm.gates(embedding), self.baseline.context(embedding)

    @pyro_method
    def update_features(
        self, glance: ImageFeatures, remaining: Tensor, present: Tensor, z_where: Tensor, z_what: Tensor
    ) -> tuple[ImageFeatures, Tensor]:
        """What they know after an object ``(present, z_where, z_what)``, and of which image: AIR's looks only once."""
        return glance, remaining

    def forward(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Sample the latents of the scenes ``x (B, C, H, W)``; ``n`` is the model's and unused here."""
        if x is None:
            raise ValueError("AIRGuide infers objects from scenes: x is required")
        glance, remaining = self.glance(x), x
        present = x.new_ones(len(x))
        state = (x.new_zeros(len(x), self.hidden_dim),) * 2
        z = x.new_zeros(len(x), self.z_dim)
        with data_plate(len(x)):
            for t in range(1, self.num_steps + 1):
                gates, context = glance
                state = self.lstm(gates, z, state)
                features = self.predict(state[0])
                infer = {"stop": True, **self.baseline.infer_config(context, state[0], present)}
                present = pyro.sample(f"z_pres_{t}", self.q_z_pres(features, present), infer=infer)
                seen = present > 0
                z_where = pyro.sample(f"z_where_{t}", self.q_z_where(features).mask(seen))
                glimpse = read_window(x, z_where, self.window)  # (..., B, C, window, window)
                z_what = pyro.sample(f"z_what_{t}", self.q_z_what(glimpse).mask(seen))
                pres = present[..., None]
                z = torch.cat([pres, pres * z_where, pres * z_what], -1)
                if t < self.num_steps:
                    glance, remaining = self.update_features(glance, remaining, present, z_where, z_what)


class DAIRGuide(AIRGuide):
    """AIR's guide that sees at each step what the model has not yet drawn (Difference AIR, Eslami et al., section 4.1).

    .. code-block:: text

        h_t = LSTM([embed(x - sum_{i<t} z_pres_i write(decode(z_what_i), z_where_i)), z_{t-1}], h_{t-1})

    Otherwise as :class:`AIRGuide`: sites, glimpses (of x itself) and deviations. As the network need not remember what
    it has explained, it goes on to more objects than it was trained with.

    Arguments:
        model: draws the objects. Its parameters stay the model's, and the gradient of the bound reaches them through
            the guide as well; :meth:`from_pretrained` is given the model again.
        sizes: as :class:`AIRGuide`'s.
    """

    def __init__(self, model: AIR, **sizes):
        super().__init__(**sizes)
        self.__dict__["model"] = model  # not a submodule: the guide neither owns nor saves it

    @pyro_method
    def update_features(
        self, glance: ImageFeatures, remaining: Tensor, present: Tensor, z_where: Tensor, z_what: Tensor
    ) -> tuple[ImageFeatures, Tensor]:
        """Take the object's drawing from what remained of the image, and look at the rest."""
        remaining = remaining - self.model.render(present[..., None], z_where[..., None, :], z_what[..., None, :])
        return self.glance(remaining), remaining
