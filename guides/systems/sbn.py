"""A sigmoid belief network of binary images, trained with several samples per image."""

from typing import Annotated, Any, Literal

from pydantic import model_validator
from pyro.infer.elbo import ELBO
from typing_extensions import Self

from pplmodels import SigmoidBeliefNet
from pplmodels.data import ValidatedImageSet
from pplmodels.infer import ImportanceWeighted_ELBO, ReweightedWakeSleep_ELBO
from pplmodels.systems import ImageOptions, ImageSystem, Pair
from pplmodels.systems.images import Binarise
from pplmodels.systems.options import Steps, by_data
from pplmodels.training.options import Fraction, Option, PositiveInt

from ..sigmoid_belief_net import SigmoidBeliefGuide


class SBNOptions(ImageOptions):
    """The options of the sigmoid belief network."""

    steps: Steps = by_data({"digits": 2000}, 20_000)
    hidden: Annotated[tuple[PositiveInt, ...], Option("widths of the layers, bottom to top", "model", "N")] = (200, 200)
    binarise: Binarise = "dynamic"
    objective: Annotated[
        Literal["vimco", "wake-sleep"], Option("gradient estimator of the importance-weighted bound", "objective")
    ] = "vimco"
    particles: Annotated[PositiveInt, Option("samples per image", "objective", "K")] = 50
    chunk: Annotated[
        PositiveInt | None,
        Option("samples that are drawn at once, to save memory (default: all)", "objective", "N"),
    ] = None
    insomnia: Annotated[
        Fraction, Option("weight of the guide's wake phase in wake-sleep; the rest is its sleep phase", "objective")
    ] = 1.0

    @model_validator(mode="after")
    def _phases_and_particles(self) -> Self:
        if self.objective == "vimco" and self.insomnia != 1:
            raise ValueError("--insomnia is an option of --objective wake-sleep.")
        if self.particles == 1 and self.insomnia > 0:
            raise ValueError(f"--objective {self.objective} compares samples, so it needs --particles of at least 2.")
        if self.chunk and self.chunk > self.particles:
            raise ValueError(f"--chunk {self.chunk} must not be larger than --particles {self.particles}.")
        return self


class SBNSystem(ImageSystem[SBNOptions]):
    """Trains :class:`pplmodels.SigmoidBeliefNet` with :class:`guides.SigmoidBeliefGuide`."""

    name = "sbn"
    description = "Train a sigmoid belief network, whose latents are binary, on binary images."
    options_class = SBNOptions
    objective_name = "iw_bound"

    def transform(self, options: SBNOptions) -> str:
        """The binarization that the options select."""
        return options.binarise

    def classes(self, options: SBNOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return SigmoidBeliefNet, SigmoidBeliefGuide

    def build(self, options: SBNOptions, data: ValidatedImageSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair."""
        sizes = {"image": data.train.shape, "hidden_dims": options.hidden}
        return model_class(**sizes), guide_class(**sizes)

    def elbo(self, options: SBNOptions) -> ELBO:
        """VIMCO or reweighted wake-sleep."""
        settings: dict[str, Any] = {"chunk": options.chunk, "max_plate_nesting": 1}
        if options.objective == "vimco":
            return ImportanceWeighted_ELBO(options.particles, **settings)
        return ReweightedWakeSleep_ELBO(options.particles, insomnia=options.insomnia, **settings)


SYSTEM = SBNSystem()
