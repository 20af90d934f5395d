"""A ladder VAE, which has a hierarchy of latents, on binary images."""

from typing import Annotated, Any

from pplmodels import LadderVAE
from pplmodels.data import ValidatedImageSet
from pplmodels.systems import ImageSystem, LatentImageOptions, Pair, ParticleOptions
from pplmodels.systems.images import Binarise
from pplmodels.systems.options import BatchSize, Steps, by_data
from pplmodels.training.options import Option, PositiveInt, Switch

from ..ladder_vae import LadderGuide


class LadderVAEOptions(LatentImageOptions, ParticleOptions):
    """The options of the ladder VAE."""

    steps: Steps = by_data({"digits": 2000}, 20_000)
    batch_size: BatchSize = 256
    z_dims: Annotated[tuple[PositiveInt, ...], Option("sizes of the latent layers, bottom to top", "model", "N")] = (
        64,
        32,
        16,
        8,
        4,
    )
    hidden: Annotated[tuple[PositiveInt, ...], Option("widths of the networks, bottom to top", "model", "N")] = (
        512,
        256,
        128,
        64,
        32,
    )
    batch_norm: Annotated[Switch, Option("use batch norm in all networks", "model")] = True
    binarise: Binarise = "dynamic"


class LadderVAESystem(ImageSystem[LadderVAEOptions]):
    """Trains :class:`pplmodels.LadderVAE` with :class:`guides.LadderGuide`."""

    name = "ladder-vae"
    description = "Train a ladder VAE, which has a hierarchy of latents, on binary images."
    options_class = LadderVAEOptions

    def transform(self, options: LadderVAEOptions) -> str:
        """The binarization that the options select."""
        return options.binarise

    def classes(self, options: LadderVAEOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return LadderVAE, LadderGuide

    def build(self, options: LadderVAEOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        model = model_class(data.train.shape, options.z_dims, options.hidden, options.batch_norm)
        return model, guide_class(model)


SYSTEM = LadderVAESystem()
