"""PixelCNN: an empty guide, because the model has no latents."""

from torch import Tensor

from pplmodels.module import PairModule, data_plate


class EmptyGuide(PairModule):
    """The guide of a model without latents. It has no sites and no parameters."""

    role = "guide"

    def __init__(self):
        super().__init__("empty_guide")

    def forward(self, x: Tensor | None = None, n: int | None = None, label: Tensor | None = None) -> None:
        """Do nothing."""
        with data_plate(n if x is None else len(x)):
            pass
