"""The noise of the gradient estimates of a pair."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pplmodels.infer.compile.state import Snapshot, State
from pplmodels.infer.svi import SVI


def gradient_variance(svi: SVI, args: tuple, parameters: Sequence[Tensor], repeats: int = 16) -> float:
    """The total variance of the gradient of ``parameters`` over ``repeats`` estimates, in (nats per image per unit)^2.

    Weights and batch are fixed and only the guide's samples differ, so this is the noise of the estimator and not of
    the data. The pair, its buffers, the objective's state and the random generators are restored. The estimates are
    those used by :meth:`SVI.step`, before clipping.
    """
    learned = svi.parameters()
    chosen = [i for i, p in enumerate(learned) if any(p is q for q in parameters)]
    state = State({"model": svi.model, "guide": svi.guide, "loss": svi.elbo, "parameters": learned})
    before = Snapshot.of(state)
    estimates = []
    for _ in range(repeats):
        _, images, gradients = svi.gradients(*args)
        found = [gradient for gradient in (gradients[i] for i in chosen) if gradient is not None]
        estimates.append(torch.cat([(gradient / images).flatten() for gradient in found]))
    state.restore_bindings()
    before.restore()
    return float(torch.stack(estimates).var(0).sum())
