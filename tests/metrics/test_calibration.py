"""The reliability of q(n | x)."""

import pytest
import torch

from pplmodels.metrics import calibration_metrics


def posterior(*confidences, count=1):
    """q(n | x) over n = 0..3 whose largest probability is at ``count``."""
    rows = torch.zeros(len(confidences), 4, dtype=torch.float64)
    rows[:] = (1 - torch.tensor(confidences, dtype=torch.float64)[:, None]) / 3
    rows[:, count] = torch.tensor(confidences, dtype=torch.float64)
    return rows


def test_a_table_made_by_hand():
    found = calibration_metrics(posterior(0.95, 0.91, 0.99, 0.55, 0.6, 1.0), torch.tensor([1, 0, 1, 1, 2, 1]))
    share, confidence, accuracy = (found[f"reliability/{column}"] for column in ("share", "confidence", "accuracy"))
    assert share == pytest.approx([0] * 5 + [2 / 6, 0, 0, 0, 4 / 6])  # 0.6 belongs to the bin below
    assert confidence[:5] == accuracy[:5] == [None] * 5
    assert confidence[5] == pytest.approx(0.575) and accuracy[5] == 0.5
    assert confidence[9] == pytest.approx(0.9625) and accuracy[9] == 0.75
    error = 2 / 6 * (0.575 - 0.5) + 4 / 6 * (0.9625 - 0.75)
    assert found["expected_calibration_error"] == pytest.approx(error)


def test_every_edge_belongs_to_the_bin_below():
    edges = [m / 10 for m in range(3, 11)]  # no maximum of four probabilities is below 1/4
    found = calibration_metrics(posterior(*edges), torch.ones(8).long())
    assert found["reliability/share"] == pytest.approx([0, 0] + [1 / 8] * 8)
    assert found["reliability/confidence"][2:] == pytest.approx(edges)


def test_a_count_beyond_the_steps_is_wrong():
    found = calibration_metrics(posterior(0.9), torch.tensor([7]))
    assert found["expected_calibration_error"] == pytest.approx(0.9)


def test_counts_drawn_from_the_posterior_are_calibrated_and_others_are_not():
    """10,000 counts: the error of a bin has a deviation of at most 0.5 / sqrt(n), so their sum is below 0.03."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(10_000, 4, generator=generator, dtype=torch.float64)
    honest = logits.softmax(1)
    counts = honest.multinomial(1, generator=generator).squeeze(1)
    assert calibration_metrics(honest, counts)["expected_calibration_error"] < 0.03
    assert calibration_metrics((3 * logits).softmax(1), counts)["expected_calibration_error"] > 0.06


def test_the_table_adds_up_to_the_accuracy():
    generator = torch.Generator().manual_seed(1)
    q = (2 * torch.randn(500, 5, generator=generator)).softmax(1)
    counts = torch.randint(5, (500,), generator=generator)
    found = calibration_metrics(q, counts)
    rows = zip(found["reliability/share"], found["reliability/accuracy"], strict=True)
    accuracy = sum(share * right for share, right in rows if right is not None)
    assert accuracy == pytest.approx(float((q.argmax(1) == counts).double().mean()))
