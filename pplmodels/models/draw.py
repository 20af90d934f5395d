"""DRAW, which generates an image step by step: the generative model (Gregor et al. 2015, arXiv 1502.04623)."""

from collections.abc import Sequence
from types import MappingProxyType

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.memo import memoised
from pplmodels.models.likelihoods import LIKELIHOODS
from pplmodels.models.priors import StandardNormal
from pplmodels.module import IMAGE_DIMS, PairModule, data_plate
from pplmodels.nn.draw_attention import AttentionWriter, FullWriter, State
from pplmodels.nn.recurrent import LSTMCell


class DRAW(PairModule):
    """A recurrent decoder that adds to a canvas at each step.

    .. code-block:: text

        p(x, z) = prod_{t=1..T} p(z_t) p(x | z_1..z_T)

        z_t ~ N(0, I)
        h_t = LSTM(z_t, h_{t-1})
        c_t = c_{t-1} + write(h_t)
        x   ~ likelihood(c_T)

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  symbol in the paper
    ====  ============  ===========  ===========  ===================
    z_t   real          (B)          (D)          z_t, t = 1..T
    x     likelihood's  (B)          (C, H, W)    x
    ====  ============  ===========  ===========  ===================

    h_t is the paper's h^dec_t. The first state and the first canvas are learned.

    Deviations: center, log sigma^2, log stride and log intensity of a window are bounded
    (:data:`pplmodels.nn.filterbank.LIMITS`), so that they are finite. Filters are normalized by a softmax, which equals
    equation 25 wherever that is defined.

    Arguments:
        image: (C, H, W).
        num_steps: T.
        z_dim: D.
        hidden_dim: size of h_t.
        write_window: N of the write window; None to write to the whole canvas at each step.
        likelihood: a name in :data:`pplmodels.models.likelihoods.LIKELIHOODS` with one parameter per pixel and channel.
        canvas_start: initial value of the learned first canvas, a logit.
    """

    role = "model"
    dims = MappingProxyType({"z": ("latent",), "x": IMAGE_DIMS})

    def __init__(
        self,
        image: Sequence[int] = (1, 28, 28),
        num_steps: int = 64,
        z_dim: int = 100,
        hidden_dim: int = 256,
        write_window: int | None = None,
        likelihood: str = "bernoulli",
        canvas_start: float = 0.0,
    ):
        super().__init__("draw")
        if num_steps < 1:
            raise ValueError(f"DRAW needs at least one step, not {num_steps}")
        self.image, self.num_steps, self.z_dim, self.hidden_dim = tuple(image), num_steps, z_dim, hidden_dim
        self.prior = StandardNormal(z_dim)
        self.likelihood = LIKELIHOODS[likelihood](image[0])
        if self.likelihood.num_params(image[0]) != image[0]:
            raise ValueError(f"a canvas has one number per pixel and channel, but a {likelihood} likelihood needs more")
        self.canvas = nn.Parameter(torch.full(self.image, float(canvas_start)))
        self.h, self.c = (nn.Parameter(torch.zeros(hidden_dim)) for _ in range(2))
        self.lstm = LSTMCell(z_dim, hidden_dim)
        self.writer = (
            AttentionWriter(image, hidden_dim, write_window) if write_window else FullWriter(image, hidden_dim)
        )

    @pyro_method
    def p_z(self) -> TorchDistributionMixin:
        """p(z_t), event shape (D)."""
        return self.prior()

    @pyro_method
    def start(self) -> tuple[State, Tensor]:
        """The decoder's state and the canvas before the first step, which are the same for all images."""
        return (self.h, self.c), self.canvas

    @pyro_method
    @memoised
    def paint(self, z: Tensor, state: State, canvas: Tensor) -> tuple[State, Tensor]:
        """One step from ``z (..., B, D)``; returns the decoder's new state and the canvas ``(..., B, C, H, W)``."""
        state = self.lstm(z, state)
        return state, canvas + self.writer(state[0])

    @pyro_method
    def p_x(self, canvas: Tensor) -> TorchDistributionMixin:
        """p(x | z_1..z_T) from the last canvas ``(..., B, C, H, W)``."""
        return self.likelihood(canvas)

    @pyro_method
    def run_steps(self) -> Tensor:
        """Run all steps inside their plate; returns the last canvas."""
        state, canvas = self.start()
        for t in pyro.markov(range(1, self.num_steps + 1)):
            z = pyro.sample(f"z_{t}", self.p_z())
            state, canvas = self.paint(z, state, canvas)
        return canvas

    def forward(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Score the images ``x (B, C, H, W)`` or sample ``n`` images; returns x."""
        with data_plate(n if x is None else len(x)):
            return pyro.sample("x", self.p_x(self.run_steps()), obs=x)
