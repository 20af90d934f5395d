"""DRAW: the guide (Gregor et al. 2015, arXiv 1502.04623)."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplmodels.models.draw import DRAW
from pplmodels.module import PairModule, data_plate
from pplmodels.nn.draw_attention import AttentionReader, FullReader, State


class DRAWGuide(PairModule):
    """A recurrent encoder that compares the image with the current canvas.

    .. code-block:: text

        q(z | x) = prod_{t=1..T} q(z_t | z_{<t}, x)

        e_t = x - sigmoid(c_{t-1})                    error of the canvas
        r_t = read(x, e_t, h_{t-1})
        s_t = LSTM([r_t, h_{t-1}], s_{t-1})
        z_t ~ N(loc(s_t), scale(s_t)^2)

    c and h are the model's canvas and state given z_{<t} (c and h^dec in the paper, where s is h^enc).

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  in the paper
    ====  ============  ===========  ===========  ===================
    z_t   real          (B)          (D)          reparameterized
    ====  ============  ===========  ===========  ===================

    Arguments:
        model: computes the canvas. Its parameters belong to the model, but also get gradients through the guide. Pass
            the model to :meth:`from_pretrained`, too.
        hidden_dim: size of s_t.
        read_window: N of the read window; None to read the whole image at each step.
    """

    role = "guide"
    model: DRAW

    def __init__(self, model: DRAW, hidden_dim: int = 256, read_window: int | None = None):
        super().__init__("draw_guide")
        self.__dict__["model"] = model  # not a submodule: the guide neither owns nor saves it
        sizes = (model.image, model.hidden_dim, hidden_dim)
        self.reader = AttentionReader(*sizes, read_window) if read_window else FullReader(*sizes)
        self.h, self.c = (nn.Parameter(torch.zeros(hidden_dim)) for _ in range(2))
        self.code = nn.Linear(hidden_dim, 2 * model.z_dim)

    @pyro_method
    def read(self, seen: Tensor, x: Tensor, canvas: Tensor, painter: Tensor, state: State) -> State:
        """One step of the encoder, from fixed features ``seen`` of ``x (..., B, C, H, W)`` and ``painter``, h."""
        return self.reader(seen, x, x - canvas.sigmoid(), painter, state)

    @pyro_method
    def q_z(self, s: Tensor) -> TorchDistributionMixin:
        """q(z_t | z_{<t}, x), event shape (D), from the encoder's state ``s (..., B, hidden_dim)``."""
        loc, log_scale = self.code(s).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Sample the latents of the images ``x (B, C, H, W)``. ``n`` is an argument of the model and unused here."""
        if x is None:
            raise ValueError("DRAW's guide infers latents from images: x is required")
        with data_plate(len(x)):
            seen = self.reader.look(x)
            reader: State = (self.h, self.c)
            painter, canvas = self.model.start()
            for t in pyro.markov(range(1, self.model.num_steps + 1)):
                reader = self.read(seen, x, canvas, painter[0], reader)
                z = pyro.sample(f"z_{t}", self.q_z(reader[0]))
                if t < self.model.num_steps:
                    painter, canvas = self.model.paint(z, painter, canvas)
