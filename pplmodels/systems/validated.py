"""The recipe of systems whose data have validation images: schedules, averaged weights and early stopping."""

from abc import abstractmethod
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, model_validator
from pyro.infer.elbo import ELBO
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import Self

from pplmodels.data import Images, ValidatedImageSet
from pplmodels.infer import (
    SVI,
    Annealed,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    ScaledKL,
    adam,
    cyclical,
    delayed,
    learning_rates,
    linear,
)
from pplmodels.metrics import elbo_terms
from pplmodels.systems.options import TrainingOptions
from pplmodels.systems.system import LogProbFunction, System, Trained, unwrapped
from pplmodels.training import Run
from pplmodels.training.batch_norm import recompute_batch_norm
from pplmodels.training.options import Fraction, NonnegativeInt, Option, PositiveFloat, PositiveInt

Patience = Annotated[
    PositiveInt | None,
    Option("stop after N evaluations without an improved validation bound", "training schedule", "N"),
]
ValidationImages = Annotated[
    PositiveInt | None,
    Option(
        "number of validation images, if the data have none (default: a tenth of the training images)",
        "training schedule",
    ),
]


class ScheduleOptions(TrainingOptions):
    """The options of trainings with validation."""

    clip_norm: Annotated[PositiveFloat, Option("maximum gradient norm per image", "training schedule")] = 200.0
    hold: Annotated[
        Fraction, Option("fraction of the steps before the learning rate falls to 1/100", "training schedule")
    ] = 0.5
    averaging: Annotated[
        Fraction | None,
        Option(
            "decay of an exponential moving average of the weights, which is evaluated and saved (try 0.999)",
            "training schedule",
            "DECAY",
        ),
    ] = None
    patience: Patience = None
    valid: ValidationImages = None


class AnnealingOptions(ScheduleOptions):
    """The options that prevent posterior collapse."""

    warm_up: Annotated[
        NonnegativeInt,
        Option(
            "steps until the KL weight reaches 1 (default: a tenth of the steps, at most 2000)", "KL annealing", "N"
        ),
    ] = Field(default_factory=lambda given: min(2000, given.get("schedule_steps", 1) // 10))
    cycle: Annotated[PositiveInt | None, Option("restart the warm-up every STEPS steps", "KL annealing", "STEPS")] = (
        None
    )
    free_bits: Annotated[
        PositiveFloat | None, Option("KL per latent site below which it has no gradient", "KL annealing", "NATS")
    ] = None

    @model_validator(mode="after")
    def _warm_up_fits_the_cycle(self) -> Self:
        if self.cycle and not 0 < self.warm_up <= self.cycle:
            raise ValueError(f"--cycle {self.cycle} requires a --warm-up from 1 to {self.cycle}, not {self.warm_up}.")
        return self


class ParticleOptions(AnnealingOptions):
    """The options of trainings with an importance-weighted bound (:class:`pplmodels.infer.ImportanceWeighted_ELBO`)."""

    particles: Annotated[
        PositiveInt, Option("samples per image of an importance-weighted bound (1: the ELBO)", "objective", "K")
    ] = 1
    gradient: Annotated[
        Literal["plain", "stl", "dreg", "gdreg"],
        Option("its gradient estimator; gdreg is for learned priors and hierarchies of latents", "objective"),
    ] = "plain"
    chunk: Annotated[
        PositiveInt | None,
        Option("samples that are drawn at once, to save memory (default: all)", "objective", "N"),
    ] = None

    @model_validator(mode="after")
    def _an_elbo_has_no_weights(self) -> Self:
        if self.free_bits and (self.particles > 1 or self.gradient != "plain"):
            raise ValueError(
                "--free-bits changes the gradient of the ELBO, so it cannot be combined with --particles or --gradient."
            )
        if self.gradient.endswith("dreg") and self.particles == 1:
            raise ValueError(f"--gradient {self.gradient} needs --particles of at least 2.")
        if self.chunk and self.chunk > self.particles:
            raise ValueError(f"--chunk {self.chunk} must not be larger than --particles {self.particles}.")
        return self


ScheduleT = TypeVar("ScheduleT", bound=ScheduleOptions)
ValidatedT = TypeVar("ValidatedT", bound=ValidatedImageSet)


class ValidatedSystem(System[ScheduleT, ValidatedT], Generic[ScheduleT, ValidatedT]):
    """A system whose data have validation images: schedules, averaged weights and early stopping.

    Attributes:
        objective_name: the name of the objective without annealing.
    """

    progress_metrics = ("valid_elbo",)
    final_metrics = ("elbo", "bits_per_dim", "code_usage", "nats_per_code")
    schedule_options = "--warm-up"
    objective_name = "elbo"

    @abstractmethod
    def metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, images: Images) -> dict[str, Any]:
        """The metrics of a pair on a set of images."""

    def held_out_metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, data: ValidatedT) -> dict[str, Any]:
        """The metrics of the test images."""
        return self.metrics(log_probs, model, guide, data.test)

    def delayed(self, options: ScheduleT, model: Any, guide: Any) -> tuple[nn.Module, float] | None:
        """The part of the pair, if any, that is only trained after a fraction of the steps, and this fraction."""
        return None

    def elbo(self, options: ScheduleT) -> ELBO | None:
        """The objective: with free bits or importance weights, if the options ask for them; None for the ELBO."""
        if isinstance(options, AnnealingOptions) and options.free_bits:
            return FreeBits_ELBO(options.free_bits)
        if isinstance(options, ParticleOptions) and (options.particles > 1 or options.gradient != "plain"):
            return ImportanceWeighted_ELBO(
                options.particles, options.gradient, chunk=options.chunk, max_plate_nesting=1
            )
        return None

    def svi(self, options: ScheduleT, model: Any, guide: Any) -> SVI:
        """SVI of :meth:`elbo`, with KL annealing if the options ask for it."""
        late = self.delayed(options, model, guide)
        optim = adam(model, guide, options.lr, {late[0]: options.lr} if late else None)
        pair: tuple[nn.Module, nn.Module] = (model, guide)
        if isinstance(options, AnnealingOptions) and options.warm_up:
            pair = ScaledKL(model), ScaledKL(guide)
        return SVI(*pair, optim, self.elbo(options), clip_norm=options.clip_norm, **options.svi_settings())

    def schedules(self, options: ScheduleT, svi: SVI) -> list[Annealed]:
        """The learning rates fall at the end, and the KL weights rise at the beginning."""
        late = self.delayed(options, *map(unwrapped, (svi.model, svi.guide)))
        falling = linear(options.lr, options.lr / 100, int(options.hold * options.steps), options.steps)
        courses = [falling, delayed(falling, int((late[1] if late else 0.0) * options.schedule_steps))]
        annealed = [Annealed(rate, course) for rate, course in zip(learning_rates(svi.optim), courses, strict=False)]
        if isinstance(options, AnnealingOptions) and options.warm_up:
            warm_up = linear(0.0, 1.0, 0, options.warm_up)
            if options.cycle:
                warm_up = cyclical(0.0, 1.0, options.cycle, options.warm_up / options.cycle)
            annealed += [Annealed(module.beta, warm_up) for module in (svi.model, svi.guide)]
        return annealed

    def averaged(self, options: ScheduleT, svi: SVI) -> AveragedModel | None:
        """The exponential moving average of ``--averaging``."""
        if not options.averaging:
            return None
        multi = get_ema_multi_avg_fn(options.averaging)
        pair = nn.ModuleList([svi.model, svi.guide])
        return AveragedModel(pair, multi_avg_fn=multi, use_buffers=True).eval()

    def patience(self, options: ScheduleT) -> int | None:
        """The value of ``--patience``."""
        return options.patience

    def objective(self, options: ScheduleT) -> str:
        """``objective_name``, or "iw_bound" for several particles, with the prefix "annealed" if the KL is annealed."""
        name, annealed = self.objective_name, isinstance(options, AnnealingOptions) and options.warm_up
        if isinstance(options, ParticleOptions) and options.particles > 1:
            name = "iw_bound"
        return f"annealed_{name}" if annealed else name

    def evaluate(
        self, options: ScheduleT, svi: SVI, log_probs: LogProbFunction, model: Any, guide: Any, data: ValidatedT
    ) -> dict[str, Any]:
        """The metrics of the validation images, and the bound of as many training images."""
        seen, _ = elbo_terms(log_probs, data.train.head(len(data.valid)).batches())
        metrics = self.metrics(log_probs, model, guide, data.valid)
        return {"train_elbo": seen["elbo"], "valid_elbo": metrics.pop("elbo"), **metrics}

    def fit(self, options: ScheduleT, data: ValidatedT, run: Run, **part: Any) -> Trained:
        """Train, and recompute the statistics of batch normalization with the final weights."""
        trained = super().fit(options, data, run, **part)
        recompute_batch_norm(trained.model, trained.guide, data.train.batches(options.batch_size))
        return trained
