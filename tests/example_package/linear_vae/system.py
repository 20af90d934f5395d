"""How the pair is trained. The scripts of pplmodels find this system by the package's entry point."""

from typing import Annotated

from linear_vae.pair import LinearGuide, LinearVAE
from pplmodels.systems import ImageSystem, LatentImageOptions
from pplmodels.training.options import Option, PositiveInt


class LinearVAEOptions(LatentImageOptions):
    z_dim: Annotated[PositiveInt, Option("number of latent dimensions", "model")] = 4


class LinearVAESystem(ImageSystem[LinearVAEOptions]):
    name = "linear-vae"
    description = "Train a linear VAE, which is probabilistic PCA, on images."
    options_class = LinearVAEOptions

    def transform(self, options):
        return "dequantised"

    def classes(self, options):
        return LinearVAE, LinearGuide

    def build(self, options, data, model_class, guide_class):
        sizes = {"image": data.train.shape, "z_dim": options.z_dim}
        return model_class(**sizes), guide_class(**sizes)


SYSTEM = LinearVAESystem()
