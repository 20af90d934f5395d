"""A VAE with fully connected networks on binary images."""

from typing import Annotated, Any

from pplmodels import MLPVAE
from pplmodels.data import ValidatedImageSet
from pplmodels.nn.mlp import ACTIVATIONS
from pplmodels.systems import ImageSystem, LatentImageOptions, Pair, ParticleOptions
from pplmodels.systems.images import Binarise
from pplmodels.systems.options import Steps, by_data
from pplmodels.training.options import Option, PositiveInt, one_of

from ..vae import MLPGuide


class VAEOptions(LatentImageOptions, ParticleOptions):
    """The options of the fully connected VAE."""

    steps: Steps = by_data({"digits": 3000}, 20_000)
    z_dim: Annotated[PositiveInt, Option("number of latent dimensions", "model")] = 64
    hidden: Annotated[
        tuple[PositiveInt, ...], Option("hidden layer widths, from the image to the latent", "model", "WIDTH")
    ] = (800, 800)
    activation: Annotated[
        str, one_of(ACTIVATIONS), Option("activation of the hidden layers", "model", choices=tuple(ACTIVATIONS))
    ] = "silu"
    binarise: Binarise = "dynamic"


class VAESystem(ImageSystem[VAEOptions]):
    """Trains :class:`pplmodels.MLPVAE` with :class:`guides.MLPGuide`."""

    name = "vae"
    description = "Train a VAE with fully connected networks on binary images."
    options_class = VAEOptions

    def transform(self, options: VAEOptions) -> str:
        """The binarization that the options select."""
        return options.binarise

    def classes(self, options: VAEOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return MLPVAE, MLPGuide

    def build(self, options: VAEOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        nets = {"image": data.train.shape, "z_dim": options.z_dim, "activation": options.activation}
        return model_class(**nets, hidden_dims=options.hidden[::-1]), guide_class(**nets, hidden_dims=options.hidden)


SYSTEM = VAESystem()
