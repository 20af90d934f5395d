"""Vector quantisation (van den Oord et al. 2017, arXiv 1711.00937, section 3 and appendix A.1)."""

import torch
from torch import Tensor, nn

SMOOTHING = 1e-5  # of a code's count, so that a mean of nothing is not a division by nothing


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, continuous: Tensor, quantised: Tensor) -> Tensor:
        return quantised.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(continuous: Tensor, quantised: Tensor) -> Tensor:
    """The value of ``quantised`` to the bit, with the gradient of ``continuous``."""
    return _StraightThrough.apply(continuous, quantised)


class Codebook(nn.Module):
    """K vectors of D numbers.

    They are learned by gradient (of whatever uses :meth:`embed`), or with ``decay`` as running means of the vectors
    that were nearest to each (appendix A.1). Either way a code that is hardly used any more is put where some vector of
    the batch is (:meth:`follow`).

    Arguments:
        codes: K.
        dim: D.
        decay: of the running means; None to learn by gradient.
        least_use: a code that quantises fewer vectors of a batch, in the running mean, is revived.
    """

    def __init__(self, codes: int, dim: int, decay: float | None = None, least_use: float = 0.03):
        super().__init__()
        if codes < 1 or dim < 1:
            raise ValueError(f"a codebook of {codes} vectors of {dim} numbers is none: both are at least 1")
        vectors = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        if decay is None:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
            self.register_buffer("sums", vectors.clone())
        self.register_buffer("counts", torch.ones(codes))
        self.decay, self.least_use = decay, least_use

    def nearest(self, z: Tensor) -> Tensor:
        """The code nearest to each vector: ``(..., D, H, W) -> (..., H, W)``, int64."""
        z = z.detach().movedim(-3, -1)
        vectors = self.vectors.detach()
        # |z|^2 is the same for all codes
        return (vectors.square().sum(1) - 2 * z @ vectors.mT).argmin(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """The codes' vectors: ``(..., H, W) -> (..., D, H, W)``."""
        return self.vectors[codes].movedim(-1, -3)

    @torch.no_grad()
    def follow(self, z: Tensor, codes: Tensor) -> None:
        """Note that ``codes (..., H, W)`` were nearest to ``z (..., D, H, W)``: usage, running means, revival."""
        z = z.movedim(-3, -1).flatten(0, -2)
        names = torch.arange(len(self.vectors), device=z.device)
        assigned = (codes.flatten()[:, None] == names).to(z.dtype)  # (N, K)
        used = assigned.sum(0)
        decay = 0.99 if self.decay is None else self.decay
        self.counts.lerp_(used, 1 - decay)
        if self.decay is not None:
            self.sums.lerp_(assigned.mT @ z, 1 - decay)
            total = self.counts.sum()
            smoothed = (self.counts + SMOOTHING) / (total + len(used) * SMOOTHING) * total
            self.vectors.copy_(self.sums / smoothed[:, None])
        dead = (self.counts < self.least_use) & (used == 0)
        here = z[torch.randint(len(z), (len(used),), device=z.device)]
        self.vectors.copy_(torch.where(dead[:, None], here, self.vectors))
        self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
        if self.decay is not None:
            self.sums.copy_(torch.where(dead[:, None], here, self.sums))

    @torch.no_grad()
    def start_at(self, z: Tensor) -> None:
        """Put the codes where vectors of ``z (..., D, H, W)`` are, drawn at random."""
        z = z.movedim(-3, -1).flatten(0, -2)
        self.vectors.copy_(z[torch.randperm(len(z), device=z.device)[torch.arange(len(self.vectors)) % len(z)]])
        self.counts.fill_(1.0)
        if self.decay is not None:
            self.sums.copy_(self.vectors)
