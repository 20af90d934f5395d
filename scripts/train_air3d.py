"""Train AIR3D to infer the number, kinds, positions and orientations of solids on a table."""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from guides import AIR3DGuide
from pplmodels import AIR3D, distributed
from pplmodels.data import ImageSet, make_tabletop_scenes
from pplmodels.distributions.wrapped_normal import EVEN
from pplmodels.errors import InputError
from pplmodels.infer import NVIL_ELBO, SVI, Annealed, SummedOut_ELBO, adam, cosine, learning_rates, linear
from pplmodels.metrics import compiled_log_probs, log_probs
from pplmodels.metrics.bounds import LogProbs
from pplmodels.report import table_metrics, table_pictures
from pplmodels.rng import SEEDS, seed_all
from pplmodels.training import Run, cli, fit, imports
from pplmodels.training.checkpoint import has_checkpoint

SHOWN = ("elbo", "count_accuracy", "kind_accuracy", "place_error_percent", "yaw_error_degrees")
ESTIMATORS = ("summed-out", "reinforce")
EVALUATED = 500  # held-out images that are evaluated during training
CLIP_NORM = 300.0  # maximum gradient norm per image
# Annealed quantities; the schedule is given in thirds of the steps, see docs/air3d.md
UNSURE, TRYING, SURE = (math.log(1 / p - 1) for p in (0.3, 0.1, 0.003))  # bounds of z_pres logits: at least p each way
KINDS_OPEN, KINDS_SETTLED = 2.0, 6.0  # largest difference between two logits of z_kind
YAW_NARROW = 1.0  # largest standard deviation of a yaw, in radians
SLOWER = 0.3  # factor of the guide's learning rate in the last part, because sampled kinds have noisier gradients
BLURRED = 3.0  # factor of the likelihood's initial standard deviation


def parser() -> cli.Parser:
    """The script's options."""
    known = "tables, which are drawn"
    parser = cli.training_parser(
        __doc__, steps=None, batch_size=64, lr=1e-3, data="tables", known=known, background=None, usual_steps="3000"
    )
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument(
        "--counts", type=cli.nonnegative_int, nargs="+", default=[0, 1, 2, 3], metavar="N", help="object counts"
    )
    scenes.add_argument("--size", type=cli.positive_int, default=32, help="image size in pixels")
    scenes.add_argument("--train-scenes", type=cli.positive_int, default=40_000, help="number of training scenes")
    scenes.add_argument("--test-scenes", type=cli.positive_int, default=2000, help="number of held-out scenes")
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--first-steps",
        type=cli.positive_int,
        default=2000,
        metavar="N",
        help="steps of each of the two pretraining parts, which are used if scenes have several solids",
    )
    learning.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        default=ESTIMATORS[0],
        help="gradient estimator of the last part if scenes have several solids: counts are summed out or sampled",
    )
    learning.add_argument("--channels", type=cli.positive_int, default=32, help="channels of the guide's feature maps")
    learning.add_argument("--hidden", type=cli.positive_int, default=128, help="size of the guide's object features")
    learning.add_argument("--baseline-lr", type=cli.positive_float, default=1e-3, help="learning rate of the baselines")
    learning.add_argument(
        "--pixel-scale", type=cli.positive_float, default=0.05, help="final standard deviation of the likelihood"
    )
    learning.add_argument(
        "--count-ratio", type=cli.positive_float, default=1e-6, help="p(n+1)/p(n) of the prior over counts"
    )
    return parser


def load(options: argparse.Namespace, run: Run | None = None) -> ImageSet:
    """Disjoint sets of training and held-out scenes."""
    if options.data != "tables":
        raise InputError(f"there is no set of solids {options.data!r}: leave out --data, scenes are drawn.")
    if options.size < 16 or options.size % 4:
        raise InputError("--size: pictures have a side of 16 pixels at least, and a multiple of 4.")
    if max(options.counts, default=0) == 0:
        raise InputError("--counts: there must be scenes with a solid.")
    tables = drawn(options, options.counts)
    cli.check_images(options, run, tables.train.shape)
    return tables


def drawn(options: argparse.Namespace, counts: list[int]) -> ImageSet:
    """Training and held-out scenes with the given object counts."""
    numbers, device = (options.train_scenes, options.test_scenes), cli.resolve_device(options.device)
    shape = {"counts": counts, "size": (options.size, options.size)}
    halves = (
        make_tabletop_scenes(n, **shape, seed=(2 * options.seed + half) % SEEDS) for half, n in enumerate(numbers)
    )
    return ImageSet(*(half.to(device) for half in halves))


def measure(bound: Callable[[Tensor], LogProbs], model: AIR3D, guide: AIR3DGuide, tables: ImageSet) -> dict:
    """The metrics of the held-out scenes."""
    return table_metrics(bound, guide, tables.test)


def draw(model: AIR3D, guide: AIR3DGuide, tables: ImageSet, run: Run) -> None:
    """Draw the figures of a run."""
    table_pictures(model, guide, tables.test, run.metrics, run.folder)


def complete(options: argparse.Namespace) -> None:
    """Set defaults that depend on other options. Invalid options raise before a folder is created."""
    imports.user_classes(options, AIR3D, AIR3DGuide)
    options.steps = options.steps or 3000
    options.schedule_steps = options.schedule_steps or options.steps
    options.eval_every = options.eval_every or max(1, options.steps // 10)


def build(options: argparse.Namespace, num_steps: int, device: torch.device) -> SVI:
    """The SVI that trains a pair for ``num_steps`` solids. For one solid, kinds are summed out, otherwise sampled."""
    model_class, guide_class = imports.user_classes(options, AIR3D, AIR3DGuide)
    log_k = math.log(options.count_ratio)
    sizes = {"image": (options.size, options.size), "num_steps": num_steps, "log_k": log_k}
    model = model_class(**sizes, pixel_scale=options.pixel_scale).to(device)
    guide = guide_class(**sizes, channels=options.channels, hidden_dim=options.hidden).to(device)
    rates = {guide.baseline: options.baseline_lr, guide.kind_baseline: options.baseline_lr}
    sampled = num_steps > 1 and options.estimator == "reinforce"
    elbo = NVIL_ELBO() if sampled else SummedOut_ELBO(choices=num_steps == 1)
    settings = {"clip_norm": CLIP_NORM, "compile": options.compile and "auto"}
    optim = adam(model, guide, options.lr if num_steps == 1 else SLOWER * options.lr, rates)
    return SVI(model, guide, optim, elbo, **settings, precision=cli.PRECISIONS[options.precision])


def built(options: argparse.Namespace, num_steps: int, device: torch.device) -> tuple[AIR3D, AIR3DGuide]:
    """Model and guide, without their SVI."""
    svi = build(options, num_steps, device)
    return svi.model, svi.guide


def schedules(options: argparse.Namespace, svi: SVI, steps: int, course: int, anew: bool) -> list[Annealed]:
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


def train(
    options: argparse.Namespace, tables: ImageSet, run: Run, num_steps: int, steps: int, start: AIR3DGuide | None
) -> tuple[SVI, Callable[[Tensor], LogProbs], float]:
    """Train a pair for ``num_steps`` solids from the weights of ``start``; returns the SVI, the bound and seconds."""
    seed_all(options.seed)
    svi = build(options, num_steps, tables.train.pixels.device)
    pair = svi.model, svi.guide
    if start is not None:
        svi.guide.load_state_dict(start.state_dict())
    elif options.init_from:
        cli.initialise(options, *pair)
    last = num_steps == max(options.counts)
    anew = num_steps == 1 and start is None and not options.init_from
    course = options.schedule_steps if last else steps
    bound = compiled_log_probs(*pair, fallback=True) if options.compile else partial(log_probs, *pair)
    few = tables.test.head(EVALUATED)
    seconds = fit(
        svi,
        tables.train,
        run,
        steps=steps,
        batch_size=options.batch_size,
        seed=options.seed,
        annealed=schedules(options, svi, steps, course, anew),
        evaluate=lambda: table_metrics(bound, svi.guide, few),
        eval_every=options.eval_every,
        shown=SHOWN,
        resume=has_checkpoint(run.folder),
        saved=pair,
        draw=lambda: draw(*pair, tables, run),
    )
    return svi, bound, seconds


def main(argv: list[str] | None = None) -> None:
    """Train on single solids, then on one of several solids, then on all of them, and report."""
    options, run = cli.parse(parser(), argv)
    complete(options)
    tables = load(options, run)
    start, earlier, most = None, 0.0, max(options.counts)
    for num_steps in sorted({1, most}):
        imports.checked(options, partial(built, options, num_steps, tables.train.pixels.device), tables.train)
    run = run or cli.create_run(options, "air3d")
    if most > 1 and not (options.extend or options.init_from):  # the earlier run was pretrained
        for name, scenes in (("alone", drawn(options, [1])), ("one", tables)):
            part = run.within(name)
            svi, _, seconds = train(options, scenes, part, 1, options.first_steps, start)
            part.close()
            start, earlier = svi.guide, earlier + seconds
    svi, bound, seconds = train(options, tables, run, most, options.steps, start)
    seed_all(options.seed + distributed.rank())
    metrics = measure(bound, svi.model, svi.guide, tables) | {"seconds_before": round(earlier, 1)}
    if distributed.rank() > 0:
        return
    for half in (svi.model, svi.guide):
        half.save_pretrained(run.folder)
    draw(svi.model, svi.guide, tables, run)
    run.finish(earlier + seconds, tables.train.pixels.device, metrics)
    figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
    print(f"held out, {len(tables.test)} scenes: {figures}")
    print(f"everything is in {run.folder}")


if __name__ == "__main__":
    cli.run_script(main)
