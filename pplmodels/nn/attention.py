"""Attention to points of an image, one after the other."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pplmodels.nn.batch_apply import BatchApply

STRIDE = 4  # pixels per place of the feature maps
REACHES = 0.4, 0.8  # standard deviations of the marks of a window, in halves of its side
SHARPNESS = 8.0  # factor of the logits of the mean from which the shifts start, which makes ties rare
SHIFTS = 6  # mean shifts
SUPPRESSION = 20.0  # nats by which the saliency of a window's center is reduced after it has been attended


class FeatureMaps(NamedTuple):
    """The features of P places of an image, ``features (..., P, C)``, and their ``points (P, 2)``.

    Points are (x, y) in canvas coordinates, which run from -1 to 1 across the image. ``squares (P)`` are their squared
    distances from the center.
    """

    features: Tensor
    points: Tensor
    squares: Tensor


class Glance(NamedTuple):
    """An attended point, ``point (..., 2)``, and the features of its surroundings, ``features (..., C + 1)``."""

    point: Tensor
    features: Tensor


class SpatialAttention(nn.Module):
    """A softmax over the places of a convolutional feature map, without the places that have been attended before.

    .. code-block:: text

        f_{t,p}   = relu(net(x)_p + W marks_{t,p})
        saliency  = w f_{t,p} - SUPPRESSION marks_{t,p,1}
        a_t(m)    = softmax_p(saliency_{t,p} - precision_t |p - proposal_t|^2 - |p - m|^2 / (2 radius^2))
        point_t   = sum_p a_{t,p}(m_S) p
        m_s       = sum_p a_{t,p}(m_{s-1}) p
        m_0       = the mean of the softmax of SHARPNESS times the first two terms

    The mean of a softmax over the whole image would lie between two objects that are almost equally salient. The S mean
    shifts (Comaniciu & Meer 2002) move it to one of them. Only the last softmax has a gradient.

    The marks of the windows before step t are sums of exp(-d^2 / 2) with the distance d of p to the center of a window,
    in units of each of the two ``REACHES`` times half of its side. The first suppresses the center of a window, but not
    of the object next to it. The network learns from both marks which places around a center belong to the same object.
    The features of a glance are the attended average of f_t, and the log-sum-exp of the saliency, which is high if
    anything salient is left.

    Arguments:
        image_channels: channels of the image.
        channels: C, channels of the feature map.
        radius: of the surroundings in which the last softmax averages, in canvas coordinates.
    """

    def __init__(self, image_channels: int, channels: int = 24, radius: float = 0.2):
        super().__init__()
        self.radius = radius
        self.net = BatchApply(
            nn.Sequential(
                *(nn.Conv2d(image_channels, channels // 3, 5, 2, 2), nn.ReLU()),
                *(nn.Conv2d(channels // 3, channels, 3, 2, 1), nn.ReLU()),
                nn.Conv2d(channels, channels, 3, 1, 2, dilation=2),  # sees 25x25 pixels
            ),
            3,
        )
        self.marked = nn.Linear(len(REACHES), channels, bias=False)
        self.saliency = nn.Linear(channels, 1, bias=False)

    def maps(self, x: Tensor) -> FeatureMaps:
        """The feature maps of images ``x (..., C, H, W)``."""
        maps = self.net(x)
        height, width = maps.shape[-2:]
        # the centers of the receptive fields, of which the last may extend beyond the image
        down, across = (
            (2 * STRIDE * torch.arange(places, dtype=x.dtype, device=x.device) + 1) / pixels - 1
            for places, pixels in ((height, x.shape[-2]), (width, x.shape[-1]))
        )
        points = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1).flatten(0, 1)
        return FeatureMaps(maps.flatten(-2).mT, points, points.square().sum(-1))

    def forward(self, maps: FeatureMaps, marks: Tensor, proposal: Tensor, precision: Tensor) -> Glance:
        """Attend to one point, from ``marks (..., P, 2)``, ``proposal (..., 2)`` and ``precision (...)``."""
        features = (maps.features + self.marked(marks)).relu()
        saliency = self.saliency(features).squeeze(-1) - SUPPRESSION * marks[..., 0]
        # |p - m|^2 = |p|^2 - 2 p m + |m|^2, of which a softmax ignores the last term
        logits = saliency + precision[..., None] * (2 * proposal @ maps.points.mT - maps.squares)
        nearby = logits - maps.squares / (2 * self.radius**2)
        weights = (SHARPNESS * logits).softmax(-1)
        for _ in range(SHIFTS):
            center = (weights @ maps.points).detach()
            weights = (nearby + (center / self.radius**2) @ maps.points.mT).softmax(-1)
        found = (weights[..., None, :] @ features).squeeze(-2)
        return Glance(weights @ maps.points, torch.cat([found, saliency.logsumexp(-1, keepdim=True)], -1))

    @staticmethod
    def no_marks(maps: FeatureMaps) -> Tensor:
        """The marks ``(..., P, 2)`` before the first window."""
        return maps.features.new_zeros(*maps.features.shape[:-1], len(REACHES))

    @staticmethod
    def marks(maps: FeatureMaps, where: Tensor) -> Tensor:
        """The marks ``(..., P, 2)`` of a window ``where (..., 3)`` = (log s, x, y)."""
        center = where[..., 1:]
        squares = maps.squares + center.square().sum(-1, keepdim=True)
        distances = (squares - 2 * center @ maps.points.mT) * (-2 * where[..., :1]).exp()
        return torch.stack([(-distances / (2 * reach**2)).exp() for reach in REACHES], -1)
