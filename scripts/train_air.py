"""Train AIR (Attend, Infer, Repeat) to find, count and draw the objects of scenes."""

import argparse
import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from guides import AIRGuide, DAIRGuide
from pplmodels import AIR, distributed
from pplmodels.data import SceneSet, scene_set
from pplmodels.errors import InputError
from pplmodels.infer import NVIL_ELBO, SVI, Annealed, SummedOut_ELBO, adam, cosine, learning_rates, linear
from pplmodels.messages import say
from pplmodels.metrics import compiled_log_probs, log_probs
from pplmodels.metrics.bounds import LogProbs
from pplmodels.report import gradient_health, held_out_metrics, scene_metrics, scene_pictures
from pplmodels.rng import seed_all
from pplmodels.training import Run, best_of_seeds, cli, fit, imports, warn_if_short

GUIDES = {"air": AIRGuide, "dair": DAIRGuide}
ESTIMATORS = {"reinforce": NVIL_ELBO, "summed-out": SummedOut_ELBO}
STEPS = {"digits": 3000}  # on small canvases fewer are enough
MOST = 2  # objects in a scene, where nobody says how many
SHOWN = ("elbo", "count_accuracy")


def parser() -> cli.Parser:
    """The script's options, the paper's values as defaults where training in minutes allows."""
    usual = "6000; 3000 for the built-in digits"
    parser = cli.training_parser(__doc__, steps=None, batch_size=128, lr=1.5e-3, background="black", usual_steps=usual)
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument(
        "--scenes",
        action="store_true",
        help="the .npz file of --data holds ready-made scenes on black; else scenes are made of its images, as objects",
    )
    scenes.add_argument(
        "--canvas", type=cli.positive_int, help="side in pixels of scenes that are made (50; 40 for built-in digits)"
    )
    scenes.add_argument(
        "--object-size",
        type=cli.positive_float,
        metavar="PIXELS",
        help="side to which objects are scaled (21.5; 13 for built-in digits); with --scenes that of the objects in "
        "them (estimated)",
    )
    scenes.add_argument(
        "--object-spread",
        type=cli.positive_float,
        metavar="SHARE",
        help="relative deviation of that side in the prior (0.07; 0.05 for built-in digits; estimated with --scenes)",
    )
    scenes.add_argument(
        "--max-objects",
        type=cli.positive_int,
        help="scenes are made with 0 to this many objects; with --scenes, the most, if not what their counts say (2)",
    )
    scenes.add_argument(
        "--counts",
        type=cli.nonnegative_int,
        nargs="+",
        metavar="N",
        help="numbers of objects of scenes that are made (default: 0 to --max-objects)",
    )
    scenes.add_argument(
        "--unseen-counts",
        type=cli.nonnegative_int,
        nargs="+",
        metavar="N",
        help="further numbers, never trained on, of scenes that are made to be measured at the end",
    )
    scenes.add_argument(
        "--train-scenes", type=cli.positive_int, default=60_000, help="number to train on; of --scenes at most so many"
    )
    scenes.add_argument(
        "--test-scenes", type=cli.positive_int, default=10_000, help="number held out; of --scenes at most so many"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--guide", choices=GUIDES, default="air", help="dair sees what the model has not yet drawn")
    model.add_argument(
        "--num-steps", type=cli.positive_int, help="most objects inferred (default: 1 more than scenes have)"
    )
    model.add_argument("--what-dim", type=cli.positive_int, default=50, help="size of an object's appearance code")
    model.add_argument("--window", type=cli.positive_int, default=28, help="side of an object's own image in pixels")
    learning = parser.add_argument_group("learning to count")
    learning.add_argument("--estimator", choices=ESTIMATORS, default="reinforce", help="of the gradient of z_pres")
    learning.add_argument(
        "--restarts",
        type=cli.positive_int,
        default=1,
        metavar="K",
        help="seeds to try for --restart-steps steps each; the best is trained to the end",
    )
    learning.add_argument(
        "--restart-steps",
        type=cli.positive_int,
        metavar="N",
        help="steps of each try (default: to the end of --count-steps, or half of --steps if that is less)",
    )
    learning.add_argument("--baseline-lr", type=cli.positive_float, default=1.5e-3, help="the baseline's learning rate")
    learning.add_argument("--clip-norm", type=cli.positive_float, default=100.0, help="of a gradient, nats per image")
    learning.add_argument(
        "--presence-bias", type=cli.finite_float, default=2.0, help="initial logit of going on to an object"
    )

    def add_course(flag: str, kind: Callable, default: list | None, names: tuple[str, str], help: str) -> None:
        learning.add_argument(flag, type=kind, nargs=2, default=default, metavar=names, help=help)

    add_course(
        *("--count-ratio", cli.positive_float, [0.1, 1e-4], ("K0", "K1")),
        help="the prior's p(n+1)/p(n), annealed from permissive to strict",
    )
    add_course(
        *("--count-steps", cli.nonnegative_int, [300, 1500], ("BEGIN", "END")),
        help="the steps between which that ratio moves, geometrically",
    )
    add_course(
        *("--explore", cli.positive_float, None, ("P0", "P1")),
        help="least probability of stopping and of going on, annealed likewise (default: to 0.0001, from 0.3 for two "
        "objects and from less for more, so that as many scenes come to the last)",
    )
    add_course(
        *("--explore-steps", cli.nonnegative_int, None, ("BEGIN", "END")),
        help="between which steps (default: from the first of --count-steps to 3/4 of the training)",
    )
    return parser


def load(options: argparse.Namespace, run: Run | None = None) -> SceneSet:
    """The training and held-out scenes that a run's options name, of the shape that an earlier ``run`` was given."""
    if options.scenes:
        for name in ("canvas", "counts", "unseen_counts", "image_size", "data_memory", "workers"):
            if getattr(options, name) and name in options.typed:
                raise InputError(f"--{name.replace('_', '-')} does not apply to --scenes, which are made already.")
            setattr(options, name, None)
    else:
        if {"counts", "max_objects"} <= options.typed:
            raise InputError("--counts says which numbers of objects there are: leave --max-objects out.")
        options.counts = options.counts or list(range((options.max_objects or MOST) + 1))
        options.unseen_counts = options.unseen_counts or []
    scenes = scene_set(
        options.data,
        options.data_dir,
        **cli.image_options(options),
        ready_made=options.scenes,
        canvas=options.canvas,
        counts=options.counts,
        unseen_counts=options.unseen_counts,
        object_size=options.object_size,
        object_spread=options.object_spread,
        num_train=options.train_scenes,
        num_test=options.test_scenes,
        seed=options.seed,
    )
    cli.check_images(options, run, scenes.train.shape)
    return scenes.to(cli.resolve_device(options.device))


def measure(bound: Callable[[Tensor], LogProbs], model: AIR, guide: AIRGuide, scenes: SceneSet) -> dict:
    """The metrics of the held-out scenes."""
    return held_out_metrics(bound, guide, scenes)


def draw(model: AIR, guide: AIRGuide, scenes: SceneSet, run: Run) -> None:
    """The pictures of a run."""
    scene_pictures(model, guide, scenes.test.head(12), run.metrics, run.folder)


def most_objects(options: argparse.Namespace, scenes: SceneSet) -> int:
    """The largest number of objects in a scene, also as options say; :class:`InputError` if they say too few."""
    if not options.scenes:
        return max(options.counts)
    known = [int(part.counts.max()) for part in (scenes.train, scenes.test) if part.counts is not None]
    if not known:
        most = options.max_objects or MOST
        say(f"{options.data} does not say how many objects its scenes have: at most {most} are assumed (--max-objects)")
        return most
    for flag, given in (("--max-objects", options.max_objects), ("--num-steps", options.num_steps)):
        if given is not None and given < max(known):
            raise InputError(f"{flag} {given} is fewer than the {max(known)} objects of a scene of {options.data}.")
    return max(*known, options.max_objects or 0)


def complete(options: argparse.Namespace, scenes: SceneSet) -> None:
    """Defaults that depend on other options and on the scenes; what cannot be is refused before there is a folder."""
    imports.user_classes(options, AIR, GUIDES[options.guide])
    options.steps = options.steps or STEPS.get(options.data, 6000)
    options.schedule_steps = options.schedule_steps or options.steps
    options.eval_every = options.eval_every or max(1, options.steps // 10)
    if "restart_steps" in options.typed and options.restarts == 1:
        raise InputError("--restart-steps says how long each of several --restarts is: say how many.")
    options.restart_steps = options.restart_steps or min(options.count_steps[1], max(1, options.steps // 2))
    if options.restart_steps > options.steps:
        raise InputError(f"--restart-steps {options.restart_steps} is more than the run's {options.steps} --steps.")
    if options.restarts > 1 and (options.extend or options.init_from):
        raise InputError("--restarts tries new seeds: it does not go together with --extend and --init-from.")
    most = most_objects(options, scenes)
    options.num_steps = options.num_steps or max(most + 1, *(options.unseen_counts or ()), 0)
    options.explore = options.explore or [1 - 0.7 ** (1 / max(1, most - 1)), 1e-4]
    options.explore_steps = options.explore_steps or [options.count_steps[0], 3 * options.schedule_steps // 4]
    if not all(p < 0.5 for p in options.explore):
        raise InputError("--explore: the probabilities must be below 0.5.")


def build(options: argparse.Namespace, scenes: SceneSet) -> SVI:
    """The pair and what trains it."""
    sizes = {
        "canvas": scenes.train.shape,
        "num_steps": options.num_steps,
        "what_dim": options.what_dim,
        "window": options.window,
    }
    device = scenes.train.pixels.device
    where_loc, where_scale = scenes.window_prior()
    model_class, guide_class = imports.user_classes(options, AIR, GUIDES[options.guide])
    model = model_class(**sizes, where_loc=where_loc, where_scale=where_scale).to(device)
    log_k = math.log(options.count_ratio[0])
    parts = {"model": model} if options.guide == "dair" else {}
    guide = guide_class(**parts, **sizes, where_loc=where_loc, presence_bias=options.presence_bias, log_k=log_k)
    guide = guide.to(device)
    optim = adam(model, guide, options.lr, {guide.baseline: options.baseline_lr})
    elbo = ESTIMATORS[options.estimator]()
    settings = {"clip_norm": options.clip_norm, "compile": options.compile and "auto"}
    return SVI(model, guide, optim, elbo, **settings, precision=cli.PRECISIONS[options.precision])


def schedules(options: argparse.Namespace, svi: SVI) -> list[Annealed]:
    """What changes in the course of training."""
    log_k = linear(*map(math.log, options.count_ratio), *options.count_steps)
    limit = linear(*(math.log(1 / p - 1) for p in options.explore), *options.explore_steps)
    decay = (options.steps // 2, options.steps)
    rates = zip(learning_rates(svi.optim), (options.lr, options.baseline_lr), strict=True)
    return [
        *(Annealed(half.log_k, log_k) for half in (svi.model, svi.guide)),
        Annealed(svi.guide.presence_limit, limit),
        *(Annealed(tensor, cosine(rate, rate / 100, *decay)) for tensor, rate in rates),
    ]


def built(options: argparse.Namespace, scenes: SceneSet) -> tuple[AIR, AIRGuide]:
    """The pair alone."""
    svi = build(options, scenes)
    return svi.model, svi.guide


def train(options: argparse.Namespace, scenes: SceneSet, run: Run, seed: int, resume: bool, steps: int):
    """The first ``steps`` steps of the training that options describe; returns the SVI, the bound and the seconds."""
    seed_all(seed)
    svi = build(options, scenes)
    pair = svi.model, svi.guide
    cli.initialise(options, *pair)
    annealed = schedules(options, svi)
    shown = {}
    if steps == options.steps:  # not one of several brief starts
        warn_if_short(steps, annealed, "--count-steps, --explore-steps")
        shown = {"saved": pair, "draw": lambda: draw(*pair, scenes, run)}
    bound = compiled_log_probs(*pair, fallback=True) if options.compile else partial(log_probs, *pair)
    few = scenes.test.head(5000)
    seconds = fit(
        svi,
        scenes.train,
        run,
        steps=steps,
        batch_size=options.batch_size,
        seed=seed,
        annealed=annealed,
        evaluate=lambda: scene_metrics(bound, svi.guide, few) | gradient_health(svi, few, options.batch_size),
        eval_every=options.eval_every,
        shown=SHOWN,
        resume=resume,
        **shown,
    )
    return svi, bound, seconds


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build the pair, fit, report."""
    options, run = cli.parse(parser(), argv)
    scenes = load(options, run)
    complete(options, scenes)
    imports.checked(options, partial(built, options, scenes), scenes.train)
    run = run or cli.create_run(options, "air")
    seed, resume = options.seed, options.resume
    if options.restarts > 1:
        brief, every = options.restart_steps, options.restarts * options.restart_steps
        say(f"{options.restarts} starts of {brief:,} steps, {every + options.steps - brief:,} steps in all")
        begin = partial(train, options, scenes, steps=brief)
        seed, resume = best_of_seeds(run, range(seed, seed + options.restarts), begin), True
    svi, bound, seconds = train(options, scenes, run, seed, resume, options.steps)
    seed_all(options.seed + distributed.rank())
    metrics = measure(bound, svi.model, svi.guide, scenes)
    if distributed.rank() > 0:
        return
    for half in (svi.model, svi.guide):
        half.save_pretrained(run.folder)
    draw(svi.model, svi.guide, scenes, run)
    run.finish(seconds, scenes.train.pixels.device, metrics)
    figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
    print(f"held out, {len(scenes.test)} scenes: {figures}")
    print(f"everything is in {run.folder}")


if __name__ == "__main__":
    cli.run_script(main)
