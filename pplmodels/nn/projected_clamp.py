"""Clamping with a gradient that can move values back from their bounds."""

import torch
from torch import Tensor


class _ProjectedClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(x, limit)
        return torch.clamp(x, -limit, limit)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        x, limit = ctx.saved_tensors
        outward = ((x > limit) & (grad < 0)) | ((x < -limit) & (grad > 0))  # gradient descent would move x further out
        return grad.masked_fill(outward, 0), None


def projected_clamp(x: Tensor, limit: Tensor) -> Tensor:
    """Clamp ``x`` to [-limit, limit], ``limit ()``, as in projected gradient descent.

    Beyond the limit, a gradient that points further out is dropped, and one that points back is passed unchanged, so
    that values can leave their bounds immediately. Clamping would drop both, and squashing would shrink both.
    """
    return _ProjectedClamp.apply(x, limit)
