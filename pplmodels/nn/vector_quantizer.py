"""Vector quantisation (van den Oord et al. 2017, arXiv 1711.00937, section 3 and appendix A.1)."""

import torch
from torch import Tensor, nn

from pplmodels.distributed import all_reduce, broadcast

EPS = 1e-5  # of a code's count, so that a mean of nothing is not a division by nothing


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


def _exactly(tensor: Tensor) -> torch.autocast:
    """Products in their operands' own precision, whatever the step's is: distances are differences of large numbers."""
    return torch.autocast(tensor.device.type, enabled=False)


class Codebook(nn.Module):
    """K vectors of D numbers.

    They are learned by gradient (of whatever uses :meth:`embed`), or with ``decay`` as running means of the vectors
    that were nearest to each (appendix A.1). Either way a code that is not used any more is put where some vector of
    the batch is (:meth:`update_ema`).

    Arguments:
        codes: K.
        dim: D.
        decay: of the running means; None to learn by gradient.
        patience: batches in a row after which a code that was nearest to nothing is revived.
    """

    def __init__(self, codes: int, dim: int, decay: float | None = None, patience: int = 20):
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
        """Note that ``codes (..., H, W)`` were nearest to ``z (..., D, H, W)``: usage, running means, revival.

        Leading dimensions that only the codes have are samples for the same images, which together count once.
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
        """Put some codes, ``which (K)``, to other places, ``to (K, D)``, as if a vector there had been theirs."""
        self.vectors.copy_(torch.where(which[:, None], to, self.vectors))
        self.steps_unused.copy_(torch.where(which, 0, self.steps_unused))
        if self.decay is not None:
            self.sums.copy_(torch.where(which[:, None], to, self.sums))
            self.counts.copy_(torch.where(which, 1, self.counts))

    @torch.no_grad()
    def init_from(self, z: Tensor) -> None:
        """Put the codes where vectors of ``z (..., D, H, W)`` are, drawn at random."""
        z = z.movedim(-3, -1).flatten(0, -2)
        drawn = torch.randperm(len(z), device=z.device)[torch.arange(len(self.vectors)) % len(z)]
        self._reset(z[drawn], torch.ones_like(self.steps_unused, dtype=torch.bool))
