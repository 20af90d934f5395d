"""Residual encoder and decoder with feature maps of a quarter of the image's sides (1711.00937, section 4.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

from pplmodels.nn.batch_apply import BatchApply


class Residual(nn.Module):
    """A residual block of ReLU, 3 x 3, ReLU and 1 x 1: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, channels: int):
        super().__init__()
        convs = nn.Conv2d(channels, channels, 3, 1, 1), nn.Conv2d(channels, channels, 1)
        self.net = nn.Sequential(nn.ReLU(), convs[0], nn.ReLU(), convs[1])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.net(x)


def residual_encoder(image: Sequence[int], channels: int, blocks: int, out_channels: int) -> nn.Module:
    """Two 4 x 4 convolutions of stride 2, residual blocks, 1 x 1: ``(..., C, H, W) -> (..., out, H / 4, W / 4)``."""
    latent_grid_shape(image)
    layers = [nn.Conv2d(image[0], channels, 4, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 4, 2, 1)]
    layers += [Residual(channels) for _ in range(blocks)]
    return BatchApply(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(channels, out_channels, 1)), 3)


def residual_decoder(in_channels: int, channels: int, blocks: int, outputs: int) -> nn.Module:
    """The mirror image of :func:`residual_encoder`: ``(..., in, H / 4, W / 4) -> (..., outputs, H, W)``."""
    layers = [nn.Conv2d(in_channels, channels, 3, 1, 1), *(Residual(channels) for _ in range(blocks)), nn.ReLU()]
    layers += [nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.ReLU()]
    return BatchApply(nn.Sequential(*layers, nn.ConvTranspose2d(channels, outputs, 4, 2, 1)), 3)


def latent_grid_shape(image: Sequence[int]) -> tuple[int, int]:
    """The height and width of the latent map."""
    _, height, width = image
    if height % 4 or width % 4:
        raise ValueError(f"the sides of {height}x{width} images are not multiples of 4")
    return height // 4, width // 4
