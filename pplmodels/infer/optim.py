"""Optimizers over the parameters of a pair."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def adam(
    model: nn.Module, guide: nn.Module, lr: float, lr_of: Mapping[nn.Module, float] | None = None, **options
) -> torch.optim.Adam:
    """A fused Adam optimizer for the parameters of a pair.

    ``lr_of`` maps modules to their learning rates. The first parameter group holds all other parameters, and it is
    followed by one group per module in ``lr_of``. Learning rates are tensors on the parameters' device, so that a
    schedule can modify them in place (:class:`pplmodels.infer.Annealed`). ``options`` are passed to
    :class:`torch.optim.Adam`.
    """
    for module in (model, guide):
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"{module!r} has no parameters of its own: construct a torch optimizer with the parameters that it "
                "uses, or train functions with pyro.param by pyro.infer.SVI"
            )
    rates = [(list(module.parameters()), rate) for module, rate in (lr_of or {}).items()]
    named = {id(p) for parameters, _ in rates for p in parameters}
    rest = [p for module in (model, guide) for p in module.parameters() if id(p) not in named]
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": torch.tensor(rate, device=rest[0].device)}
        for parameters, rate in ((rest, lr), *rates)
    ]
    return torch.optim.Adam(groups, fused=True, **options)


def learning_rates(optim: torch.optim.Optimizer) -> list[Tensor]:
    """The learning-rate tensors of an optimizer's parameter groups, in the order of :func:`adam`."""
    return [group["lr"] for group in optim.param_groups]
