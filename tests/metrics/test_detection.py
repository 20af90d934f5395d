"""What is drawn where: boxes, their matching against all matchings, and metrics of scenes made by hand."""

from itertools import permutations

import pytest
import torch

from pplmodels.boxes import INK, pairwise_iou
from pplmodels.metrics import detection_metrics, matched_iou, object_boxes, scene_iou, shares_by_count

NONE = [torch.nan] * 4
A, B, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 30.0, 10.0, 40.0]
NEAR_A = [0.0, 0.0, 10.0, 8.0]  # IoU with A: 0.8
PART_OF_A = [0.0, 0.0, 10.0, 4.0]  # IoU with A: 0.4


def random_boxes(number, rows, generator, side=12):
    """Boxes that often overlap, of which the last rows of some scenes do not exist."""
    corner = side * torch.rand(number, rows, 2, generator=generator)
    boxes = torch.cat([corner, corner + 1 + side / 2 * torch.rand(number, rows, 2, generator=generator)], -1)
    exist = torch.randint(rows + 1, (number, 1), generator=generator) > torch.arange(rows)
    return boxes.masked_fill(~exist[..., None], torch.nan)


def changes_of(*objects, channels=1):
    """Changes ``(1, T, channels, 6, 8)`` of a square of ``side`` pixels by ``level`` of 255 each, at (2, 1)."""
    changes = torch.zeros(1, len(objects), channels, 6, 8)
    for t, (side, level) in enumerate(objects):
        changes[0, t, -1, 1 : 1 + side, 2 : 2 + side] = level / 255
    return changes


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_contains_what_changes_by_more_than_a_tenth_in_any_channel_and_direction(channels):
    changes = changes_of((3, 255), (2, -60), (3, INK + 0.5), (3, INK - 0.5), (1, 255), channels=channels)
    changes[0, 0, 0, 5, 7] = (INK - 0.5) / 255  # too little to count
    boxes = object_boxes(changes)
    assert boxes.shape == (1, 5, 4)
    assert boxes[0, :3].tolist() == [[2, 1, 5, 4], [2, 1, 4, 3], [2, 1, 5, 4]]
    assert boxes[0, 3:].isnan().all()  # too faint, and too small


def test_an_object_of_three_pixels_is_dark_and_of_four_is_not():
    changes = torch.zeros(2, 1, 4, 4)
    changes[0, 0, 0, :3] = changes[1, 0, 0, :4] = 1
    boxes = object_boxes(changes)
    assert boxes[0].isnan().all() and boxes[1].tolist() == [0, 0, 4, 1]


def test_small_changes_in_different_channels_do_not_add_up():
    assert object_boxes(torch.full((1, 3, 4, 4), 0.06)).isnan().all()


def best_total(overlap):
    """The largest total IoU of all matchings of a scene."""
    rows, columns = overlap.shape
    if rows > columns:
        return best_total(overlap.T)
    return max(float(overlap[range(rows), choice].sum()) for choice in permutations(range(columns), rows))


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 4), (4, 3), (5, 2)])
def test_the_matching_has_the_largest_total_of_all(rows, columns, float64):
    generator = torch.Generator().manual_seed(rows)
    true, drawn = random_boxes(300, rows, generator), random_boxes(300, columns, generator)
    overlap, matched = pairwise_iou(true, drawn), matched_iou(true, drawn)
    assert matched.shape == (300, rows)
    for scene, found in zip(overlap, matched, strict=True):
        assert float(found.sum()) == pytest.approx(best_total(scene), abs=1e-12)
        taken = [
            column for value, row in zip(found, scene, strict=True) if value > 0 for column in (row == value).nonzero()
        ]
        assert len(set(map(int, taken))) == len(taken)  # no box is matched twice
    if rows > 1:  # in some scenes the boxes that overlap most are not the matching
        greedy = overlap.amax(-1).sum(-1)
        assert (matched.sum(-1) < greedy - 1e-6).sum() > 20


def test_no_order_of_the_objects_matters(float64):
    generator = torch.Generator().manual_seed(0)
    true, drawn = random_boxes(200, 3, generator), random_boxes(200, 4, generator)
    z_pres = (torch.rand(200, 4, generator=generator) < 0.8).double()
    counts = true.isfinite().all(-1).sum(-1)
    expected, scores = detection_metrics(drawn, z_pres, counts, true), scene_iou(true, drawn, z_pres)
    for _ in range(5):
        one, other = (torch.rand(200, n, generator=generator).argsort(1) for n in (3, 4))
        shuffled = true.gather(1, one[..., None].expand_as(true))
        moved, there = drawn.gather(1, other[..., None].expand_as(drawn)), z_pres.gather(1, other)
        assert detection_metrics(moved, there, counts, shuffled) == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(scene_iou(shuffled, moved, there), scores)


def scenes(*rows):
    """True boxes, drawn boxes and z_pres of scenes given as (true boxes, drawn boxes), of at most two objects each.

    A drawn box of None is an object that is not present: its box is A.
    """
    true = torch.tensor([[*boxes, NONE, NONE][:2] for boxes, _ in rows])
    padded = [[*boxes, None, None][:2] for _, boxes in rows]
    drawn = torch.tensor([[A if box is None else box for box in boxes] for boxes in padded])
    return true, drawn, torch.tensor([[float(box is not None) for box in boxes] for boxes in padded])


def measured(*rows):
    true, drawn, z_pres = scenes(*rows)
    return detection_metrics(drawn, z_pres, true.isfinite().all(-1).sum(-1), true)


def test_every_metric_of_scenes_made_by_hand():
    found = measured(
        ([A, B], [B, NEAR_A]),  # right: IoU 1 and 0.8
        ([A], [PART_OF_A]),  # too far off: IoU 0.4
        ([A], [A, NONE]),  # right, but for a dark object
        ([], []),  # right
        ([], [FAR]),  # superfluous
        ([A, B], [A]),  # one is missing
        ([B], [FAR]),  # the count is right, the place is not
    )
    assert found == pytest.approx(
        {
            "dark_objects": 1 / 8,
            "count_accuracy_without_dark": 5 / 7,
            "mean_iou": (1 + 0.8 + 0.4 + 1 + 1) / 5,
            "f1_50": 2 * 4 / (7 + 8),
            "all_parts_right": 2 / 7,
            "all_parts_right/0": 1 / 2,
            "all_parts_right/1": 0,
            "all_parts_right/2": 1 / 2,
        }
    )


def test_two_windows_on_one_object_are_not_right():
    found = measured(([A], [A, NEAR_A]), ([A, B], [A, NEAR_A]))
    assert found["all_parts_right"] == 0 and found["f1_50"] == pytest.approx(2 * 2 / (3 + 4))


def test_an_iou_of_one_half_is_enough():
    half = [0.0, 0.0, 10.0, 5.0]
    assert measured(([A], [half]))["all_parts_right"] == 1


def test_what_is_not_present_does_not_count():
    true, drawn, z_pres = scenes(([A], [NEAR_A]))
    assert drawn[0, 1].tolist() == A and not z_pres[0, 1]  # it would be the better match
    assert detection_metrics(drawn, z_pres, boxes=true)["mean_iou"] == pytest.approx(0.8)


def test_metrics_without_data_are_left_out():
    assert measured(([], [])) == {"count_accuracy_without_dark": 1, "all_parts_right": 1, "all_parts_right/0": 1}
    _, drawn, z_pres = scenes(([A], [NONE, B]))
    assert detection_metrics(drawn, z_pres) == {"dark_objects": 0.5}
    assert set(measured(([A], [FAR]))) == {
        *("dark_objects", "count_accuracy_without_dark", "f1_50", "all_parts_right", "all_parts_right/1")
    }


def test_scenes_that_never_have_an_object():
    nothing = torch.empty(3, 0, 4)
    drawn, z_pres = torch.tensor([[A], [A], [A]]), torch.tensor([[1.0], [0.0], [0.0]])
    assert detection_metrics(drawn, z_pres, torch.zeros(3).long(), nothing) == pytest.approx(
        {
            "dark_objects": 0,
            "count_accuracy_without_dark": 2 / 3,
            "f1_50": 0,
            "all_parts_right": 2 / 3,
            "all_parts_right/0": 2 / 3,
        }
    )


def test_the_score_of_a_scene_counts_missing_and_superfluous_objects_as_0():
    rows = [([A, B], [B, NEAR_A]), ([A], [A, FAR]), ([A, B], [A]), ([], []), ([], [A]), ([A], [NONE])]
    torch.testing.assert_close(scene_iou(*scenes(*rows)), torch.tensor([0.9, 0.5, 0.5, 1, 0, 0]))


def test_shares_by_count_average_to_the_whole():
    torch.manual_seed(0)
    right, counts = torch.rand(500) < 0.7, torch.tensor([0, 1, 4])[torch.randint(3, (500,))]
    shares = shares_by_count("name", right, counts)
    assert set(shares) == {"name", "name/0", "name/1", "name/4"}
    mean = sum(shares[f"name/{n}"] * float((counts == n).double().mean()) for n in (0, 1, 4))
    assert mean == pytest.approx(shares["name"])
