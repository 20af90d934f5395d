"""The pair table: one row a pair; the contract tests run on every row by themselves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guides import (
    AIR3DGuide,
    AIRGuide,
    ConvGuide,
    DAIRGuide,
    DRAWGuide,
    EmptyGuide,
    LadderGuide,
    LSTMGuide,
    MLPGuide,
    VAEGuide,
    VectorGuide,
    VQGuide,
)
from pplmodels import AIR, AIR3D, DRAW, MLPVAE, VAE, VQVAE, ConvVAE, GatedPixelCNN, LadderVAE, PixelCNN, VectorVAE
from pplmodels.models.likelihoods import DiagonalNormal
from pplmodels.models.priors import StandardNormal
from pplmodels.module import PairModule


@dataclass(frozen=True)
class Pair:
    """How to build a pair at the smallest size that has all its parts, and a batch for it."""

    model: Callable[[], PairModule]
    guide: Callable[[PairModule], PairModule]
    batch: Callable[[int], Tensor]
    stops: bool = False  # whether the guide has a chain of stops, which SummedOut_ELBO sums out
    choices: bool = False  # whether there are choices beside them, which it may sum out or leave
    saved: bool = True  # whether it is made of sizes; parts that a user brings cannot be written down
    # whether replays are equal to the bit: torch's LSTM has a kernel that cannot be traced, and where a tensor is
    # broadcast in several ways autograd may add its gradients up in another order
    exact: bool = True

    def build(self) -> tuple[PairModule, PairModule]:
        model = self.model()
        return model, self.guide(model)


AIR_SIZES = {"canvas": (1, 10, 10), "num_steps": 2, "what_dim": 3, "window": 5}
AIR_WIDTHS = {"embed_dim": 8, "hidden_dim": 8, "predict_dim": 8, "encoder_dims": (8,)}


def bent(half: PairModule, network: str) -> PairModule:
    """The half with a flow that is no longer the identity, at which its first layers would get no gradient."""
    for parameter in half.get_submodule(network).parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return half


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
    "air in 3-d": Pair(
        model=lambda: AIR3D(image=(8, 10), num_steps=2),
        guide=lambda model: AIR3DGuide(image=(8, 10), num_steps=2, channels=2, hidden_dim=8),
        batch=lambda n: torch.rand(n, 3, 8, 10),
        stops=True,
        choices=True,
        exact=False,
    ),
    "vae, of parts": Pair(
        model=lambda: VAE(StandardNormal(2), torch.nn.Linear(2, 6), DiagonalNormal()),
        guide=lambda model: VAEGuide(torch.nn.Linear(3, 4), 2),
        batch=lambda n: torch.randn(n, 3),
        saved=False,
    ),
    "vae, fully connected": Pair(
        model=lambda: MLPVAE(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        guide=lambda model: MLPGuide(image=(1, 4, 4), z_dim=3, hidden_dims=(8,)),
        batch=lambda n: torch.rand(n, 1, 4, 4).round(),
    ),
    "vae, plane": Pair(
        model=lambda: VectorVAE(hidden_dims=(8,)),
        guide=lambda model: VectorGuide(hidden_dims=(8,)),
        batch=lambda n: torch.randn(n, 2),
    ),
    "vae, convolutional, logit-normal": Pair(
        model=lambda: ConvVAE(image=(3, 8, 8), z_dim=3, channels=(6, 4), likelihood="logit-normal-learned"),
        guide=lambda model: ConvGuide(image=(3, 8, 8), z_dim=3, channels=(4, 6)),
        batch=lambda n: torch.rand(n, 3, 8, 8),
    ),
    "vae, convolutional, logistic mixture, flow prior": Pair(
        model=lambda: bent(ConvVAE(image=(3, 8, 8), z_dim=3, channels=(6, 4), flow=(8,)), "prior.network"),
        guide=lambda model: ConvGuide(image=(3, 8, 8), z_dim=3, channels=(4, 6)),
        batch=lambda n: torch.rand(n, 3, 8, 8).mul(255).round() / 255,
    ),
    "vae, convolutional, flow posterior": Pair(
        model=lambda: ConvVAE(image=(1, 8, 8), z_dim=3, channels=(6, 4), likelihood="bernoulli"),
        guide=lambda model: bent(ConvGuide(image=(1, 8, 8), z_dim=3, channels=(4, 6), flow=(8,)), "network"),
        batch=lambda n: torch.rand(n, 1, 8, 8).round(),
    ),
    "vae, rows": Pair(
        model=lambda: ConvVAE(image=(1, 8, 8), z_dim=3, channels=(6, 4), refine=False, likelihood="bernoulli"),
        guide=lambda model: LSTMGuide(image=(1, 8, 8), z_dim=3, hidden_dim=8),
        batch=lambda n: torch.rand(n, 1, 8, 8).round(),
        exact=False,
    ),
    "ladder vae": Pair(
        model=lambda: LadderVAE(image=(1, 4, 4), z_dims=(4, 3, 2), hidden_dims=(8, 7, 6)),
        guide=lambda model: LadderGuide(model),
        batch=lambda n: torch.rand(n, 1, 4, 4).round(),
    ),
    "draw": Pair(
        model=lambda: DRAW(image=(1, 5, 4), num_steps=3, z_dim=2, hidden_dim=6),
        guide=lambda model: DRAWGuide(model, hidden_dim=7),
        batch=lambda n: torch.rand(n, 1, 5, 4).round(),
    ),
    "draw, windows, three channels": Pair(
        model=lambda: DRAW(
            (3, 6, 8), num_steps=2, z_dim=2, hidden_dim=6, write_window=3, likelihood="logit-normal-learned"
        ),
        guide=lambda model: DRAWGuide(model, hidden_dim=7, read_window=2),
        batch=lambda n: torch.rand(n, 3, 6, 8),
    ),
    "vq-vae": Pair(
        model=lambda: VQVAE((3, 8, 8), codes=5, dim=4, channels=6, blocks=1, decay=None),
        guide=lambda model: VQGuide(model, channels=6, blocks=1),
        batch=lambda n: torch.rand(n, 3, 8, 8).mul(255).round() / 255,
    ),
    "vq-vae, running means": Pair(
        model=lambda: VQVAE((1, 8, 8), codes=5, dim=4, channels=6, blocks=1, likelihood="bernoulli", decay=0.9),
        guide=lambda model: VQGuide(model, channels=6, blocks=1),
        batch=lambda n: torch.rand(n, 1, 8, 8).round(),
    ),
    "pixelcnn": Pair(
        model=lambda: PixelCNN((3, 4), levels=5, channels=6, layers=2, size=3, embedding=4, hidden=7),
        guide=lambda model: EmptyGuide(),
        batch=lambda n: torch.randint(5, (n, 3, 4)),
    ),
    "gated pixelcnn": Pair(
        model=lambda: GatedPixelCNN((3, 4), levels=5, channels=6, layers=2, size=3, embedding=4, hidden=7),
        guide=lambda model: EmptyGuide(),
        batch=lambda n: torch.randint(5, (n, 3, 4)),
    ),
}
