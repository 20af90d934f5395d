"""A VAE with an LSTM encoder that reads images row by row and a transposed-convolution decoder."""

from typing import Annotated, Any

from pplmodels import ConvVAE
from pplmodels.data import ValidatedImageSet
from pplmodels.systems import ImageSystem, LatentImageOptions, Pair
from pplmodels.systems.options import LearningRate, Steps, by_data
from pplmodels.training.options import Option, PositiveInt

from ..vae import LSTMGuide


class LSTMVAEOptions(LatentImageOptions):
    """The options of the VAE with an LSTM encoder."""

    steps: Steps = by_data({"digits": 2000}, 20_000)
    lr: LearningRate = 2e-3
    z_dim: Annotated[PositiveInt, Option("number of latent dimensions", "model")] = 32
    hidden: Annotated[PositiveInt, Option("state size of the LSTM", "model")] = 128
    channels: Annotated[
        tuple[PositiveInt, ...], Option("channels of the decoder layers, coarse to fine", "model", "N")
    ] = (64, 32)


class LSTMVAESystem(ImageSystem[LSTMVAEOptions]):
    """Trains :class:`pplmodels.ConvVAE` with :class:`guides.LSTMGuide`."""

    name = "lstm-vae"
    description = "Train a VAE with an LSTM encoder that reads images row by row and a transposed-convolution decoder."
    options_class = LSTMVAEOptions

    def transform(self, options: LSTMVAEOptions) -> str:
        """Dynamic binarization."""
        return "dynamic"

    def classes(self, options: LSTMVAEOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return ConvVAE, LSTMGuide

    def build(self, options: LSTMVAEOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        sizes = {"image": data.train.shape, "z_dim": options.z_dim}
        model = model_class(**sizes, channels=options.channels, refine=False, likelihood="bernoulli")
        return model, guide_class(**sizes, hidden_dim=options.hidden)


SYSTEM = LSTMVAESystem()
