"""The pair table: one row a pair; the contract tests run on every row by themselves."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guides import AIRGuide, DAIRGuide
from pplmodels import AIR
from pplmodels.pretrained import Half


@dataclass(frozen=True)
class Pair:
    """How to build a pair at the smallest size that has all its parts, and a batch for it."""

    model: Callable[[], Half]
    guide: Callable[[Half], Half]
    batch: Callable[[int], Tensor]
    stops: bool = False  # whether the guide has a chain of stops, which SummedOut_ELBO sums out

    def build(self) -> tuple[Half, Half]:
        model = self.model()
        return model, self.guide(model)

    def load(self, folder: Path) -> tuple[Half, Half]:
        """The saved pair; a guide that uses the model's parts is given the model again."""
        model, guide = map(type, self.build())
        model = model.from_pretrained(folder)
        uses = {"model": model} if "model" in inspect.signature(guide).parameters else {}
        return model, guide.from_pretrained(folder, **uses)


AIR_SIZES = {"canvas": (1, 10, 10), "num_steps": 2, "what_dim": 3, "window": 5}
AIR_WIDTHS = {"embed_dim": 8, "hidden_dim": 8, "predict_dim": 8, "encoder_dims": (8,)}

PAIRS = {
    "air": Pair(
        model=lambda: AIR(**AIR_SIZES, hidden_dims=(8,)),
        guide=lambda model: AIRGuide(**AIR_SIZES, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 1, 10, 10),
        stops=True,
    ),
    "air, residual": Pair(
        model=lambda: AIR(**AIR_SIZES, hidden_dims=(8,)),
        guide=lambda model: DAIRGuide(model, **AIR_SIZES, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 1, 10, 10),
        stops=True,
    ),
    "air, three channels, wide canvas": Pair(
        model=lambda: AIR(canvas=(3, 8, 12), num_steps=2, what_dim=3, window=5),
        guide=lambda model: AIRGuide(canvas=(3, 8, 12), num_steps=2, what_dim=3, window=5, **AIR_WIDTHS),
        batch=lambda n: torch.rand(n, 3, 8, 12),
        stops=True,
    ),
}
