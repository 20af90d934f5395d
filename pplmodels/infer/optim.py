"""Optimizers over the parameters of a pair."""

from collections.abc import Mapping

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
    for half in (model, guide):
        if not isinstance(half, nn.Module):
            raise ValueError(
                f"{half!r} has no parameters of its own: construct a torch optimizer with the parameters that it "
                "uses, or train functions with pyro.param by pyro.infer.SVI"
            )
    groups = [{"params": list(module.parameters()), "lr": rate} for module, rate in (lr_of or {}).items()]
    named = {id(p) for group in groups for p in group["params"]}
    rest = [p for half in (model, guide) for p in half.parameters() if id(p) not in named]
    device = rest[0].device
    groups = [{"params": rest, "lr": lr}, *groups]
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
    return torch.optim.Adam(groups, fused=True, **options)


def learning_rates(optim: torch.optim.Optimizer) -> list[Tensor]:
    """The learning-rate tensors of an optimizer's parameter groups, in the order of :func:`adam`."""
    return [group["lr"] for group in optim.param_groups]
