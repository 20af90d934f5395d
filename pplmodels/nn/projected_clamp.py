"""Bounded values whose gradient can always pull them back."""

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
        outward = ((x > limit) & (grad < 0)) | ((x < -limit) & (grad > 0))  # descent would move x further out
        return grad.masked_fill(outward, 0), None


def projected_clamp(x: Tensor, limit: Tensor) -> Tensor:
    """``x`` held within [-limit, limit], ``limit ()``, as in projected gradient descent.

    Beyond the limit a gradient that leads further out is dropped and one that leads back passes whole, where clamping
    would drop both and squashing would shrink both: what was pushed against its bound leaves it as soon as it should.
    """
    return _ProjectedClamp.apply(x, limit)
