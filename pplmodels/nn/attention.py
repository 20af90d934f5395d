"""Attention to points of an image, one after the other."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pplmodels.nn.batch_apply import BatchApply

STRIDE = 4  # pixels per place of the feature maps
REACH = 0.4  # standard deviation of the suppression around a window's center, in halves of the window's side
SUPPRESSION = 20.0  # nats by which the saliency of a window's center is reduced after it has been attended


class FeatureMaps(NamedTuple):
    """``features (..., P, C)`` of P places of an image, their ``saliency (..., P)`` and their ``points (P, 2)``.

    Points are (x, y) in canvas coordinates, which run from -1 to 1 across the image.
    """

    features: Tensor
    saliency: Tensor
    points: Tensor


class Glance(NamedTuple):
    """An attended point, ``point (..., 2)``, and the features of its surroundings, ``features (..., C + 1)``."""

    point: Tensor
    features: Tensor


class SpatialAttention(nn.Module):
    """A softmax over the places of a convolutional feature map, without the places that have been attended before.

    .. code-block:: text

        a_t     = softmax_p(saliency_p - SUPPRESSION * seen_{t,p} - precision_t |p - proposal_t|^2)
        point_t = sum_p a_{t,p} p

    The suppression ``seen_t`` is the sum over earlier windows of exp(-d^2 / 2) with the distance d of p to the window's
    center in units of ``REACH`` halves of its side. So an object next to an earlier one keeps its saliency, and the
    earlier one loses it. The features of a glance are the attended average of the feature map and the log-sum-exp of
    the reduced saliency, which is high if any salient place is left.

    Arguments:
        image_channels: channels of the image.
        channels: C, channels of the feature map.
    """

    def __init__(self, image_channels: int, channels: int = 24):
        super().__init__()
        self.net = BatchApply(
            nn.Sequential(
                *(nn.Conv2d(image_channels, channels // 3, 5, 2, 2), nn.ReLU()),
                *(nn.Conv2d(channels // 3, channels, 3, 2, 1), nn.ReLU()),
                *(nn.Conv2d(channels, channels, 3, 1, 2, dilation=2), nn.ReLU()),  # sees 25x25 pixels
            ),
            3,
        )
        self.saliency = nn.Linear(channels, 1)

    def maps(self, x: Tensor) -> FeatureMaps:
        """The feature maps of images ``x (..., C, H, W)``."""
        maps = self.net(x)
        height, width = maps.shape[-2:]
        features = maps.flatten(-2).mT
        # the centers of the receptive fields, of which the last may extend beyond the image
        down, across = (
            (2 * STRIDE * torch.arange(places, dtype=x.dtype, device=x.device) + 1) / pixels - 1
            for places, pixels in ((height, x.shape[-2]), (width, x.shape[-1]))
        )
        points = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).flatten(0, 1)
        return FeatureMaps(features, self.saliency(features).squeeze(-1), points)

    def forward(self, maps: FeatureMaps, seen: Tensor, proposal: Tensor, precision: Tensor) -> Glance:
        """Attend to one point, from ``seen (..., P)``, ``proposal (..., 2)`` and ``precision (...)``."""
        left = maps.saliency - SUPPRESSION * seen
        distance = (maps.points - proposal[..., None, :]).square().sum(-1)
        weights = (left - precision[..., None] * distance).softmax(-1)
        found = (weights[..., None, :] @ maps.features).squeeze(-2)
        return Glance(weights @ maps.points, torch.cat([found, left.logsumexp(-1, keepdim=True)], -1))

    @staticmethod
    def suppression(maps: FeatureMaps, where: Tensor) -> Tensor:
        """The suppression ``(..., P)`` by a window ``where (..., 3)`` = (log s, x, y)."""
        distance = (maps.points - where[..., None, 1:]).square().sum(-1)
        return (-distance * (-2 * where[..., :1]).exp() / (2 * REACH**2)).exp()
