"""Convolutional VAEs on color or gray images: a plain one, and VLAE, whose prior is an autoregressive flow."""

from typing import Annotated, Any, Literal

from torch import nn

from pplmodels import ConvVAE
from pplmodels.data import ValidatedImageSet
from pplmodels.data.transforms import DEFAULT_TRANSFORMS
from pplmodels.models.likelihoods import LIKELIHOODS
from pplmodels.systems import ImageSystem, LatentImageOptions, Pair, ParticleOptions
from pplmodels.systems.options import Steps, by_data
from pplmodels.training.options import Fraction, Option, PositiveInt, Switch, one_of

from ..vae import ConvGuide

Flow = Annotated[Literal["none", "prior", "posterior"], Option("where to use an autoregressive flow", "model")]
Likelihood = Annotated[str, one_of(LIKELIHOODS), Option("p(x | z) of a pixel", "model", choices=tuple(LIKELIHOODS))]


class ImageVAEOptions(LatentImageOptions, ParticleOptions):
    """The options of the convolutional VAE."""

    steps: Steps = by_data({"digits": 2000}, 20_000)
    z_dim: Annotated[PositiveInt, Option("number of latent dimensions", "model")] = 16
    likelihood: Likelihood = "mixture"
    encoder_channels: Annotated[
        tuple[PositiveInt, ...], Option("channels of the encoder layers, each halving the size", "model", "N")
    ] = (32, 64, 128, 256)
    decoder_channels: Annotated[
        tuple[PositiveInt, ...], Option("channels of the decoder layers, each doubling the size", "model", "N")
    ] = (128, 128, 64, 32)
    refine: Annotated[
        Switch,
        Option(
            "end the decoder with a full-resolution convolution instead of a cheaper transposed convolution", "model"
        ),
    ] = True
    flow: Flow = "none"
    flow_hidden: Annotated[tuple[PositiveInt, ...], Option("hidden layer widths of the flow", "model", "N")] = (
        512,
        512,
    )
    flow_start: Annotated[
        Fraction,
        Option("fraction of the steps before the flow, initially the identity, is trained", "model"),
    ] = 0.5


class ImageVAESystem(ImageSystem[ImageVAEOptions]):
    """Trains :class:`pplmodels.ConvVAE` with :class:`guides.ConvGuide`."""

    name = "image-vae"
    description = "Train a convolutional VAE on color or gray images."
    options_class = ImageVAEOptions

    def transform(self, options: ImageVAEOptions) -> str:
        """The transform that the likelihood needs."""
        return DEFAULT_TRANSFORMS[LIKELIHOODS[options.likelihood].kind]

    def classes(self, options: ImageVAEOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return ConvVAE, ConvGuide

    def build(self, options: ImageVAEOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        sizes = {"image": data.train.shape, "z_dim": options.z_dim}
        prior, posterior = (options.flow_hidden if options.flow == place else None for place in ("prior", "posterior"))
        decoder = {"channels": options.decoder_channels, "refine": options.refine}
        model = model_class(**sizes, **decoder, likelihood=options.likelihood, flow=prior)
        return model, guide_class(**sizes, channels=options.encoder_channels, flow=posterior)

    def delayed(self, options: ImageVAEOptions, model: Any, guide: Any) -> tuple[nn.Module, float] | None:
        """The flow, which is trained after ``--flow-start``."""
        match options.flow:
            case "prior":
                return model.prior, options.flow_start
            case "posterior":
                return guide.network, options.flow_start
        return None


class VLAEOptions(ImageVAEOptions):
    """The options of the image VAE with a flow as the default prior."""

    flow: Flow = "prior"


class VLAESystem(ImageVAESystem):
    """Trains :class:`pplmodels.ConvVAE` with a flow prior (Chen et al. 2017, arXiv 1611.02731)."""

    name = "vlae"
    description = "Train a VLAE: a convolutional VAE whose prior, or with --flow posterior its posterior, is a flow."
    options_class = VLAEOptions


IMAGE_VAE, VLAE = ImageVAESystem(), VLAESystem()
