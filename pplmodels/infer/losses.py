"""An ELBO's value and its gradient estimator as tensors, for every ELBO of Pyro that has them."""

from unittest.mock import patch

from pyro.infer.elbo import ELBO
from torch import Tensor


def is_differentiable(elbo: ELBO) -> bool:
    """Whether :func:`loss_and_surrogate` knows the ELBO."""
    return any(hasattr(elbo, name) for name in ("_loss_and_surrogate_loss", "differentiable_loss"))


def stays_on_device(elbo: ELBO) -> bool:
    """Whether its value and surrogate are computed without reading numbers back, as compiling needs."""
    return any(hasattr(elbo, name) for name in ("_loss_and_surrogate_loss", "_differentiable_loss_particle"))


def loss_and_surrogate(elbo: ELBO, model, guide, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """Minus the bound, and a scalar whose gradients are the estimator's."""
    if hasattr(elbo, "_loss_and_surrogate_loss"):  # TraceGraph_ELBO
        bound, surrogate = elbo._loss_and_surrogate_loss(model, guide, args, kwargs)
        return -bound, surrogate
    if hasattr(elbo, "_differentiable_loss_particle"):  # Trace_ELBO, TraceMeanField_ELBO
        loss, surrogate = 0.0, 0.0
        particle = elbo._differentiable_loss_particle
        # Trace_ELBO reads every site's value back to the host only to add it up: let it add tensors
        with patch.dict(particle.__func__.__globals__, torch_item=lambda value: value):
            for traces in elbo._get_traces(model, guide, args, kwargs):
                terms = particle(*traces)
                loss = loss + terms[0].detach() / elbo.num_particles
                surrogate = surrogate + terms[1] / elbo.num_particles
        return loss, surrogate
    loss = elbo.differentiable_loss(model, guide, *args, **kwargs)
    return loss, loss
