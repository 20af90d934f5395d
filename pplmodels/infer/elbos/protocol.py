"""The protocol of objectives, and Pyro's ELBOs as objectives."""

from collections.abc import Callable
from functools import reduce
from typing import Any, Protocol
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
# The methods that compute an ELBO's gradients. A method of a class takes precedence over those of its base classes.
SURROGATE = ("_loss_and_surrogate_loss", "_loss_and_surrogate_loss_particle")  # TraceGraph_ELBO and similar classes
PARTICLE = ("_differentiable_loss_particle",)  # Trace_ELBO and similar classes
DIFFERENTIABLE = ("differentiable_loss",)
OWN = ("loss_and_grads",)


class Objective(Protocol):
    """A function ``objective(model, guide, *args, **kwargs) -> loss, surrogate`` that :class:`SVI` minimizes.

    It runs model and guide on ``args`` and ``kwargs``, the arguments of :meth:`SVI.step`, and returns two tensors of
    shape ``()``:

    - ``loss`` is the value that is reported, in nats. Like the losses of Pyro, it is a total over the images, not a
      mean: SVI divides it by the full size of the plate named "data".
    - The gradient of ``surrogate`` is the estimator of the gradient of the expected loss. The value of ``surrogate`` is
      not used. For a score-function estimator, ``surrogate = loss + sum over images of cost * log q``, where no
      gradient flows through the cost.

    If all random choices are reparameterized, the loss usually is its own surrogate. An objective may then return this
    one tensor, as a loss function for stock Pyro does. All other results raise ValueError.

    :meth:`SVI.evaluate_loss` calls the objective under ``torch.no_grad()`` and only uses ``loss``. In distributed
    training, each rank calls it on its share of the images, and SVI adds up losses and gradients. Statistics of the
    whole batch have to be summed over the ranks by the objective itself (:func:`pplmodels.distributed.all_reduce`).

    An objective can be an object with state. Its tensors are read at each step, also by a compiled step, and parameters
    of its modules are learned if the optimizer has them. Its state is not part of a training run's checkpoint.
    """

    def __call__(self, model: Callable, guide: Callable, /, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns loss and surrogate."""


def check_objective(objective: object) -> None:
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
            f"{name} has no gradients: loss must be an ELBO of Pyro or a function of model, guide and arguments, "
            "which returns a loss and its surrogate"
        )


def why_uncompiled(objective: object) -> str:
    """A sentence about why a step with this objective cannot be compiled; "" if compilation can be tried."""
    if not isinstance(objective, ELBO) or _kind(objective) in (SURROGATE, PARTICLE):
        return ""
    return (
        f"{type(objective).__name__} cannot be compiled: it computes its own gradients and may read values back to the "
        "host. Trace_ELBO, TraceGraph_ELBO and subclasses that change their surrogate losses can be compiled."
    )


def loss_and_surrogate(
    objective: ELBO | Callable, parameters: list[Tensor], model, guide, args: tuple, kwargs: dict
) -> tuple[Tensor, Tensor]:
    """Call an :class:`Objective`, a function that returns one tensor, or an ELBO of Pyro.

    ``parameters`` are those whose gradients are used of an ELBO that computes them by itself. Raises ValueError if the
    result is not as the protocol requires.
    """
    call = PyroObjective(objective, parameters) if isinstance(objective, ELBO) else objective
    result = call(model, guide, *args, **kwargs)
    pair = (result, result) if isinstance(result, Tensor) else result
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(t, Tensor) and t.dim() == 0 for t in pair):
        return pair
    name = getattr(objective, "__name__", type(objective).__name__)
    raise ValueError(
        f"{name} returned {_described(result)}: an objective returns two tensors of shape (), its loss and its "
        "surrogate, or one that is both"
    )


def _described(result) -> str:
    if isinstance(result, Tensor):
        return f"tensor of shape {tuple(result.shape)}"
    return f"({', '.join(map(_described, result))})" if isinstance(result, tuple) else type(result).__name__


class PyroObjective:
    """An ELBO of Pyro as an :class:`Objective`.

    The gradients are those of the stock class: of the methods of ``elbo`` that :func:`_kind` finds.

    Arguments:
        elbo: an objective accepted by Pyro's SVI.
        parameters: those whose gradients are used if ``elbo`` computes them by itself.
    """

    def __init__(self, elbo: ELBO, parameters: list[Tensor]):
        self.elbo: Any = elbo  # Pyro's base class declares none of the methods that _kind finds in its subclasses
        self.parameters = parameters

    def __call__(self, model, guide, /, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """The negative bound, and a surrogate whose gradient is the gradient estimator."""
        kind = _kind(self.elbo)
        if kind is SURROGATE:
            bound, surrogate = self.elbo._loss_and_surrogate_loss(model, guide, args, kwargs)
            loss = -bound
        elif kind is PARTICLE:
            loss, surrogate = self._of_particles(model, guide, args, kwargs)
        elif not torch.is_grad_enabled():
            loss = surrogate = self.elbo.loss(model, guide, *args, **kwargs)
        elif kind is DIFFERENTIABLE:
            loss = surrogate = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        else:
            loss, surrogate = self._of_own_gradients(model, guide, args, kwargs)
        return torch.as_tensor(loss), torch.as_tensor(surrogate)

    def _of_particles(self, model, guide, args: tuple, kwargs: dict) -> tuple[Tensor | float, Tensor | float]:
        loss, surrogate = 0.0, 0.0
        particle = self.elbo._differentiable_loss_particle
        # Trace_ELBO would read every site's value back to the host for its sum: let it add tensors instead
        with patch.dict(particle.__func__.__globals__, torch_item=lambda value: value):
            for traces in self.elbo._get_traces(model, guide, args, kwargs):
                terms = particle(*traces)
                loss = loss + _detached(terms[0]) / self.elbo.num_particles
                surrogate = surrogate + terms[1] / self.elbo.num_particles
        return loss, surrogate

    def _of_own_gradients(self, model, guide, args: tuple, kwargs: dict) -> tuple[Tensor | float, Tensor]:
        """The loss of an ELBO that calls ``backward`` by itself, and a surrogate with the resulting gradients."""
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.elbo.loss_and_grads(model, guide, *args, **kwargs)
        terms = [(p.grad * p).sum() for p in self.parameters if p.grad is not None]
        if not terms:
            raise ValueError(
                f"{type(self.elbo).__name__} computed no gradients: it only finds parameters that are registered with "
                "Pyro, such as those of a PyroModule"
            )
        return loss, reduce(torch.add, terms)


def _detached(value):
    return value.detach() if isinstance(value, Tensor) else value


def _kind(objective: ELBO) -> tuple[str, ...] | None:
    """Which of its methods give the gradients: the ones of its most derived class that has any."""
    for cls in type(objective).__mro__:
        for names in (SURROGATE, PARTICLE, DIFFERENTIABLE, OWN):
            if any(name in vars(cls) for name in names):
                return names
    return None
