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
STEPS = {"digits": 3000}  # small canvases need fewer steps
MOST = 2  # default for --max-objects
SHOWN = ("elbo", "count_accuracy")


def parser() -> cli.Parser:
    """The script's options. Defaults are the paper's values, except where these would make training too slow."""
    usual = "6000; 3000 for the built-in digits"
    parser = cli.training_parser(__doc__, steps=None, batch_size=128, lr=1.5e-3, background="black", usual_steps=usual)
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument(
        "--scenes",
        action="store_true",
        help="--data is an .npz file of complete scenes on black; otherwise, scenes are composed from its images",
    )
    scenes.add_argument(
        "--canvas", type=cli.positive_int, help="side of composed scenes in pixels (50; 40 for built-in digits)"
    )
    scenes.add_argument(
        "--object-size",
        type=cli.positive_float,
        metavar="PIXELS",
        help="object size in composed scenes (21.5; 13 for built-in digits); with --scenes, the size of the objects in "
        "the file (default: estimated)",
    )
    scenes.add_argument(
        "--object-spread",
        type=cli.positive_float,
        metavar="SHARE",
        help="relative standard deviation of the object size in the prior (0.07; 0.05 for built-in digits; estimated "
        "with --scenes)",
    )
    scenes.add_argument(
        "--max-objects",
        type=cli.positive_int,
        help="maximum number of objects per scene (2; with --scenes, the maximum of the counts in the file, if any)",
    )
    scenes.add_argument(
        "--counts",
        type=cli.nonnegative_int,
        nargs="+",
        metavar="N",
        help="object counts of composed scenes (default: 0 to --max-objects)",
    )
    scenes.add_argument(
        "--unseen-counts",
        type=cli.nonnegative_int,
        nargs="+",
        metavar="N",
        help="object counts of additional composed scenes, which are only used for the final evaluation",
    )
    scenes.add_argument(
        "--train-scenes",
        type=cli.positive_int,
        default=60_000,
        help="number of training scenes; with --scenes, the maximum number",
    )
    scenes.add_argument(
        "--test-scenes",
        type=cli.positive_int,
        default=10_000,
        help="number of held-out scenes; with --scenes, the maximum number",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--guide", choices=GUIDES, default="air", help="dair also sees what is not yet explained")
    model.add_argument(
        "--num-steps", type=cli.positive_int, help="maximum number of inferred objects (default: 1 more than in scenes)"
    )
    model.add_argument("--what-dim", type=cli.positive_int, default=50, help="size of an object's appearance code")
    model.add_argument("--window", type=cli.positive_int, default=28, help="side of the attention window in pixels")
    learning = parser.add_argument_group("learning to count")
    learning.add_argument("--estimator", choices=ESTIMATORS, default="reinforce", help="gradient estimator for z_pres")
    learning.add_argument(
        "--restarts",
        type=cli.positive_int,
        default=1,
        metavar="K",
        help="number of seeds to train for --restart-steps steps each; training continues with the best of them",
    )
    learning.add_argument(
        "--restart-steps",
        type=cli.positive_int,
        metavar="N",
        help="steps per restart (default: the end of --count-steps or half of --steps, whichever is less)",
    )
    learning.add_argument(
        "--baseline-lr", type=cli.positive_float, default=1.5e-3, help="learning rate of the baseline"
    )
    learning.add_argument("--clip-norm", type=cli.positive_float, default=100.0, help="maximum gradient norm per image")
    learning.add_argument("--presence-bias", type=cli.finite_float, default=2.0, help="initial logit of z_pres")

    def add_course(flag: str, kind: Callable, default: list | None, names: tuple[str, str], help: str) -> None:
        learning.add_argument(flag, type=kind, nargs=2, default=default, metavar=names, help=help)

    add_course(
        *("--count-ratio", cli.positive_float, [0.1, 1e-4], ("K0", "K1")),
        help="p(n+1)/p(n) of the prior over counts, annealed from K0 to K1",
    )
    add_course(
        *("--count-steps", cli.nonnegative_int, [300, 1500], ("BEGIN", "END")),
        help="steps between which --count-ratio is annealed, geometrically",
    )
    add_course(
        *("--explore", cli.positive_float, None, ("P0", "P1")),
        help="minimum probability of stopping and of continuing, annealed (default: to 0.0001, from 0.3 for two "
        "objects and from less for more objects, so that enough samples reach the last object)",
    )
    add_course(
        *("--explore-steps", cli.nonnegative_int, None, ("BEGIN", "END")),
        help="steps between which --explore is annealed (default: first of --count-steps to 3/4 of --schedule-steps)",
    )
    return parser


def load(options: argparse.Namespace, run: Run | None = None) -> SceneSet:
    """The training and held-out scenes given by the options, with the same shape as those of an earlier ``run``."""
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
    """Draw the figures of a run."""
    scene_pictures(model, guide, scenes.test.head(12), run.metrics, run.folder)


def most_objects(options: argparse.Namespace, scenes: SceneSet) -> int:
    """The maximum number of objects per scene. Raises :class:`InputError` if the options give less than the scenes."""
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
    """Set defaults that depend on other options and the scenes. Invalid options raise before a folder is created."""
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
    """The SVI that trains a new pair."""
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
    """The quantities that are annealed during training."""
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
    """Model and guide, without their SVI."""
    svi = build(options, scenes)
    return svi.model, svi.guide


def train(options: argparse.Namespace, scenes: SceneSet, run: Run, seed: int, resume: bool, steps: int):
    """Take the first ``steps`` steps of the training given by the options; returns the SVI, the bound and seconds."""
    seed_all(seed)
    svi = build(options, scenes)
    pair = svi.model, svi.guide
    cli.initialise(options, *pair)
    annealed = schedules(options, svi)
    shown = {}
    if steps == options.steps:  # not one of several restarts
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
    """Parse the options, load the data, train a pair and report."""
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
