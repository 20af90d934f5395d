"""Bounding boxes and their overlap."""

import torch

from pplmodels.boxes import bounding_boxes, pairwise_iou


def test_a_box_is_the_smallest_around_the_pixels():
    torch.manual_seed(0)
    masks = torch.rand(6, 50, 7, 11) < torch.tensor([0.0, 0.01, 0.03, 0.1, 0.5, 1.0])[:, None, None, None]
    boxes = bounding_boxes(masks)
    assert boxes.shape == (6, 50, 4)
    for mask, box in zip(masks.flatten(0, 1), boxes.flatten(0, 1), strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if not len(rows):
            assert box.isnan().all()
        else:
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_iou_is_that_of_the_pixels_in_both():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 9, (2, 40, 2), generator=generator)
    sides = torch.randint(1, 5, (2, 40, 2), generator=generator)
    first, second = torch.cat([corners, corners + sides], -1).float()
    iou = pairwise_iou(first, second)
    at = torch.arange(14) + 0.5

    def covered(box):
        left, top, right, bottom = box
        return ((at > left) & (at < right))[None, :] & ((at > top) & (at < bottom))[:, None]

    for i, one in enumerate(first):
        for j, other in enumerate(second):
            both, either = covered(one) & covered(other), covered(one) | covered(other)
            torch.testing.assert_close(iou[i, j], both.sum() / either.sum())
    assert (iou > 0).any() and (iou == 0).any()


def test_a_box_that_does_not_exist_overlaps_with_none():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [torch.nan] * 4])
    assert pairwise_iou(boxes, boxes).tolist() == [[1, 0], [0, 0]]
