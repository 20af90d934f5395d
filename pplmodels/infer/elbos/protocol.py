"""The value and the gradient estimator of an objective as tensors, for all objectives accepted by Pyro's SVI."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    ReweightedWakeSleep,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.elbo import ELBO
from torch import Tensor

JITTED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)
# The methods that compute gradients. A method of a class takes precedence over those of its base classes.
SURROGATE = ("_loss_and_surrogate_loss", "_loss_and_surrogate_loss_particle")  # TraceGraph_ELBO and similar classes
PARTICLE = ("_differentiable_loss_particle",)  # Trace_ELBO and similar classes
DIFFERENTIABLE = ("differentiable_loss",)
OWN = ("loss_and_grads",)


def check_objective(objective) -> None:
    """Raise ValueError for objectives that SVI does not support."""
    name = type(objective).__name__
    if isinstance(objective, JITTED):
        raise ValueError(
            f"{name} uses Pyro's global parameter store: use {name.removeprefix('Jit')} with compile=True instead"
        )
    if isinstance(objective, TraceTailAdaptive_ELBO):
        raise ValueError(
            f"{name} has an infinite loss, after which this class updates no parameters: use it with pyro.infer.SVI"
        )
    if isinstance(objective, ReweightedWakeSleep):
        raise ValueError(f"{name} has two losses, but a step returns only one: use it with pyro.infer.SVI")
    if not (isinstance(objective, ELBO) and _kind(objective)) and (
        isinstance(objective, ELBO) or not callable(objective)
    ):
        raise ValueError(
            f"{name} has no gradients: loss must be an ELBO of Pyro or a function of model, guide and arguments"
        )


def why_uncompiled(objective) -> str:
    """A sentence about why a step with this objective cannot be compiled; "" if compilation can be tried."""
    if not isinstance(objective, ELBO) or _kind(objective) in (SURROGATE, PARTICLE):
        return ""
    return (
        f"{type(objective).__name__} cannot be compiled: it computes its own gradients and may read values back to the "
        "host. Trace_ELBO, TraceGraph_ELBO and subclasses that change their surrogate losses can be compiled."
    )


def has_own_gradients(objective) -> bool:
    """Whether the objective computes gradients by itself (:func:`loss_of_own_gradients`)."""
    return isinstance(objective, ELBO) and _kind(objective) is OWN


def loss_and_surrogate(objective, model, guide, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """The negative bound, and a surrogate whose gradient is the gradient estimator."""
    kind = _kind(objective) if isinstance(objective, ELBO) else None
    if kind is SURROGATE:
        bound, surrogate = objective._loss_and_surrogate_loss(model, guide, args, kwargs)
        return -bound, surrogate
    if kind is PARTICLE:
        loss, surrogate = 0.0, 0.0
        particle = objective._differentiable_loss_particle
        # Trace_ELBO would read every site's value back to the host for its sum: let it add tensors instead
        with patch.dict(particle.__func__.__globals__, torch_item=lambda value: value):
            for traces in objective._get_traces(model, guide, args, kwargs):
                terms = particle(*traces)
                loss = loss + _detached(terms[0]) / objective.num_particles
                surrogate = surrogate + terms[1] / objective.num_particles
        return loss, surrogate
    call: Callable = objective if kind is None else objective.differentiable_loss
    loss = call(model, guide, *args, **kwargs)
    return loss, loss


def value_of(objective, model, guide, args: tuple, kwargs: dict) -> Tensor | float:
    """The negative bound, without gradients."""
    if isinstance(objective, ELBO) and _kind(objective) not in (SURROGATE, PARTICLE):
        return objective.loss(model, guide, *args, **kwargs)
    return loss_and_surrogate(objective, model, guide, args, kwargs)[0]


def _detached(value):
    return value.detach() if isinstance(value, Tensor) else value


def loss_of_own_gradients(
    objective, model, guide, args: tuple, kwargs: dict, parameters: list[Tensor]
) -> tuple[float, tuple[Tensor | None, ...]]:
    """The loss of an objective that calls ``backward`` by itself, and the resulting gradients of the parameters."""
    for parameter in parameters:
        parameter.grad = None
    with torch.enable_grad():
        loss = objective.loss_and_grads(model, guide, *args, **kwargs)
    return loss, tuple(parameter.grad for parameter in parameters)


def _kind(objective: ELBO) -> tuple[str, ...] | None:
    """Which of its methods give the gradients: the ones of its most derived class that has any."""
    for cls in type(objective).__mro__:
        for names in (SURROGATE, PARTICLE, DIFFERENTIABLE, OWN):
            if any(name in vars(cls) for name in names):
                return names
    return None
