"""A small differentiable renderer of solids on a table, seen by a fixed camera.

The camera sends one ray through each pixel. Every solid is an intersection of slabs and cylinders, whose entry and exit
distances along each ray are known. The ray hits the solid if the last entry is before the first exit. A soft threshold
on the length in between, which is negative for a miss, gives the coverage of a pixel. Soft comparisons of entry
distances give the visible face and the solid in front. So images have gradients with respect to places and yaws, and
are computed by element-wise operations for any number of scenes at once.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

KINDS = ("sphere", "cube", "cylinder", "cup")
PERIODS = (0.0, math.pi / 2, 2 * math.pi, 2 * math.pi)  # rotation period of each kind; 0: rotationally symmetric

SPHERE = 0.27  # radius; the unit of length is half the table's side
CUBE = 0.22  # half of the side
CYLINDER = (0.19, 0.56)  # radius, height
CUP = (0.31, 0.34)  # radius, height
WALL, FLOOR = 0.06, 0.05  # thickness of the cup's wall and floor
STANDING = 0.25  # approximate height of the centers of all solids

EYE = (0.0, -3.0, 2.6)  # camera position; it looks at a point slightly above the center of the table
TARGET = (0.0, 0.0, 0.15)
WIDTH = 2.4  # width of the view at the target's distance
LIGHT = (-0.48, -0.36, 0.8)  # unit vector from the table to the light
AMBIENT = 0.35  # fraction of ambient light

TABLE, GROUND = (0.25, 0.34, 0.31), (0.12, 0.12, 0.14)  # colors (red, green, blue)
PLAIN = (0.90, 0.82, 0.68)  # color of spheres and cubes
TINTED, TINT = 0.56, 0.36  # hues of cylinders and cups vary with the angle: mean and amplitude per channel
DARK = 0.55  # brightness of the inside of a cup

EDGE = 0.06  # scale of the soft coverage, as length of a ray inside a solid
FACE = 0.03  # scale of the soft comparison of distances between two faces
FRONT = 0.05  # scale of the soft comparison of distances between two solids
GRAZING = 0.02  # keeps the gradient of the square root finite for rays that touch a cylinder


class Surface(NamedTuple):
    """The view of a solid along each ray: ``cover (..., P)`` in (0, 1), ``depth (..., P)``, ``colour (..., 3, P)``."""

    cover: Tensor
    depth: Tensor
    colour: Tensor


class Renderer(nn.Module):
    """Renders images of a table with solids of given kinds, places and yaws.

    Coordinates: x is to the camera's right, y away from it, z up. The table is the square [-1, 1]^2 at z = 0. A solid's
    ``place (x, y)`` is the center of its base, and its ``yaw`` the counterclockwise rotation in radians as seen from
    above. Solids are shaded by one distant light without shadows. Any leading dimensions are allowed.

    Arguments:
        size: (height, width) of the images in pixels.
        azimuth: counterclockwise rotation of the camera around the table in radians, as seen from above.
    """

    eye: Tensor  # (3)
    rays: Tensor  # (3, P), unit vectors
    frame: Tensor  # (3, 3), from a position relative to the eye to (right, down, ahead)
    unframe: Tensor  # its inverse
    table: Tensor  # (3, P)
    light: Tensor  # (3)

    def __init__(self, size: Sequence[int] = (32, 32), azimuth: float = 0.0):
        super().__init__()
        self.size = tuple(size)
        eye, target = torch.tensor(EYE, dtype=torch.float64), torch.tensor(TARGET, dtype=torch.float64)
        turn = torch.tensor(
            [[math.cos(azimuth), -math.sin(azimuth), 0], [math.sin(azimuth), math.cos(azimuth), 0], [0, 0, 1]],
            dtype=torch.float64,
        )
        eye, target = turn @ eye, turn @ target
        ahead = target - eye
        distance = ahead.norm()
        ahead = ahead / distance
        right = turn @ torch.tensor([1.0, 0, 0], dtype=torch.float64)
        up = torch.linalg.cross(right, ahead)
        height, width = self.size
        u, v = ((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (width, height))
        v = v * (height / width)
        reach = WIDTH / 2 / distance  # tangent of half the field of view
        rays = ahead + reach * (u[None, :, None] * right - v[:, None, None] * up)
        rays = (rays / rays.norm(dim=-1, keepdim=True)).flatten(0, 1).T  # (3, P)
        frame = torch.stack([right / reach, -up * (width / height) / reach, ahead])
        buffers = {"eye": eye, "rays": rays, "frame": frame, "unframe": torch.linalg.inv(frame)}
        for name, value in {**buffers, "table": self._table(eye, rays)}.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()).contiguous(), persistent=False)
        self.register_buffer("light", torch.tensor(LIGHT, dtype=torch.get_default_dtype()), persistent=False)

    @staticmethod
    def _table(eye: Tensor, rays: Tensor) -> Tensor:
        """The unlit empty table, ``(3, P)``."""
        x, y = eye[:2, None] - rays[:2] * (eye[2] / rays[2])
        inside = ((1 - torch.maximum(x.abs(), y.abs())) / 0.05).sigmoid()
        ground, table = (torch.tensor(colour, dtype=eye.dtype)[:, None] for colour in (GROUND, TABLE))
        return torch.lerp(ground, table, inside)

    def forward(self, present: Tensor, kind: Tensor, place: Tensor, yaw: Tensor, light: Tensor | None = None) -> Tensor:
        """Images ``(..., 3, height, width)`` in [0, 1].

        ``present (..., T)`` is 0 or 1, ``kind (..., T)`` are indices into :data:`KINDS`, and places and yaws have the
        shapes ``place (..., T, 2)`` and ``yaw (..., T)``. Arguments broadcast, and the surfaces of a place and yaw are
        computed once for all kinds and presences. ``light (..., 3)`` is the direction to the light times its strength,
        by default that of this module.
        """
        light = self.light if light is None else light
        solids = self.surfaces(place, yaw, light)
        chosen = [(kind == index)[..., None].to(place.dtype) for index in range(len(KINDS))]
        picked = Surface(
            reduce(torch.add, [one * solid.cover for one, solid in zip(chosen, solids, strict=True)]),
            reduce(torch.add, [one * solid.depth for one, solid in zip(chosen, solids, strict=True)]),
            reduce(torch.add, [one[..., None] * solid.colour for one, solid in zip(chosen, solids, strict=True)]),
        )
        return self._composed(picked, present, light)

    def empty(self, light: Tensor | None = None) -> Tensor:
        """The empty table, ``(..., 3, height, width)``."""
        return self._lit_table(self.light if light is None else light).unflatten(-1, self.size)

    def seen_at(self, place: Tensor, height: float = STANDING) -> Tensor:
        """Image coordinates (x, y) in [-1, 1], right and down, of the point at ``height`` above ``place (..., 2)``."""
        up = torch.full_like(place[..., :1], height)
        right, down, ahead = ((torch.cat([place, up], -1) - self.eye) @ self.frame.T).unbind(-1)
        return torch.stack([right / ahead, down / ahead], -1)

    def standing_at(self, seen: Tensor, height: float = STANDING) -> Tensor:
        """The inverse of :meth:`seen_at`: the place ``(..., 2)`` for the image coordinates ``seen (..., 2)``."""
        ray = torch.cat([seen, torch.ones_like(seen[..., :1])], -1) @ self.unframe.T
        return self.eye[:2] + ray[..., :2] * ((height - self.eye[2]) / ray[..., 2:])

    def around(self, place: Tensor, radius: float) -> Tensor:
        """The soft mask in (0, 1) of a ball around a solid at ``place (..., 2)``, ``(..., 1, h, w)``."""
        centre = torch.cat([place, torch.full_like(place[..., :1], STANDING)], -1) - self.eye
        along = centre @ self.rays  # (..., P)
        passing = (centre.square().sum(-1, keepdim=True) - along.square()).clamp(min=1e-6).sqrt()
        return ((radius - passing) / EDGE).sigmoid().unflatten(-1, self.size).unsqueeze(-3)

    def surfaces(self, place: Tensor, yaw: Tensor, light: Tensor) -> tuple[Surface, ...]:
        """The surface of a solid of each of :data:`KINDS` at ``place (..., T, 2)``; leading shape (..., T)."""
        x, y = (self.eye[:2] - place).unbind(-1)
        ray = _Rays(x[..., None], y[..., None], self.eye[2], *self.rays, *light[..., None, :, None].unbind(-2))
        yaw = yaw[..., None]
        turn = yaw.cos(), yaw.sin()
        return _sphere(ray), _cube(ray, turn), _column(ray, turn, *CYLINDER), _column(ray, turn, *CUP, hollow=True)

    def _lit_table(self, light: Tensor) -> Tensor:
        return self.table * _lambert(light[..., 2])[..., None, None]

    def _composed(self, solids: Surface, present: Tensor, light: Tensor) -> Tensor:
        """The image of all solids in front of the table, with soft occlusion."""
        cover = solids.cover * present[..., None]
        behind = ((solids.depth.unsqueeze(-2) - solids.depth.unsqueeze(-3)) / FRONT).sigmoid()  # (..., T, other T, P)
        itself = torch.eye(cover.shape[-2], device=cover.device, dtype=cover.dtype)[..., None]
        hidden = (1 - cover.unsqueeze(-3) * behind * (1 - itself)).prod(-2)
        weight = cover * hidden  # (..., T, P)
        table = (1 - cover).prod(-2)
        total = weight.sum(-2) + table
        seen = (weight.unsqueeze(-2) * solids.colour).sum(-3) + table.unsqueeze(-2) * self._lit_table(light)
        return (seen / total.unsqueeze(-2)).unflatten(-1, self.size)


class _Rays(NamedTuple):
    """Rays from (x, y, z) in the directions (dx, dy, dz), relative to a solid's base, and the light."""

    x: Tensor
    y: Tensor
    z: Tensor
    dx: Tensor
    dy: Tensor
    dz: Tensor
    lx: Tensor
    ly: Tensor
    lz: Tensor


def _lambert(cosine: Tensor) -> Tensor:
    """The brightness of a surface from the cosine of the angle between its normal and the light."""
    return AMBIENT + (1 - AMBIENT) * cosine.clamp(min=0)


def _covered(enter: Tensor, leave: Tensor) -> Tensor:
    return ((leave - enter) / EDGE).sigmoid()


def _plain(shade: Tensor) -> Tensor:
    return torch.stack([channel * shade for channel in PLAIN], -2)


def _half_chord(square: Tensor) -> Tensor:
    """An odd square root for positive and negative values, with a finite gradient at 0."""
    return square * (square.square() + GRAZING**4).pow(-0.25)


def _sphere(ray: _Rays) -> Surface:
    z = ray.z - SPHERE
    along = -(ray.x * ray.dx + ray.y * ray.dy + z * ray.dz)
    passing = ray.x.square() + ray.y.square() + z.square() - along.square()
    half = _half_chord(SPHERE**2 - passing)
    depth = along - half
    normal = ray.x + depth * ray.dx, ray.y + depth * ray.dy, z + depth * ray.dz
    cosine = (normal[0] * ray.lx + normal[1] * ray.ly + normal[2] * ray.lz) / SPHERE
    return Surface(_covered(depth, along + half), depth, _plain(_lambert(cosine)))


def _cube(ray: _Rays, turn: tuple[Tensor, Tensor]) -> Surface:
    cos, sin = turn
    enter, leave, shades = [], [], []
    for x, d, light in (
        (cos * ray.x + sin * ray.y, cos * ray.dx + sin * ray.dy, cos * ray.lx + sin * ray.ly),
        (cos * ray.y - sin * ray.x, cos * ray.dy - sin * ray.dx, cos * ray.ly - sin * ray.lx),
        (ray.z - CUBE, ray.dz, ray.lz),
    ):
        # distances to a slab's center and from there to its faces, which are large for rays parallel to the slab
        steep = d.abs().clamp(min=1e-3)
        middle, half = -x * d.sign() / steep, CUBE / steep
        enter.append(middle - half)
        leave.append(middle + half)
        shades.append(_lambert(-d.sign() * light))
    depth = torch.maximum(torch.maximum(enter[0], enter[1]), enter[2])
    out = torch.minimum(torch.minimum(leave[0], leave[1]), leave[2])
    weights = [((one - depth) / FACE).exp() for one in enter]
    shade = reduce(torch.add, [w * s for w, s in zip(weights, shades, strict=True)]) / reduce(torch.add, weights)
    return Surface(_covered(depth, out), depth, _plain(shade))


def _column(ray: _Rays, turn: tuple[Tensor, Tensor], radius: float, height: float, hollow: bool = False) -> Surface:
    """A cylinder or, with ``hollow``, a cup: a cylinder minus a narrower one above the cup's floor."""
    cos, sin = turn
    flat = ray.dx.square() + ray.dy.square()
    along = -(ray.x * ray.dx + ray.y * ray.dy) / flat
    passing = ray.x.square() + ray.y.square() - along.square() * flat  # squared distance to the axis

    half = _half_chord((radius**2 - passing) / flat)
    side, top, ground = along - half, (height - ray.z) / ray.dz, -ray.z / ray.dz  # rays point down
    depth, out = torch.maximum(side, top), torch.minimum(along + half, ground)
    on_top = ((top - side) / FACE).sigmoid()
    cover = _covered(depth, out)
    x, y = ray.x + depth * ray.dx, ray.y + depth * ray.dy
    outwards = (x * ray.lx + y * ray.ly) / radius
    shade = torch.lerp(_lambert(outwards), _lambert(ray.lz), on_top)
    if hollow:
        inner = radius - WALL
        half = _half_chord((inner**2 - passing) / flat)
        wall, floor = along + half, (FLOOR - ray.z) / ray.dz
        end = torch.minimum(wall, floor)
        inside = ((depth - along + half) / FACE).sigmoid() * ((end - depth) / FACE).sigmoid()
        on_floor = ((wall - floor) / FACE).sigmoid()
        x_in, y_in = ray.x + end * ray.dx, ray.y + end * ray.dy
        inwards = -(x_in * ray.lx + y_in * ray.ly) / inner
        deep = DARK * torch.lerp(_lambert(inwards), _lambert(ray.lz), on_floor)
        shade, depth = torch.lerp(shade, deep, inside), torch.lerp(depth, end, inside)
        x, y = torch.lerp(x, x_in, inside), torch.lerp(y, y_in, inside)
    # cosine and sine of the angle from the solid's x axis, which vanish on the cylinder's axis
    around, across = (cos * x + sin * y) / radius, (cos * y - sin * x) / radius
    third = math.sqrt(3) / 2
    hue = torch.stack([around, third * across - around / 2, -third * across - around / 2], -2)
    return Surface(cover, depth, (TINTED + TINT * hue) * shade.unsqueeze(-2))
