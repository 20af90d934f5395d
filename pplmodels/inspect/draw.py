"""Inspecting the steps of DRAW."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.looking import looking
from pplmodels.infer.traces import steps
from pplmodels.inspect.images import mean_image
from pplmodels.nn.draw_attention import window_of
from pplmodels.sites import random_sites


@dataclass(frozen=True)
class CanvasSteps:
    """The steps of DRAW for a batch of images.

    canvases: ``(T + 1, B, C, H, W)``, the mean of p(x | z) before the first step and after each step. reading, writing:
    ``(T, B, 3)``, center (x, y) and side in pixels of the square covered by the window's filters, or None without
    attention.
    """

    canvases: Tensor
    reading: Tensor | None = None
    writing: Tensor | None = None


@looking
def generation_steps(model, n: int) -> CanvasSteps:
    """The steps of ``n`` samples from the prior."""
    return _follow(model, None, poutine.trace(model).get_trace(n=n))


@looking
def reconstruction_steps(model, guide, x: Tensor) -> CanvasSteps:
    """The steps of reconstructions of the images ``x (B, C, H, W)``, from one sample of the guide per image."""
    return _follow(model, guide, poutine.trace(guide).get_trace(x))


def _follow(model, guide, trace: Trace) -> CanvasSteps:
    """The model's steps at the latents of a trace."""
    state, canvas = model.start()
    codes = steps({name: site["value"] for name, site in random_sites(trace) if not site["is_observed"]}, "z")
    canvases, reading, writing = [canvas.expand(len(codes[0]), *canvas.shape)], [], []
    for z in codes:
        if guide is not None:
            reading.append(_square(guide.reader, state[0].expand(len(z), -1)))
        state, canvas = model.paint(z, state, canvas)
        writing.append(_square(model.writer, state[0]))
        canvases.append(canvas)
    centres = torch.stack([mean_image(model.p_x(canvas)) for canvas in canvases])
    return CanvasSteps(centres, _stacked(reading), _stacked(writing))


def _stacked(windows: Sequence[Tensor | None]) -> Tensor | None:
    """The windows of all steps, or None without attention."""
    found = [window for window in windows if window is not None]
    return torch.stack(found) if found else None


def _square(part, h: Tensor) -> Tensor | None:
    """The center and side ``(B, 3)`` of a reader's or a writer's window."""
    if (window := window_of(part, h)) is None:
        return None
    return torch.stack([window.x, window.y, window.stride * part.attention.size], -1)
