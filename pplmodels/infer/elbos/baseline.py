"""Control variates for discrete sites (NVIL: Mnih & Gregor 2014, arXiv 1402.0030, section 2.3)."""

from dataclasses import dataclass

import torch
from pyro.poutine.runtime import get_plates
from torch import Tensor, nn

from pplmodels.distributed import all_reduce
from pplmodels.nn import mlp


@dataclass(frozen=True)
class ScoreNormalizer:
    """Normalizes a site's learning signal by the running moments of ``baseline``.

    ``mask`` is 1 for images in which the site is sampled, and broadcasts to the site's batch shape.
    """

    baseline: "NeuralBaseline"
    mask: Tensor


class NeuralBaseline(nn.Module):
    """Predicts the downstream cost of a discrete choice from the information available before the choice.

    The network's output is standardized: the prediction is ``cost_mean + cost_std * net(...)`` with running moments of
    the costs, so the network's targets have unit scale throughout training. The learning signal is the cost minus the
    prediction. Its running standard deviation is also tracked, and :class:`pplmodels.infer.PerSite_ELBO` divides by it.
    The stock ELBO does not call :meth:`update_moments`, so the moments stay 0 and 1, and this is a plain neural
    baseline.

    ``forward`` detaches its inputs, so that gradients of the baseline's loss do not reach other networks.

    Arguments:
        context_dim: size of the image features, which are the same in all steps.
        state_dim: size of the features that differ between steps.
        hidden_dim: width of the two hidden layers.
        decay: decay per step of the running moments.
    """

    observations: Tensor
    cost_mean: Tensor
    cost_var: Tensor
    signal_var: Tensor

    def __init__(self, context_dim: int, state_dim: int, hidden_dim: int = 256, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.embed = nn.Linear(context_dim, hidden_dim)
        self.state = nn.Linear(state_dim, hidden_dim, bias=False)
        self.head = mlp(hidden_dim, (hidden_dim,), 1)
        self.register_buffer("observations", torch.zeros(()))
        self.register_buffer("cost_mean", torch.zeros(()))
        self.register_buffer("cost_var", torch.ones(()))
        self.register_buffer("signal_var", torch.ones(()))

    def context(self, context: Tensor) -> Tensor:
        """The image's term in the first layer, computed once per image: ``(B, context_dim) -> (B, hidden_dim)``."""
        return self.embed(context.detach())

    def forward(self, context: Tensor, state: Tensor, active: Tensor) -> Tensor:
        """The predicted cost in nats, ``(..., B)``, from :meth:`context`'s result and ``state (..., B, state_dim)``.

        ``active (..., B)`` is 1 where a choice is made. Elsewhere, the prediction is 0 and has no gradient. Leading
        dimensions of size 1 are dropped, because TraceGraph_ELBO drops them from the costs (for a batch of one).
        """
        standardised = self.head((context + self.state(state.detach())).relu()).squeeze(-1)
        value = active * (self.cost_mean + self.cost_var.sqrt() * standardised)
        while value.shape[:1] == (1,):
            value = value.squeeze(0)
        return value

    def infer_config(self, context: Tensor, state: Tensor, active: Tensor) -> dict:
        """The ``infer`` argument of the site's ``pyro.sample``. ``active`` is 1 for images in which it is sampled."""
        value = _in_plates(self(context, state, active))
        return {"baseline": {"baseline_value": value}, "score_normalizer": ScoreNormalizer(self, active)}

    @torch.no_grad()
    def update_moments(self, cost: Tensor, signal: Tensor, active: Tensor) -> None:
        """Update the running moments with a batch's costs and learning signals, where ``active`` is 1."""
        number = all_reduce(active.sum())
        weight = active / number.clamp(min=1)
        any_active = (number > 0).to(cost.dtype)
        self.observations += any_active
        # a plain mean over the first batches
        rate = any_active * self.observations.clamp(min=1).reciprocal().clamp(min=1 - self.decay)
        self.cost_mean.lerp_(all_reduce((weight * cost).sum()), rate)
        self.cost_var.lerp_(all_reduce((weight * (cost - self.cost_mean).square()).sum()), rate)
        self.signal_var.lerp_(all_reduce((weight * signal.square()).sum()), rate)

    def explained_variance(self) -> Tensor:
        """The fraction of the costs' variance that is explained by the prediction, from the running moments."""
        return 1 - self.signal_var / self.cost_var

    def signal_std(self) -> Tensor:
        """The divisor of learning signals: their running standard deviation, at least 1 nat (NVIL, section 2.3.3)."""
        return self.signal_var.sqrt().clamp(min=1)


def _in_plates(value: Tensor) -> Tensor:
    """The value, expanded to the shape of the enclosing plates, e.g. of the plate of particles."""
    sizes = {-plate.dim: plate.size for plate in get_plates() if plate.dim is not None}
    shape = [sizes.get(place, 1) for place in range(max(sizes, default=0), 0, -1)]
    return value.expand(torch.broadcast_shapes(value.shape, shape)) if len(shape) > value.dim() else value
