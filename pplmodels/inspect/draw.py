"""How DRAW paints."""

from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pplmodels.infer.looking import looking
from pplmodels.infer.traces import steps
from pplmodels.inspect.images import mean_image
from pplmodels.nn.draw_attention import window_of


@dataclass(frozen=True)
class CanvasSteps:
    """How DRAW paints a batch of images.

    canvases: ``(T + 1, B, C, H, W)``, what p(x | z) is centred at before the first step and after each. Where there is
    attention, reading and writing: ``(T, B, 3)``, centre (x, y) and side of the square that the window's filters
    divide, in pixels; else None.
    """

    canvases: Tensor
    reading: Tensor | None = None
    writing: Tensor | None = None


@looking
def generation_steps(model, n: int) -> CanvasSteps:
    """``n`` images painted from the prior, step by step."""
    return _follow(model, None, poutine.trace(model).get_trace(n=n))


@looking
def reconstruction_steps(model, guide, x: Tensor) -> CanvasSteps:
    """The images ``x (B, C, H, W)`` painted again, step by step, from one sample of the guide an image."""
    return _follow(model, guide, poutine.trace(guide).get_trace(x))


def _follow(model, guide, trace: Trace) -> CanvasSteps:
    """The model's own steps at the codes of a trace."""
    state, canvas = model.start()
    codes = steps({name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}, "z")
    canvases, reading, writing = [canvas.expand(len(codes[0]), *canvas.shape)], [], []
    for z in codes:
        if guide is not None:
            reading.append(_square(guide.reader, state[0].expand(len(z), -1)))
        state, canvas = model.paint(z, state, canvas)
        writing.append(_square(model.writer, state[0]))
        canvases.append(canvas)
    centres = torch.stack([mean_image(model.p_x(canvas)) for canvas in canvases])
    return CanvasSteps(
        centres, *(torch.stack(where) if where and where[0] is not None else None for where in (reading, writing))
    )


def _square(part, h: Tensor) -> Tensor | None:
    """Centre and side ``(B, 3)`` of a reader's or a writer's window."""
    if (window := window_of(part, h)) is None:
        return None
    return torch.stack([window.x, window.y, window.stride * part.attention.size], -1)
