"""AIR in 3-D, which infers the number, kinds, positions and orientations of solids on a table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor
from typing_extensions import Self

from pplmodels import AIR3D, distributed, inspect, plotting
from pplmodels.data import Images, TabletopScenes, TabletopSet, make_tabletop_scenes
from pplmodels.distributions.wrapped_normal import EVEN
from pplmodels.infer import NVIL_ELBO, SVI, Annealed, SummedOut_ELBO, adam, cosine, learning_rates, linear
from pplmodels.metrics import elbo_terms
from pplmodels.metrics.bounds import IWBound
from pplmodels.nn.renderer import KINDS, Renderer
from pplmodels.rng import SEEDS, seed_all
from pplmodels.systems import LogProbFunction, Pair, System, Trained, TrainingOptions
from pplmodels.systems.counting import counting_metrics, weighted_metrics
from pplmodels.systems.options import BatchSize, Steps
from pplmodels.systems.pictures import save_picture
from pplmodels.systems.system import log_probs_of, shard_batches
from pplmodels.training import Run, fit
from pplmodels.training.checkpoint import has_checkpoint
from pplmodels.training.options import NonnegativeInt, Option, PositiveFloat, PositiveInt

from ..air3d import AIR3DGuide

EVALUATED = 500  # held-out images that are evaluated during training
ASIDE = 1.0  # azimuth in radians of the second camera in plots
CLIP_NORM = 300.0  # maximum gradient norm per image
# Annealed quantities; the schedule is given in thirds of the steps, see docs/systems/air3d.md
UNSURE, TRYING, SURE = (math.log(1 / p - 1) for p in (0.3, 0.1, 0.003))  # bounds of z_pres logits: at least p each way
KINDS_OPEN, KINDS_SETTLED = 2.0, 6.0  # largest difference between two logits of z_kind
YAW_NARROW = 1.0  # largest standard deviation of a yaw, in radians
SLOWER = 0.3  # factor of the guide's learning rate in the last part, because sampled kinds have noisier gradients
BLURRED = 3.0  # factor of the likelihood's initial standard deviation


class AIR3DOptions(TrainingOptions):
    """The options of AIR in 3-D."""

    data: Annotated[Literal["tabletop"], Option("tabletop scenes, which are rendered", "data", "NAME")] = "tabletop"
    steps: Steps = 3000
    batch_size: BatchSize = 64
    counts: Annotated[tuple[NonnegativeInt, ...], Option("object counts", "scenes", "N", scope="data")] = (0, 1, 2, 3)
    size: Annotated[PositiveInt, Option("image size in pixels, a multiple of 4 from 16", "scenes")] = 32
    train_scenes: Annotated[PositiveInt, Option("number of training scenes", "scenes")] = 40_000
    test_scenes: Annotated[PositiveInt, Option("number of held-out scenes", "scenes")] = 2000
    first_steps: Annotated[
        PositiveInt,
        Option(
            "steps of each of the two pretraining parts, which are used if scenes have several solids", "learning", "N"
        ),
    ] = 2000
    estimator: Annotated[
        Literal["summed-out", "reinforce"],
        Option(
            "gradient estimator of the last part if scenes have several solids: counts are summed out or sampled",
            "learning",
        ),
    ] = "summed-out"
    channels: Annotated[PositiveInt, Option("channels of the guide's feature maps", "learning")] = 32
    hidden: Annotated[PositiveInt, Option("size of the guide's object features", "learning")] = 128
    baseline_lr: Annotated[PositiveFloat, Option("learning rate of the baselines", "learning")] = 1e-3
    pixel_scale: Annotated[PositiveFloat, Option("final standard deviation of the likelihood", "learning")] = 0.05
    count_ratio: Annotated[PositiveFloat, Option("p(n+1)/p(n) of the prior over counts", "learning")] = 1e-6

    @model_validator(mode="after")
    def _scenes_can_be_rendered(self) -> Self:
        if self.size < 16 or self.size % 4:
            raise ValueError("--size must be a multiple of 4 and at least 16.")
        if max(self.counts, default=0) == 0:
            raise ValueError("--counts must include a count above 0.")
        return self


class AIR3DSystem(System[AIR3DOptions, TabletopSet]):
    """Trains :class:`pplmodels.AIR3D` with :class:`guides.AIR3DGuide`."""

    name = "air3d"
    description = "Train AIR3D to infer the number, kinds, positions and orientations of solids on a table."
    options_class = AIR3DOptions
    progress_metrics = ("elbo", "count_accuracy", "kind_accuracy", "place_error_percent", "yaw_error_degrees")
    final_metrics = progress_metrics

    def load(self, options: AIR3DOptions) -> TabletopSet:
        """Disjoint sets of training and held-out scenes."""
        return rendered(options, options.counts)

    def classes(self, options: AIR3DOptions) -> tuple[type, ...]:
        """The classes of model and guide."""
        return AIR3D, AIR3DGuide

    def build(
        self,
        options: AIR3DOptions,
        data: TabletopSet,
        model_class: Any,
        guide_class: Any,
        num_steps: int | None = None,
    ) -> Pair:
        """A new pair for ``num_steps`` solids (default: the largest count)."""
        num_steps = num_steps or max(options.counts)
        sizes = {"image": (options.size, options.size), "num_steps": num_steps, "log_k": math.log(options.count_ratio)}
        model = model_class(**sizes, pixel_scale=options.pixel_scale)
        return model, guide_class(**sizes, channels=options.channels, hidden_dim=options.hidden)

    def builders(self, options: AIR3DOptions, data: TabletopSet) -> list[Callable[[], Pair]]:
        """The pair for one solid and the pair for all of them."""
        return [partial(self.new_pair, options, data, num_steps=n) for n in sorted({1, max(options.counts)})]

    def svi(self, options: AIR3DOptions, model: Any, guide: Any) -> SVI:
        """For one solid, kinds are summed out, otherwise sampled."""
        rates = {guide.baseline: options.baseline_lr, guide.kind_baseline: options.baseline_lr}
        one = model.num_steps == 1
        sampled = not one and options.estimator == "reinforce"
        elbo = NVIL_ELBO() if sampled else SummedOut_ELBO(choices=one)
        optim = adam(model, guide, options.lr if one else SLOWER * options.lr, rates)
        return SVI(model, guide, optim, elbo, clip_norm=CLIP_NORM, **options.svi_settings())

    def held_out_metrics(self, log_probs: LogProbFunction, model: Any, guide: Any, data: TabletopSet) -> dict[str, Any]:
        """The inferred counts, and the accuracy of sampled solids and of the most probable ones."""
        return tabletop_metrics(log_probs, guide, data.test)

    def weighted_metrics(self, images: Images, bound: IWBound) -> dict[str, Any]:
        """The effective sample size of the scenes with solids."""
        return weighted_metrics(images, bound)

    def plot(self, model: Any, guide: Any, data: TabletopSet, run: Run) -> None:
        """Inferred solids from two views, posterior samples of yaws, and curves."""
        tabletop_pictures(model, guide, data.test, run.metrics, run.folder)

    def fit(self, options: AIR3DOptions, data: TabletopSet, run: Run, **part: Any) -> Trained:
        """Train on single solids, then on one of several solids, then on all of them."""
        start, earlier = None, 0.0
        if max(options.counts) > 1 and not (options.extend or options.init_from):  # the earlier run was pretrained
            for name, scenes in (("alone", rendered(options, (1,))), ("one", data)):
                inside = run.within(name)
                trained = self._fit_part(options, scenes, inside, 1, options.first_steps, start)
                inside.close()
                start, earlier = trained.guide, earlier + trained.seconds
        last = self._fit_part(options, data, run, max(options.counts), options.steps, start)
        metrics = {"seconds_before": round(earlier, 1)}
        return Trained(last.model, last.guide, last.log_probs, earlier + last.seconds, metrics)

    def _fit_part(
        self,
        options: AIR3DOptions,
        data: TabletopSet,
        run: Run,
        num_steps: int,
        steps: int,
        start: Any,
    ) -> Trained:
        """Train a pair for ``num_steps`` solids from the weights of ``start``."""
        seed_all(options.seed)
        model, guide = self.new_pair(options, data, num_steps=num_steps)
        if start is not None:
            guide.load_state_dict(start.state_dict())
        svi = self.svi(options, model, guide)
        last = num_steps == max(options.counts)
        anew = num_steps == 1 and start is None and not options.init_from
        log_probs = log_probs_of(options, model, guide)
        seconds = fit(
            svi,
            data.train,
            run,
            steps=steps,
            batch_size=options.batch_size,
            seed=options.seed,
            annealed=part_schedules(options, svi, steps, options.schedule_steps if last else steps, anew),
            evaluate=partial(tabletop_metrics, log_probs, guide, data.test.head(EVALUATED)),
            eval_every=options.eval_every,
            shown=self.progress_metrics,
            resume=has_checkpoint(run.folder),
            saved=(model, guide),
            draw=partial(self.plot, model, guide, data, run),
        )
        return Trained(model, guide, log_probs, seconds)


def rendered(options: AIR3DOptions, counts: tuple[int, ...]) -> TabletopSet:
    """Training and held-out scenes with the given object counts."""
    numbers, device = (options.train_scenes, options.test_scenes), options.torch_device()
    shape = {"counts": counts, "size": (options.size, options.size)}
    parts = (make_tabletop_scenes(n, **shape, seed=(2 * options.seed + i) % SEEDS) for i, n in enumerate(numbers))
    return TabletopSet(*(part.to(device) for part in parts))


def part_schedules(options: AIR3DOptions, svi: SVI, steps: int, course: int, anew: bool) -> list[Annealed]:
    """The annealed quantities of a part of the training with ``steps`` steps.

    ``anew`` is false if the part starts from the weights of another part. All quantities except the learning rates
    change within the first ``course`` steps.
    """
    model, guide = svi.model, svi.guide
    third, two_thirds = course // 3, 2 * course // 3
    begun = [(tensor, float(tensor)) for tensor in learning_rates(svi.optim)]
    decaying = [Annealed(tensor, cosine(rate, rate / 100, steps // 2, steps)) for tensor, rate in begun]
    if not anew:
        return [*decaying, Annealed(guide.presence_limit, linear(TRYING, SURE, 0, 3 * course // 4))]
    return [
        *decaying,
        Annealed(model.pixel_scale, linear(BLURRED * options.pixel_scale, options.pixel_scale, 0, third)),
        Annealed(guide.presence_limit, linear(UNSURE, SURE, third, two_thirds)),
        Annealed(guide.kind_limit, linear(KINDS_OPEN, KINDS_SETTLED, third, two_thirds)),
        Annealed(guide.yaw_limit, linear(YAW_NARROW, EVEN, course // 2, two_thirds)),
    ]


def tabletop_metrics(log_probs: LogProbFunction, guide, tables: TabletopScenes) -> dict:
    """The ELBO split by site, the metrics of the counts, and the accuracy of the solids.

    The names of the latter are those of :func:`pplmodels.inspect.solid_metrics` for the most probable solids, and these
    after ``sampled_`` for the posterior sample per scene that the ELBO and the counts are computed from.
    """
    true = inspect.true_solids(tables)
    found = [inspect.find_solids(guide, x) for x in shard_batches(tables)]
    likely = [distributed.all_gather(torch.cat(parts)) for parts in zip(*map(astuple, found), strict=True)]
    terms, drawn = elbo_terms(log_probs, shard_batches(tables), _table)
    count, kind, place, yaw = drawn.split((1, 1, 2, 1), -1)
    sampled = inspect.Solids(count[:, 0, 0].long(), kind[..., 0].long(), place, yaw[..., 0])
    of_sample = inspect.solid_metrics(true, sampled)
    of_sample.pop("count_accuracy_argmax")  # this is count_accuracy
    return {
        **terms,
        **counting_metrics(guide, tables, sampled.count),
        **inspect.solid_metrics(true, inspect.Solids(*likely)),
        **{f"sampled_{name}": value for name, value in of_sample.items()},
    }


def _table(latents: Mapping[str, Tensor]) -> Tensor:
    """The solids of a sample together, ``(B, T, 5)``: count (the same in each row), kind, place and yaw."""
    solids = inspect.sampled_solids(latents)
    columns = (solids.count[:, None].expand_as(solids.kind), solids.kind, *solids.place.unbind(-1), solids.yaw)
    return torch.stack([column.to(solids.place.dtype) for column in columns], -1)


def tabletop_pictures(model, guide, tables: TabletopScenes, metrics: list[dict], folder: Path) -> None:
    """Write solids.png (inferred solids from two views), yaws.png (posterior samples of yaws) and curves.png."""
    shown = tables.head(12)
    found = inspect.find_solids(guide, shown[:])
    aside = Renderer(shown.shape[1:], azimuth=ASIDE).to(shown.pixels.device)
    rows = [
        shown[:],
        inspect.render_solids(model, found),
        inspect.render_solids(model, found, aside),
        inspect.render_solids(model, inspect.true_solids(shown), aside),
    ]
    labels = ["picture", "inferred", "from aside", "true, from aside"]
    save_picture(plotting.image_rows([row.clamp(0, 1).cpu().numpy() for row in rows], labels), folder / "solids.png")
    alone = (tables.counts == 1).nonzero().squeeze(1)
    kinds = tables.kind[alone, 0]
    chosen = torch.cat([alone[kinds == kind][:2] for kind in range(len(KINDS))])
    if len(chosen):
        examples = tables.part(chosen)
        yaws = inspect.sample_yaws(model, guide, examples[:]).cpu().numpy()
        arrays = examples[:].cpu().numpy(), yaws, examples.yaw[:, 0].cpu().numpy()
        titles = [KINDS[kind] for kind in examples.kind[:, 0]]
        save_picture(plotting.angle_histograms(*arrays, titles), folder / "yaws.png")
    groups = [["elbo", "train_elbo"], ["count_accuracy", "kind_accuracy"], ["place_error_percent", "yaw_error_degrees"]]
    save_picture(plotting.curves(metrics, groups), folder / "curves.png")


SYSTEM = AIR3DSystem()
