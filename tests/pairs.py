"""The pair table: one row a pair; the contract tests run on every row by themselves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guides import AIRGuide
from pplmodels import AIR
from pplmodels.pretrained import Half


@dataclass(frozen=True)
class Pair:
    """How to build a pair at the smallest size that has all its parts, and a batch for it."""

    model: Callable[[], Half]
    guide: Callable[[], Half]
    batch: Callable[[int], Tensor]

    def build(self) -> tuple[Half, Half]:
        return self.model(), self.guide()


AIR_SIZES = {"canvas": (1, 10, 10), "num_steps": 2, "what_dim": 3, "window": 5}
AIR_WIDTHS = {"embed_dim": 8, "hidden_dim": 8, "predict_dim": 8, "encoder_dims": (8,)}

PAIRS = {
    "air": Pair(
        model=lambda: AIR(**AIR_SIZES, hidden_dims=(8,)),
        guide=lambda: AIRGuide(**AIR_SIZES, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 1, 10, 10),
    ),
    "air, three channels, wide canvas": Pair(
        model=lambda: AIR(canvas=(3, 8, 12), num_steps=2, what_dim=3, window=5),
        guide=lambda: AIRGuide(canvas=(3, 8, 12), num_steps=2, what_dim=3, window=5, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 3, 8, 12),
    ),
}
