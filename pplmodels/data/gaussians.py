"""Two-dimensional Gaussian datasets with known entropy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pplmodels.defaults import float32_on_cpu


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) in the plane. Every split is a fresh draw, so test points are not training points."""

    mean: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]

    @float32_on_cpu()
    def distribution(self) -> torch.distributions.MultivariateNormal:
        """The true distribution of the dataset."""
        return torch.distributions.MultivariateNormal(torch.tensor(self.mean), torch.tensor(self.covariance))

    @float32_on_cpu()
    def draw(self, n: int, seed: int) -> Tensor:
        """``n`` points, ``(n, 2)``, deterministic in ``seed``."""
        factor = torch.linalg.cholesky(torch.tensor(self.covariance))
        noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
        return torch.tensor(self.mean) + noise @ factor.mT

    @float32_on_cpu()
    def entropy(self) -> float:
        """The entropy in nats, a lower bound of any model's expected -log p on fresh data."""
        return math.log(2 * math.pi * math.e) + 0.5 * float(torch.tensor(self.covariance).logdet())


# standard deviations of 5 and 1, along the diagonals or along the axes
GAUSSIANS = {
    "rotated": Gaussian((1.0, 2.0), ((13.0, 12.0), (12.0, 13.0))),
    "rotated-2": Gaussian((-1.0, 2.0), ((13.0, -12.0), (-12.0, 13.0))),
    "aligned": Gaussian((1.0, 2.0), ((25.0, 0.0), (0.0, 1.0))),
    "aligned-2": Gaussian((-1.0, 2.0), ((1.0, 0.0), (0.0, 25.0))),
}
