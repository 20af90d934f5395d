"""Rendered images of a few solids on a table, with their true latents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pplmodels.data.images import Images
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError
from pplmodels.nn.renderer import KINDS, Renderer

CHUNK = 500  # number of images rendered at once
TRIES = 2000  # attempts to sample the places of a scene before an error is raised
SPREAD = 0.45  # standard deviation of places, in halves of the table's side
EDGE = 0.9  # largest absolute coordinate of a solid's center
APART = 0.7  # smallest distance between the centers of two solids
LIGHT, STRENGTH = 0.1, 0.1  # standard deviations of the light's direction and of its relative strength
NOISE = 0.03  # standard deviation of the pixel noise


@dataclass(frozen=True, kw_only=True)
class TabletopScenes(Images):
    """Images ``(N, 3, H, W)`` with the true latents of their solids.

    ``kind (N, T)`` are indices into :data:`pplmodels.nn.renderer.KINDS`; ``place`` has shape ``(N, T, 2)`` and ``yaw``
    ``(N, T)``. Only the first ``counts`` entries of each image are valid.
    """

    counts: Tensor = field()  # required, unlike those of Images
    kind: Tensor
    place: Tensor
    yaw: Tensor


@dataclass(frozen=True)
class TabletopSet:
    """Training and held-out tabletop scenes."""

    train: TabletopScenes
    test: TabletopScenes


@float32_on_cpu()
def make_tabletop_scenes(
    number: int, *, counts: Sequence[int] = (0, 1, 2, 3), size: Sequence[int] = (32, 32), seed: int = 0
) -> TabletopScenes:
    """``number`` images with counts sampled uniformly from ``counts``; deterministic in ``seed``.

    Kinds and yaws are uniform and places are normal, as in :class:`pplmodels.models.air3d.AIR3D`, except that places
    are restricted to the table and to a minimum distance. Direction and strength of the light have a jitter of 0.1, and
    each channel of each pixel has noise of 0.03.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(1, *counts)
    chosen = torch.tensor(counts)[torch.randint(len(counts), (number,), generator=generator)]
    kind = torch.randint(len(KINDS), (number, most), generator=generator)
    yaw = (2 * torch.rand(number, most, generator=generator) - 1) * math.pi
    place = _places(chosen, most, generator)
    renderer = Renderer(size)
    direction = renderer.light + LIGHT * torch.randn(number, 3, generator=generator)
    light = direction / direction.norm(dim=-1, keepdim=True)
    light = light * (1 + STRENGTH * torch.randn(number, 1, generator=generator)).clamp(min=0.5)
    present = (torch.arange(most) < chosen[:, None]).to(place.dtype)
    pixels = []
    for part in torch.arange(number).split(CHUNK):
        with torch.no_grad():
            pictures = renderer(present[part], kind[part], place[part], yaw[part], light[part])
        pictures = pictures + NOISE * torch.randn(pictures.shape, generator=generator)
        pixels.append(pictures.clamp(0, 1).mul(255).round_().byte())
    return TabletopScenes(torch.cat(pixels), counts=chosen, kind=kind, place=place, yaw=yaw)


def _places(counts: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Places ``(N, most, 2)`` on the table, with the minimum distance between the first ``counts`` solids."""
    place = torch.zeros(len(counts), most, 2)
    waiting = torch.arange(len(counts))
    for _ in range(TRIES):
        drawn = SPREAD * torch.randn(len(waiting), most, 2, generator=generator)
        absent = torch.arange(most) >= counts[waiting, None]
        distance = torch.cdist(drawn, drawn) + 9 * (torch.eye(most) + (absent[:, None] | absent[:, :, None]))
        fits = (distance >= APART).flatten(1).all(1) & ((drawn.abs() <= EDGE).all(-1) | absent).all(1)
        place[waiting[fits]] = drawn[fits]
        waiting = waiting[~fits]
        if not len(waiting):
            return place
    raise InputError(f"{most} solids do not fit on the table at a minimum distance of {APART}.")
