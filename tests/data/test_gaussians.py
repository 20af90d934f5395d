"""The plane sets: fresh draws of known entropy."""

import pytest
import torch

from pplmodels.data.gaussians import GAUSSIANS


@pytest.mark.parametrize("name", GAUSSIANS)
def test_fresh_draws_cost_the_entropy_and_share_no_row(name):
    gaussian = GAUSSIANS[name]
    assert gaussian.entropy() == pytest.approx(4.4473, abs=1e-4)  # ln(2 pi e) + ln 5
    first, second = (gaussian.draw(50_000, seed) for seed in (0, 1))
    cost = -gaussian.distribution().log_prob(first)
    assert float(cost.mean()) == pytest.approx(gaussian.entropy(), abs=5 * float(cost.std()) / 50_000**0.5)
    assert not set(map(tuple, first.tolist())) & set(map(tuple, second.tolist()))
    torch.testing.assert_close(torch.cov(first.mT), torch.tensor(gaussian.covariance), rtol=0.05, atol=0.3)
