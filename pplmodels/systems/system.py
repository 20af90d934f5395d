"""A system: how a pair is trained, measured, plotted and rebuilt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pplmodels import distributed
from pplmodels.data import Images
from pplmodels.errors import InputError
from pplmodels.infer import SVI, Annealed, ScaledKL, adam
from pplmodels.metrics import compiled_log_probs, log_probs
from pplmodels.metrics.bounds import IWBound, LogProbs
from pplmodels.module import PairModule
from pplmodels.rng import seed_all
from pplmodels.systems.command_line import create_run
from pplmodels.systems.options import TrainingOptions
from pplmodels.training import Run, fit, imports, warn_if_short
from pplmodels.training.cli import resumable

Pair = tuple[PairModule, PairModule]
LogProbFunction = Callable[[Tensor], LogProbs]  # pplmodels.metrics.log_probs of a pair


class Data(Protocol):
    """The training and test parts of a dataset."""

    @property
    def train(self) -> Images:
        """The images to train on."""

    @property
    def test(self) -> Images:
        """Held-out images."""


OptionsT = TypeVar("OptionsT", bound=TrainingOptions)
DataT = TypeVar("DataT", bound=Data)


@dataclass(frozen=True)
class Trained:
    """A trained pair, its log-probabilities, the seconds of its training, and metrics of the training itself."""

    model: PairModule
    guide: PairModule
    log_probs: LogProbFunction
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)


class System(ABC, Generic[OptionsT, DataT]):
    """How a pair is trained, measured, plotted and rebuilt.

    A package makes its systems known by an entry point in the group :data:`pplmodels.registry.SYSTEMS`. All scripts
    then work on them. A system has no state. The abstract methods define it; the others have defaults.

    Attributes:
        name: the name of the system, in the registry and of its run folders.
        description: one sentence for ``--help``.
        options_class: the class of the options of a training.
        progress_metrics: names of the metrics that the progress bar shows.
        final_metrics: names of the metrics that are printed at the end.
        recorded: names of the facts about the data in config.json, see :meth:`facts`.
        schedule_options: options to name if a run is too short for its schedules.
    """

    name: str
    description: str
    options_class: type[OptionsT]
    progress_metrics: Sequence[str] = ("elbo",)
    final_metrics: Sequence[str] = ("elbo",)
    recorded: Sequence[str] = ("image",)
    schedule_options: str = "--schedule-steps"

    @abstractmethod
    def load(self, options: OptionsT) -> DataT:
        """The data given by the options, on the selected device. Raises :class:`pplmodels.errors.InputError`."""

    @abstractmethod
    def classes(self, options: OptionsT) -> tuple[type[PairModule], ...]:
        """The classes of model and guide, which subclasses in the file of ``--import`` replace.

        Further classes may be named that the file may define instead, and that :meth:`build` does not get.
        """

    @abstractmethod
    def build(self, options: OptionsT, data: DataT, model_class: Any, guide_class: Any) -> Pair:
        """A new pair of the given classes, on the CPU."""

    @abstractmethod
    def held_out_metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, data: DataT) -> dict[str, Any]:
        """The metrics of a trained pair in result.json, from held-out data."""

    @abstractmethod
    def plot(self, model: Any, guide: Any, data: DataT, run: Run) -> None:
        """Write the plots of a pair into the folder of a run."""

    def prepare(self, given: dict[str, Any]) -> dict[str, Any]:
        """The given values of the options, unchecked, with those that follow from them."""
        return given

    def resolve(self, options: OptionsT, data: DataT) -> OptionsT:
        """The options with defaults that depend on the data. Options that do not fit raise an ``InputError``."""
        return options

    def facts(self, options: OptionsT, data: DataT) -> dict[str, Any]:
        """What config.json records about the data, to be compared when a run is continued or evaluated."""
        return {"image": list(data.train.shape)}

    def check_data(self, options: OptionsT, data: DataT, run: Run) -> None:
        """Raise ``InputError`` for data that differ from those that ``run`` was trained on."""
        image = list(data.train.shape)
        trained = run.config.get("image", image)
        if trained != image:
            sizes = ["x".join(map(str, shape)) if isinstance(shape, list) else shape for shape in (image, trained)]
            raise InputError(
                f"the images of {options.data} have size {sizes[0]}, but {run.folder} was trained on images of size "
                f"{sizes[1]}."
            )

    def svi(self, options: OptionsT, model: Any, guide: Any) -> SVI:
        """What trains the pair."""
        return SVI(model, guide, adam(model, guide, options.lr), **options.svi_settings())

    def schedules(self, options: OptionsT, svi: SVI) -> list[Annealed]:
        """The quantities that are annealed."""
        return []

    def averaged(self, options: OptionsT, svi: SVI) -> AveragedModel | None:
        """The running mean of the weights of the SVI's model and guide, or None if the last weights are used."""
        return None

    def patience(self, options: OptionsT) -> int | None:
        """The number of evaluations without a better bound after which training ends, or None."""
        return None

    def objective(self, options: OptionsT) -> str:
        """The name of the quantity that the steps maximize."""
        return "elbo"

    def evaluate(
        self, options: OptionsT, svi: SVI, log_probs: LogProbFunction, model: Any, guide: Any, data: DataT
    ) -> dict[str, Any]:
        """The metrics of an evaluation during training, by default those of the trained pair."""
        return self.held_out_metrics(log_probs, model, guide, data)

    def further(
        self, model: Any, guide: Any, data: DataT, batch_size: int, paths: int, gradient_samples: int | None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Further metrics of an evaluation by ``scripts/evaluate.py``, and arrays with one row per held-out image.

        ``paths`` is the number of samples per image, ``gradient_samples`` that of gradients of a batch of
        ``batch_size`` images, if the variance of the gradient is asked for.
        """
        return {}, {}

    def weighted_metrics(self, images: Images, bound: IWBound) -> dict[str, Any]:
        """Further metrics of the importance-weighted bound of held-out ``images``, in an evaluation."""
        return {}

    def train(self, options: OptionsT, run: Run | None = None, data: DataT | None = None) -> Run:
        """Train a pair, and save, measure and plot it; returns its run.

        ``run`` is the run to continue, ``data`` what :meth:`load` returns, if it is known.
        """
        data = self.load(options) if data is None else data
        if run is not None:
            self.check_data(options, data, run)
        options = self.resolve(options, data)
        for build in self.builders(options, data):
            imports.check(options.imports, build, data.train)
        run = run or create_run(self, options, self.facts(options, data))
        with resumable(run):
            self.report(options, data, run, self.fit(options, data, run))
        return run

    def builders(self, options: OptionsT, data: DataT) -> list[Callable[[], Pair]]:
        """Functions that build the pairs of the training, which are tried before a run folder is created."""
        return [partial(self.new_pair, options, data)]

    def new_pair(self, options: OptionsT, data: DataT, **sizes: Any) -> Pair:
        """A new pair on the device of the data, of the user's classes and with the weights of ``--init-from``, if any.

        ``sizes`` are further arguments of :meth:`build`.
        """
        model_class, guide_class, *_ = imports.user_classes(options.imports, self.classes(options))
        model, guide = self.build(options, data, model_class, guide_class, **sizes)
        device = data.train.pixels.device
        pair = model.to(device), guide.to(device)
        if options.init_from:
            for module in pair:
                module.load_weights(options.init_from)
        return pair

    def fit(
        self,
        options: OptionsT,
        data: DataT,
        run: Run,
        *,
        seed: int | None = None,
        steps: int | None = None,
        resume: bool | None = None,
    ) -> Trained:
        """Train a new pair in ``run``, or with another ``seed`` or only for the first ``steps`` steps."""
        seed = options.seed if seed is None else seed
        seed_all(seed)
        pair = self.new_pair(options, data)
        svi = self.svi(options, *pair)
        annealed, averaged = self.schedules(options, svi), self.averaged(options, svi)
        whole = steps is None or steps == options.steps
        if whole:
            warn_if_short(options.steps, annealed, self.schedule_options)
        model, guide = pair if averaged is None else map(unwrapped, averaged.module.children())
        bound = log_probs_of(options, model, guide)
        seconds = fit(
            svi,
            data.train,
            run,
            steps=steps or options.steps,
            batch_size=options.batch_size,
            seed=seed,
            annealed=annealed,
            evaluate=partial(self.evaluate, options, svi, bound, model, guide, data),
            eval_every=options.eval_every,
            shown=self.progress_metrics,
            objective=self.objective(options),
            resume=(options.resume or options.extend is not None) if resume is None else resume,
            averaged=averaged,
            patience=self.patience(options),
            saved=(model, guide) if whole else (),
            draw=partial(self.plot, model, guide, data, run) if whole else None,
            fuse=options.fuse,
        )
        return Trained(model, guide, bound, seconds)

    def report(self, options: OptionsT, data: DataT, run: Run, trained: Trained) -> None:
        """Measure, save and plot a trained pair, and write result.json."""
        seed_all(options.seed + distributed.rank())
        model, guide = trained.model.eval(), trained.guide.eval()
        metrics = self.held_out_metrics(trained.log_probs, model, guide, data) | trained.metrics
        if distributed.rank() == 0:
            for module in (model, guide):
                module.save_pretrained(run.folder)
            with distributed.alone():
                self.plot(model, guide, data, run)
            run.finish(trained.seconds, data.train.pixels.device, metrics)
            shown = ", ".join(f"{name} {metrics[name]:.4g}" for name in self.final_metrics if name in metrics)
            print(f"metrics on {len(data.test)} held-out images: {shown}")
            print(f"all results are in {run.folder}")
        distributed.barrier()


def log_probs_of(options: TrainingOptions, model: PairModule, guide: PairModule) -> LogProbFunction:
    """The log-probabilities of a pair as a function of the images, compiled unless the options forbid it."""
    if options.compile:
        return compiled_log_probs(model, guide, fallback=True)
    return partial(log_probs, model, guide)


def unwrapped(module: nn.Module) -> PairModule:
    """The model or guide itself, without the wrapper that scales its KL. Raises TypeError for other modules."""
    inner = module.wrapped if isinstance(module, ScaledKL) else module
    if not isinstance(inner, PairModule):
        raise TypeError(f"{type(inner).__name__} is neither a model nor a guide: it is no PairModule.")
    return inner


def shard_batches(images: Images) -> Iterator[Tensor]:
    """Batches of this rank's share of the images, for metrics that are summed over the ranks."""
    return images.part(distributed.shard(len(images))).batches()
