"""Pictures of a few solids on a table, with all that there is to know of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pplmodels.data.images import Images
from pplmodels.defaults import float32_on_cpu
from pplmodels.errors import InputError
from pplmodels.nn.renderer import KINDS, Renderer

CHUNK = 500  # pictures rendered at a time
TRIES = 2000  # times that the places of a scene are drawn before its solids are said not to fit
SPREAD = 0.45  # deviation of a place from the middle of the table, in halves of its side
EDGE = 0.9  # no solid's middle is further out
APART = 0.7  # least distance of two solids' middles
LIGHT, STRENGTH = 0.1, 0.1  # deviations of the light's direction, and relative of its strength
NOISE = 0.03  # deviation of a pixel's intensity


@dataclass(frozen=True)
class TabletopScenes(Images):
    """Pictures ``(N, 3, H, W)``, and what they show.

    ``kind (N, T)`` indices into :data:`pplmodels.nn.renderer.KINDS`, ``place (N, T, 2)``, ``yaw (N, T)``: of the first
    ``counts`` solids; the rest is meaningless.
    """

    kind: Tensor | None = None
    place: Tensor | None = None
    yaw: Tensor | None = None


@float32_on_cpu()
def make_tabletop_scenes(
    number: int, *, counts: Sequence[int] = (0, 1, 2, 3), size: Sequence[int] = (32, 32), seed: int = 0
) -> TabletopScenes:
    """``number`` pictures whose counts are drawn evenly from ``counts``; deterministic in ``seed``.

    Kinds and turns are even, places normal within the table and apart, as under
    :class:`pplmodels.models.air3d.AIR3D` but for these two conditions. Direction and strength of the light jitter by a
    tenth, each channel of each pixel by 0.03.
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
    return TabletopScenes(torch.cat(pixels), chosen, kind=kind, place=place, yaw=yaw)


def _places(counts: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Places ``(N, most, 2)`` on the table, those of the first ``counts`` solids apart."""
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
    raise InputError(f"{most} solids do not fit on the table {APART} apart.")
