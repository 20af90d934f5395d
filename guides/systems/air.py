"""AIR (Attend, Infer, Repeat), which finds, counts and draws the objects of scenes."""

import math
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from pyro.infer import TraceGraph_ELBO
from torch import Tensor
from typing_extensions import Self

from pplmodels import AIR, inspect
from pplmodels.data import Images, SceneSet, scene_set
from pplmodels.errors import InputError
from pplmodels.infer import SVI, Annealed, PerSite_ELBO, adam, cosine, learning_rates, linear
from pplmodels.messages import say
from pplmodels.metrics import gradient_variance
from pplmodels.metrics.bounds import IWBound
from pplmodels.models.air import SMALLEST_PIXEL_SCALE
from pplmodels.systems import ImageFileOptions, LogProbFunction, Pair, System, Trained
from pplmodels.systems.counting import scene_metrics, weighted_metrics
from pplmodels.systems.options import BACKGROUND, LearningRate, by_data
from pplmodels.training import Run, best_of_seeds
from pplmodels.training.options import (
    FiniteFloat,
    NonnegativeInt,
    Option,
    PositiveFloat,
    PositiveInt,
    Switch,
)

from ..air import AIRGuide, DAIRGuide
from .air_pictures import scene_pictures, worst_pictures

GUIDES = {"air": AIRGuide, "dair": DAIRGuide}
ESTIMATORS = {"reinforce": "reinforce", "summed-out": "enum", "rloo": "rloo", "mvd": "mvd"}  # of z_pres
MOST = 2  # default for --max-objects
WINDOW = 28  # default for --window if scenes are composed
SCENE_STEPS = 2000  # default steps for scenes of up to 3 objects
CANVAS_VALUES = 5_000_000  # values of the canvases of all objects in a batch, which bounds its memory and time
SMALLEST_BATCH = 32
PIXEL_SCALE = 0.3
BACKGROUND_DIM = 8  # at least
BY_GROUND = {"black": "none", "common": "common", "varying": "scene"}
ADVICE = (
    " If this lasts, try another --background-model, --object-size or --object-spread, more --steps, or --restarts 3."
)
EVALUATED = 5000  # held-out scenes that are evaluated during training
SHOWN = 12  # scenes in the plots
SEARCHED = 1000  # held-out scenes among which the worst are found
UNSEEN = ("elbo", "count_accuracy", "confusion", "all_parts_right")  # metrics of scenes with unseen counts

ValueT = TypeVar("ValueT")


class AIROptions(ImageFileOptions):
    """The options of AIR. Defaults are the paper's values, except where these would make training too slow."""

    steps: Annotated[
        PositiveInt,
        Option(
            "gradient steps (default: 6000; 2250 for the built-in digits; with --scenes, 2000 for up to 3 objects and "
            "more for more objects)",
            "training",
        ),
    ] = by_data({"digits": 2250}, 6000)  # small canvases need fewer steps
    batch_size: Annotated[
        PositiveInt, Option("images per step (default: 128, or fewer if scenes are large)", "training")
    ] = 128
    lr: LearningRate = 1.5e-3
    background: Annotated[str, BACKGROUND] = "black"

    scenes: Annotated[
        Switch,
        Option(
            "--data is an .npz file of complete scenes; otherwise, scenes are composed from its images, on black",
            "scenes",
        ),
    ] = False
    canvas: Annotated[
        PositiveInt | None,
        Option("side of composed scenes in pixels (50; 40 for built-in digits)", "scenes", scope="data"),
    ] = None
    object_size: Annotated[
        PositiveFloat | None,
        Option(
            "object size in composed scenes (21.5; 13 for built-in digits); with --scenes, the size of the objects in "
            "the file (default: estimated)",
            "scenes",
            "PIXELS",
            scope="data",
        ),
    ] = None
    object_spread: Annotated[
        PositiveFloat | None,
        Option(
            "relative standard deviation of the object size in the prior (0.07; 0.05 for built-in digits; estimated "
            "with --scenes)",
            "scenes",
            "SHARE",
            scope="data",
        ),
    ] = None
    max_objects: Annotated[
        PositiveInt | None,
        Option(
            "maximum number of objects per scene (2; with --scenes, the maximum of the counts in the file, if any)",
            "scenes",
            scope="data",
        ),
    ] = None
    counts: Annotated[
        tuple[NonnegativeInt, ...] | None,
        Option("object counts of composed scenes (default: 0 to --max-objects)", "scenes", "N", scope="data"),
    ] = None
    unseen_counts: Annotated[
        tuple[NonnegativeInt, ...] | None,
        Option(
            "object counts of additional composed scenes, which are only used for the final evaluation",
            "scenes",
            "N",
            scope="data",
        ),
    ] = None
    train_scenes: Annotated[
        PositiveInt, Option("number of training scenes; with --scenes, the maximum number", "scenes")
    ] = 60_000
    test_scenes: Annotated[
        PositiveInt, Option("number of held-out scenes; with --scenes, the maximum number", "scenes")
    ] = 10_000

    guide: Annotated[
        Literal["air", "dair"], Option("dair (Difference AIR) gets the unexplained part of the image as input", "model")
    ] = "air"
    num_steps: Annotated[
        PositiveInt | None, Option("maximum number of inferred objects (default: 1 more than in scenes)", "model")
    ] = None
    background_model: Annotated[
        Literal["auto", "none", "common", "scene"],
        Option(
            "none is black; common is a learned picture for all scenes; scene has a latent per scene in addition; auto "
            "chooses by the scenes",
            "model",
        ),
    ] = "auto"
    occlusion: Annotated[
        Literal["auto", "yes", "no"],
        Option("whether objects hide what is below them, or are added to it (auto: yes with a background)", "model"),
    ] = "auto"
    pixel_scale: Annotated[
        PositiveFloat | None,
        Option("standard deviation of a pixel (default: 0.3 on black; otherwise learned, from 0.3)", "model"),
    ] = None
    what_dim: Annotated[PositiveInt, Option("size of an object's appearance code", "model")] = 50
    window: Annotated[
        PositiveInt | None,
        Option("side of the attention window in pixels (28; with --scenes, by the object size)", "model"),
    ] = None

    estimator: Annotated[
        Literal["reinforce", "summed-out", "rloo", "mvd"],
        Option("gradient estimator for z_pres (reinforce; summed-out with --scenes)", "learning to count"),
    ] = Field(default_factory=lambda given: "summed-out" if given.get("scenes") else "reinforce")
    particles: Annotated[
        PositiveInt,
        Option(
            "samples per image and step (default: 1; 2 for --estimator rloo, which needs several)",
            "learning to count",
            "K",
        ),
    ] = Field(default_factory=lambda given: 2 if given.get("estimator") == "rloo" else 1)
    restarts: Annotated[
        PositiveInt,
        Option(
            "number of seeds to train for --restart-steps steps each; training continues with the best of them",
            "learning to count",
            "K",
            scope="once",
        ),
    ] = 1
    restart_steps: Annotated[
        PositiveInt | None,
        Option(
            "steps per restart (default: the end of --count-steps or half of --steps, whichever is less)",
            "learning to count",
            "N",
        ),
    ] = None
    baseline_lr: Annotated[PositiveFloat, Option("learning rate of the baseline", "learning to count")] = 1.5e-3
    clip_norm: Annotated[PositiveFloat, Option("maximum gradient norm per image", "learning to count")] = 100.0
    presence_bias: Annotated[FiniteFloat, Option("initial logit of z_pres", "learning to count")] = 2.0
    count_ratio: Annotated[
        tuple[PositiveFloat, PositiveFloat],
        Option(
            "p(n+1)/p(n) of the prior over counts, annealed from K0 to K1 (0.1 1e-6; 0.1 1e-4 with --scenes)",
            "learning to count",
            ("K0", "K1"),
        ),
    ] = Field(default_factory=lambda given: (0.1, 1e-4 if given.get("scenes") else 1e-6))
    count_steps: Annotated[
        tuple[NonnegativeInt, NonnegativeInt],
        Option(
            "steps between which --count-ratio is annealed, geometrically (300 1500; with --scenes, a tenth to half "
            "of --schedule-steps)",
            "learning to count",
            ("BEGIN", "END"),
        ),
    ] = Field(
        default_factory=lambda given: (
            (given.get("schedule_steps", 1) // 10, given.get("schedule_steps", 1) // 2)
            if given.get("scenes")
            else (300, 1500)
        )
    )
    explore: Annotated[
        tuple[PositiveFloat, PositiveFloat] | None,
        Option(
            "minimum probability of stopping and of continuing, annealed (default: to 0.0001, from 0.3 for two "
            "objects and from less for more objects, so that enough samples reach the last object)",
            "learning to count",
            ("P0", "P1"),
        ),
    ] = None
    explore_steps: Annotated[
        tuple[NonnegativeInt, NonnegativeInt],
        Option(
            "steps between which --explore is annealed (default: first of --count-steps to 3/4 of --schedule-steps)",
            "learning to count",
            ("BEGIN", "END"),
        ),
    ] = Field(
        default_factory=lambda given: (
            given.get("count_steps", (0, 0))[0],
            3 * given.get("schedule_steps", 1) // 4,
        )
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scenes:
            for name in ("canvas", "counts", "unseen_counts", "image_size", "data_memory", "workers"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{self.flag(name)} does not apply to --scenes, which are already complete.")
        if self.counts is not None and self.max_objects is not None:
            raise ValueError("--counts and --max-objects cannot be combined: --counts lists all object counts.")
        if self.restart_steps is not None and self.restarts == 1:
            raise ValueError("--restart-steps requires --restarts, the number of restarts.")
        if self.restarts > 1 and self.first_steps > self.steps:
            raise ValueError(f"--restart-steps {self.first_steps} is more than the run's {self.steps} --steps.")
        if self.restarts > 1 and (self.extend or self.init_from):
            raise ValueError(
                "--restarts cannot be combined with --extend or --init-from, because it trains from new seeds."
            )
        if self.estimator == "rloo" and self.particles < 2:
            raise ValueError("--estimator rloo compares the samples of an image: --particles must be at least 2.")
        if self.explore is not None and not all(p < 0.5 for p in self.explore):
            raise ValueError("--explore: the probabilities must be below 0.5.")
        return self

    def with_steps(self, steps: float) -> Self:
        """The same options with another number of steps, on which defaults of other options depend."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate(given | {"steps": 100 * round(steps / 100)})

    @property
    def scene_counts(self) -> tuple[int, ...]:
        """The object counts of composed scenes."""
        return self.counts or tuple(range((self.max_objects or MOST) + 1))

    @property
    def first_steps(self) -> int:
        """The number of steps per restart."""
        return self.restart_steps or min(self.count_steps[1], max(1, self.steps // 2))


class AIRSystem(System[AIROptions, SceneSet]):
    """Trains :class:`pplmodels.AIR` with :class:`guides.AIRGuide` or :class:`guides.DAIRGuide`."""

    name = "air"
    description = "Train AIR (Attend, Infer, Repeat) to find, count and draw the objects of scenes."
    options_class = AIROptions
    progress_metrics = ("elbo", "count_accuracy")
    final_metrics = ("elbo", "count_accuracy")
    schedule_options = "--count-steps, --explore-steps"

    def load(self, options: AIROptions) -> SceneSet:
        """The training and held-out scenes."""
        scenes = scene_set(
            options.data,
            options.data_dir,
            **options.loading(),
            ready_made=options.scenes,
            canvas=options.canvas,
            counts=options.scene_counts,
            unseen_counts=options.unseen_counts or (),
            object_size=options.object_size,
            object_spread=options.object_spread,
            num_train=options.train_scenes,
            num_test=options.test_scenes,
            seed=options.seed,
        )
        return scenes.to(options.torch_device())

    def resolve(self, options: AIROptions, data: SceneSet) -> AIROptions:
        """The defaults that follow from the scenes: their size, background, and number and size of objects."""
        most = most_objects(options, data)
        if options.scenes and "steps" not in options.model_fields_set:
            options = options.with_steps(SCENE_STEPS * max(1.0, (most / 3) ** 0.5))
        num_steps = options.num_steps or max(most + 1, *(options.unseen_counts or ()), 0)
        background = BY_GROUND[data.ground.kind] if options.background_model == "auto" else options.background_model
        batch_size = options.batch_size
        if "batch_size" not in options.model_fields_set:
            values = num_steps * math.prod(data.train.shape)
            batch_size = next((size for size in (128, 64) if size * values <= CANVAS_VALUES), SMALLEST_BATCH)
        return options.replaced(
            num_steps=num_steps,
            explore=options.explore or (1 - 0.7 ** (1 / max(1, most - 1)), 1e-4),
            batch_size=batch_size,
            background_model=background,
            window=options.window or (data.window if options.scenes else WINDOW),
        )

    def classes(self, options: AIROptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return AIR, GUIDES[options.guide]

    def build(self, options: AIROptions, data: SceneSet, model_class: Any, guide_class: Any) -> Pair:
        """A new pair, whose prior of windows fits the objects of the scenes."""
        sizes = {
            "canvas": data.train.shape,
            "num_steps": resolved(options.num_steps),
            "what_dim": options.what_dim,
            "window": resolved(options.window),
            "background_model": options.background_model,
        }
        ground = data.ground
        patterns = ground.patterns if options.background_model == "scene" else None
        number = 0 if patterns is None else len(patterns)
        sizes["background_dim"] = max(BACKGROUND_DIM, number)
        has_background = options.background_model != "none"
        where_loc, where_scale = data.window_prior()
        model = model_class(
            **sizes,
            where_loc=where_loc,
            where_scale=where_scale,
            occlusion=has_background if options.occlusion == "auto" else options.occlusion == "yes",
            pixel_scale=options.pixel_scale or PIXEL_SCALE,
            learn_pixel_scale=has_background and options.pixel_scale is None,
            background_patterns=number,
        )
        if has_background and ground.picture is not None:
            model.start_from(ground.picture, patterns)
        log_k = math.log(options.count_ratio[0])
        parts = {"model": model} if options.guide == "dair" else {}
        guide = guide_class(**parts, **sizes, where_loc=where_loc, presence_bias=options.presence_bias, log_k=log_k)
        if ground.picture is not None and patterns is not None:
            guide.start_from(ground.picture, patterns, SMALLEST_PIXEL_SCALE)
        return model, guide

    def svi(self, options: AIROptions, model: Any, guide: Any) -> SVI:
        """The estimator of the options, with a learning rate of its own for the baseline."""
        optim = adam(model, guide, options.lr, {guide.baseline: options.baseline_lr})
        estimators = {"z_pres": ESTIMATORS[options.estimator]}
        elbo = PerSite_ELBO(estimators=estimators, num_particles=options.particles, max_plate_nesting=1)
        return SVI(model, guide, optim, elbo, clip_norm=options.clip_norm, **options.svi_settings())

    def schedules(self, options: AIROptions, svi: SVI) -> list[Annealed]:
        """The count prior, the exploration and the learning rates."""
        start, end = map(math.log, options.count_ratio)
        log_k = linear(start, end, *options.count_steps)
        start, end = (math.log(1 / p - 1) for p in resolved(options.explore))
        limit = linear(start, end, *options.explore_steps)
        decay = (options.steps // 2, options.steps)
        rates = zip(learning_rates(svi.optim), (options.lr, options.baseline_lr), strict=True)
        return [
            *(Annealed(module.log_k, log_k) for module in (svi.model, svi.guide)),
            Annealed(svi.guide.presence_limit, limit),
            *(Annealed(tensor, cosine(rate, rate / 100, *decay)) for tensor, rate in rates),
        ]

    def evaluate(
        self, options: AIROptions, svi: SVI, log_probs: LogProbFunction, model: Any, guide: Any, data: SceneSet
    ) -> dict[str, Any]:
        """The metrics of some held-out scenes, and the noise of the gradient."""
        few = data.test.head(EVALUATED)
        metrics = scene_metrics(log_probs, model, guide, few) | gradient_health(svi, few, options.batch_size)
        if "warning" in metrics:
            metrics["warning"] += ADVICE
        return metrics

    def held_out_metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, data: SceneSet) -> dict[str, Any]:
        """The metrics of the held-out scenes and, named ``unseen_...``, some metrics of the unseen counts."""
        metrics = scene_metrics(log_probs, model, guide, data.test)
        if data.unseen is not None:
            unseen = scene_metrics(log_probs, model, guide, data.unseen)
            metrics |= {f"unseen_{name}": unseen[name] for name in UNSEEN if name in unseen}
        return metrics

    def further(
        self, model: Any, guide: Any, data: SceneSet, batch_size: int, paths: int, gradient_samples: int | None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The count posterior of each scene, and the gradient variance of each estimator."""
        posterior = torch.cat([inspect.count_posterior(guide, x, paths) for x in data.test.batches()])
        metrics = {}
        if gradient_samples:
            metrics = gradient_variances(model, guide, data.test.head(batch_size)[:], gradient_samples)
        return metrics, {"count_posterior": posterior}

    def weighted_metrics(self, images: Images, bound: IWBound) -> dict[str, Any]:
        """The effective sample size of the scenes with objects."""
        return weighted_metrics(images, bound)

    def plot(self, model: Any, guide: Any, data: SceneSet, run: Run) -> None:
        """Some scenes with windows and reconstructions, the worst scenes, samples by count, and curves."""
        scene_pictures(model, guide, data.test.head(SHOWN), run.metrics, run.folder)
        worst_pictures(model, guide, data.test.head(SEARCHED), run.folder)

    def fit(self, options: AIROptions, data: SceneSet, run: Run, **part: Any) -> Trained:
        """Train from one seed, or briefly from several and to the end from the best of them."""
        if options.restarts == 1 or part:
            return super().fit(options, data, run, **part)
        brief, every = options.first_steps, options.restarts * options.first_steps
        say(
            f"training {options.restarts} restarts of {brief:,} steps; {every + options.steps - brief:,} steps in total"
        )
        begin = partial(self._begin, options, data, brief)
        seed = best_of_seeds(run, range(options.seed, options.seed + options.restarts), begin)
        return super().fit(options, data, run, seed=seed, resume=True)

    def _begin(self, options: AIROptions, data: SceneSet, steps: int, run: Run, seed: int, resume: bool) -> None:
        super().fit(options, data, run, seed=seed, steps=steps, resume=resume)


def resolved(value: ValueT | None) -> ValueT:
    """The value of an option that :meth:`AIRSystem.resolve` sets. Raises ValueError if it has not done so."""
    if value is None:
        raise ValueError("options that depend on the scenes are missing: AIRSystem.resolve sets them")
    return value


def most_objects(options: AIROptions, scenes: SceneSet) -> int:
    """The maximum number of objects per scene. Raises :class:`InputError` if the options give less than the scenes."""
    if not options.scenes:
        return max(options.scene_counts)
    known = [int(part.counts.max()) for part in (scenes.train, scenes.test) if part.counts is not None]
    if not known:
        most = options.max_objects or scenes.most or MOST
        how = "estimated from the scenes" if scenes.most and options.max_objects is None else "assumed"
        say(f"{options.data} has no object counts; a maximum of {most} objects is {how} (--max-objects)")
        return most
    for flag, given in (("--max-objects", options.max_objects), ("--num-steps", options.num_steps)):
        if given is not None and given < max(known):
            raise InputError(f"{flag} {given} is less than {max(known)}, the largest object count in {options.data}.")
    return max(*known, options.max_objects or 0)


def gradient_health(svi: SVI, scenes: Images, batch_size: int) -> dict:
    """The gradient noise of AIR's discrete sites.

    ``score_variance`` is the gradient variance of the presence layer in (nats per image per unit)^2, for batches of
    ``batch_size`` as in training. ``baseline_explained`` is the fraction of the costs' variance explained by the
    baseline, if one is used.
    """
    guide = svi.guide
    batch = scenes.head(batch_size)[:]
    health = {"score_variance": gradient_variance(svi, (batch,), list(guide.presence.parameters()))}
    if guide.baseline.observations > 0:
        health["baseline_explained"] = float(guide.baseline.explained_variance())
    return health


def gradient_variances(model: AIR, guide: AIRGuide, batch: Tensor, repeats: int) -> dict[str, float]:
    """The unnormalized gradient variance of each estimator, for the presence layer and for the whole guide."""
    objectives = {"reinforce": TraceGraph_ELBO(), "summed-out": PerSite_ELBO(estimators={"z_pres": "enum"})}
    noise = inspect.gradient_noise(model, guide, objectives, batch, repeats, compile="auto")
    of_guide = [name for name in noise["module"].values if name.startswith("guide.") and name != "guide.baseline"]
    variances = {}
    for name in objectives:
        of_modules = noise.sel(objective=name, module=of_guide)
        variances[f"gradient_variance/{name}/presence"] = float(of_modules.sel(module="guide.presence"))
        variances[f"gradient_variance/{name}/guide"] = float(of_modules.sum())
    return variances


SYSTEM = AIRSystem()
