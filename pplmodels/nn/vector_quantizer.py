"""Vector quantization (van den Oord et al. 2017, arXiv 1711.00937, section 3 and appendix A.1)."""

import torch
from torch import Tensor, nn

from pplmodels.distributed import all_reduce, broadcast

EPS = 1e-5  # smallest count of a code, which prevents division by 0


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, continuous: Tensor, quantised: Tensor) -> Tensor:
        return quantised.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(continuous: Tensor, quantised: Tensor) -> Tensor:
    """The exact value of ``quantised`` with the gradient of ``continuous``."""
    return _StraightThrough.apply(continuous, quantised)


def _exactly(tensor: Tensor) -> torch.autocast:
    """Disable autocast, because distances are differences of large numbers."""
    return torch.autocast(tensor.device.type, enabled=False)


class Codebook(nn.Module):
    """A codebook of K vectors of size D.

    The vectors are learned by gradient (through :meth:`embed`) or, with ``decay``, as running means of the inputs
    assigned to them (appendix A.1). In both cases, a code that is no longer used is reset to a random input of the
    batch (:meth:`update_ema`).

    Arguments:
        codes: K.
        dim: D.
        decay: decay of the running means; None to learn by gradient.
        patience: number of consecutive batches without use after which a code is reset.
    """

    vectors: Tensor  # (K, D), a parameter or a buffer
    sums: Tensor  # (K, D), only with ``decay``, as is ``counts (K)``
    counts: Tensor
    steps_unused: Tensor  # (K)

    def __init__(self, codes: int, dim: int, decay: float | None = None, patience: int = 20):
        super().__init__()
        if codes < 1 or dim < 1:
            raise ValueError(f"a codebook needs at least one vector and one dimension, not {codes} and {dim}")
        vectors = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        if decay is None:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
            self.register_buffer("sums", vectors.clone())
            self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("steps_unused", torch.zeros(codes))
        self.decay, self.patience = decay, patience

    def __len__(self) -> int:
        """K."""
        return len(self.vectors)

    def nearest(self, z: Tensor) -> Tensor:
        """The code nearest to each vector: ``(..., D, H, W) -> (..., H, W)``, int64."""
        vectors = self.vectors.detach()
        z = z.detach().movedim(-3, -1).to(vectors.dtype)
        with _exactly(z):  # |z|^2 is the same for all codes
            return (vectors.square().sum(1) - 2 * z @ vectors.mT).argmin(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """The codes' vectors: ``(..., H, W) -> (..., D, H, W)``."""
        return self.vectors[codes].movedim(-1, -3)

    @torch.no_grad()
    def update_ema(self, z: Tensor, codes: Tensor) -> None:
        """Update usage counts and running means with ``codes (..., H, W)``, the nearest to ``z (..., D, H, W)``.

        Unused codes are reset. Additional leading dimensions of the codes are samples for the same images, which
        together count once.
        """
        z = z.movedim(-3, -1).flatten(0, -2).to(self.vectors.dtype)
        names = torch.arange(len(self.vectors), device=z.device)
        assigned = (codes.reshape(-1, len(z), 1) == names).to(z.dtype).mean(0)  # (N, K)
        used = all_reduce(assigned.sum(0))
        if self.decay is not None:
            self.counts.lerp_(used, 1 - self.decay)
            with _exactly(z):
                self.sums.lerp_(all_reduce(assigned.mT @ z), 1 - self.decay)
            all_counts = self.counts.sum()
            smoothed = (self.counts + EPS) / (all_counts + len(used) * EPS) * all_counts
            self.vectors.copy_(self.sums / smoothed[:, None])
        self.steps_unused.copy_(torch.where(used > 0, 0, self.steps_unused + 1))
        dead = self.steps_unused >= self.patience
        here = z[torch.randint(len(z), (len(used),), device=z.device)]
        self._reset(broadcast(here), dead)

    def _reset(self, to: Tensor, which: Tensor) -> None:
        """Reset the codes in ``which (K)`` to the vectors ``to (K, D)``, each with a count of one."""
        self.vectors.copy_(torch.where(which[:, None], to, self.vectors))
        self.steps_unused.copy_(torch.where(which, 0, self.steps_unused))
        if self.decay is not None:
            self.sums.copy_(torch.where(which[:, None], to, self.sums))
            self.counts.copy_(torch.where(which, 1, self.counts))

    @torch.no_grad()
    def init_from(self, z: Tensor) -> None:
        """Initialize the codes with random vectors of ``z (..., D, H, W)``."""
        z = z.movedim(-3, -1).flatten(0, -2)
        drawn = torch.randperm(len(z), device=z.device)[torch.arange(len(self.vectors)) % len(z)]
        self._reset(z[drawn], torch.ones_like(self.steps_unused, dtype=torch.bool))
