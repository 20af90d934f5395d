"""PixelCNN and Gated PixelCNN for maps of discrete values (van den Oord et al. 2016, arXiv 1601.06759, 1606.05328)."""

from collections.abc import Sequence
from types import MappingProxyType

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import pyro_method
from torch import Tensor

from pplmodels.distributions import AutoregressiveCategorical
from pplmodels.module import PairModule, data_plate
from pplmodels.nn.masked_conv import GatedPixelCNNNetwork, PixelCNNNetwork


class _RasterOrder(PairModule):
    """Base class of both models, which have one observed site and no latents.

    ``temperature`` applies to samples: 1 samples from the model, 0 takes the most probable value at each position.
    """

    role = "model"
    dims = MappingProxyType({"x": ("row", "column")})

    def __init__(
        self, network: PixelCNNNetwork | GatedPixelCNNNetwork, grid: Sequence[int], levels: int, classes: int = 0
    ):
        super().__init__("pixelcnn")
        self.network, self.grid, self.levels, self.classes = network, tuple(grid), levels, classes
        self.temperature = 1.0

    @pyro_method
    def p_x(self, label: Tensor | None = None) -> TorchDistributionMixin:
        """p(x), event shape (H, W), or p(x | label) given the classes ``label (B)``."""
        if (label is not None) != bool(self.classes):
            raise ValueError(f"a model with {self.classes} classes {'needs' if self.classes else 'takes no'} labels")
        return AutoregressiveCategorical(self.network, self.grid, self.levels, self.temperature, label)

    def forward(self, x: Tensor | None = None, n: int | None = None, label: Tensor | None = None) -> Tensor:
        """Score the maps ``x (B, H, W)``, int64, or sample ``n`` maps; returns x.

        ``label (B)`` or ``(n)``, int64, are their classes if the model is class-conditional.
        """
        with data_plate(n if x is None else len(x)):
            return pyro.sample("x", self.p_x(label), obs=x)


class PixelCNN(_RasterOrder):
    """A PixelCNN of residual blocks with masked convolutions.

    .. code-block:: text

        p(x) = prod_ij p(x_ij | the positions above, and to the left in the same row)

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  symbol in the paper
    ====  ============  ===========  ===========  ===================
    x     0..K-1        (B)          (H, W)       x
    ====  ============  ===========  ===========  ===================

    As in the paper, it has a blind spot, a wedge of positions to the upper right. :class:`GatedPixelCNN` has none.

    Arguments:
        grid: (H, W).
        levels: K.
        channels, size, embedding, hidden: as for :class:`pplmodels.nn.masked_conv.PixelCNNNetwork`.
        layers: number of residual blocks.
    """

    def __init__(
        self,
        grid: Sequence[int] = (8, 8),
        levels: int = 128,
        channels: int = 64,
        layers: int = 10,
        size: int = 7,
        embedding: int = 64,
        hidden: int = 512,
    ):
        super().__init__(PixelCNNNetwork(levels, channels, layers, size, embedding, hidden), grid, levels)


class GatedPixelCNN(_RasterOrder):
    """A Gated PixelCNN of gated layers with a vertical and a horizontal stack.

    .. code-block:: text

        p(x) = prod_ij p(x_ij | all earlier positions in raster order, and the class if there are classes)

    ====  ============  ===========  ===========  ===================
    site  support       batch shape  event shape  symbol in the paper
    ====  ============  ===========  ===========  ===================
    x     0..K-1        (B)          (H, W)       x
    ====  ============  ===========  ===========  ===================

    Arguments:
        grid: (H, W).
        levels: K.
        channels, layers, size, embedding, hidden: as for :class:`pplmodels.nn.masked_conv.GatedPixelCNNNetwork`.
        classes: number of classes of maps, 0 for none. With classes, ``label`` is required.
    """

    def __init__(
        self,
        grid: Sequence[int] = (8, 8),
        levels: int = 128,
        channels: int = 64,
        layers: int = 10,
        size: int = 7,
        embedding: int = 64,
        hidden: int = 512,
        classes: int = 0,
    ):
        network = GatedPixelCNNNetwork(levels, channels, layers, size, embedding, hidden, classes)
        super().__init__(network, grid, levels, classes)
