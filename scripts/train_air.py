"""Train AIR (Attend, Infer, Repeat) to find, count and draw the objects of scenes."""

import argparse
import math
from functools import partial

import pyro
import torch

from guides import AIRGuide
from pplmodels import AIR
from pplmodels.data import SceneSet, scene_set
from pplmodels.errors import InputError
from pplmodels.infer import NVIL_ELBO, SVI, Annealed, adam, compiled_log_probs, cosine, linear, log_probs
from pplmodels.report import scene_metrics, scene_pictures
from pplmodels.training import cli, fit

STEPS = {"digits": 3000}  # on small canvases fewer are enough
SHOWN = ("elbo", "count_accuracy")


def parser() -> cli.Parser:
    """The script's options, the paper's values as defaults where training in minutes allows."""
    parser = cli.training_parser(__doc__, steps=None, batch_size=64, lr=1e-3, eval_every=500)
    scenes = parser.add_argument_group("scenes")
    scenes.add_argument("--scenes", action="store_true", help="the .npz file holds ready-made scenes, not objects")
    scenes.add_argument("--canvas", type=cli.positive_int, help="side in pixels (50; 40 for the built-in digits)")
    scenes.add_argument("--object-size", type=cli.positive_float, help="side in pixels (21.5; 13 for the digits)")
    scenes.add_argument("--max-objects", type=cli.positive_int, default=2, help="scenes have 0 to this many")
    scenes.add_argument("--train-scenes", type=cli.positive_int, default=60_000, help="number to train on")
    scenes.add_argument("--test-scenes", type=cli.positive_int, default=10_000, help="number held out")
    model = parser.add_argument_group("model")
    model.add_argument("--num-steps", type=cli.positive_int, help="most objects inferred (default: max-objects + 1)")
    model.add_argument("--what-dim", type=cli.positive_int, default=50, help="size of an object's appearance code")
    model.add_argument("--window", type=cli.positive_int, default=28, help="side of an object's own image in pixels")
    learning = parser.add_argument_group("learning to count")
    learning.add_argument("--baseline-lr", type=cli.positive_float, default=1e-3, help="the baseline's learning rate")
    learning.add_argument("--clip-norm", type=cli.positive_float, default=100.0, help="of a gradient, nats per image")
    learning.add_argument(
        "--count-ratio",
        type=cli.positive_float,
        nargs=2,
        default=[0.1, 1e-6],
        metavar=("K0", "K1"),
        help="the prior's p(n+1)/p(n), annealed from permissive to strict",
    )
    learning.add_argument(
        "--count-steps",
        type=cli.natural_int,
        nargs=2,
        default=[300, 2000],
        metavar=("BEGIN", "END"),
        help="the steps between which that ratio moves, geometrically",
    )
    learning.add_argument("--presence-bias", type=float, default=2.0, help="initial logit of going on to an object")
    learning.add_argument(
        "--explore",
        type=cli.positive_float,
        nargs=2,
        default=[0.3, 1e-4],
        metavar=("P0", "P1"),
        help="least probability of stopping and of going on, annealed over the same steps",
    )
    return parser


def scenes_of(options: argparse.Namespace) -> SceneSet:
    """The training and held-out scenes that a run's options name."""
    return scene_set(
        options.data,
        options.data_dir,
        ready_made=options.scenes,
        canvas=options.canvas,
        max_objects=options.max_objects,
        object_size=options.object_size,
        num_train=options.train_scenes,
        num_test=options.test_scenes,
        seed=options.seed,
    )


def main(argv: list[str] | None = None) -> None:
    """Parse, load, build the pair, fit, report."""
    options, run = cli.parse(parser(), argv)
    device = cli.find_device(options.device)
    options.steps = options.steps or STEPS.get(options.data, 6000)
    options.num_steps = options.num_steps or options.max_objects + 1
    if not all(p < 0.5 for p in options.explore):
        raise InputError("--explore: the probabilities must be below 0.5.")
    scenes = scenes_of(options)
    train, test = scenes.train.to(device), scenes.test.to(device)
    run = run or cli.open_run(options, "air")

    pyro.set_rng_seed(options.seed)
    sizes = {
        "canvas": train.shape,
        "num_steps": options.num_steps,
        "what_dim": options.what_dim,
        "window": options.window,
    }
    where_loc, where_scale = scenes.window_prior()
    model = AIR(**sizes, where_loc=where_loc, where_scale=where_scale).to(device)
    guide = AIRGuide(
        **sizes, where_loc=where_loc, presence_bias=options.presence_bias, log_k=math.log(options.count_ratio[0])
    ).to(device)
    optim = adam(model, guide, options.lr, {guide.baseline: options.baseline_lr})
    svi = SVI(model, guide, optim, NVIL_ELBO(), clip_norm=options.clip_norm, compile=options.compile and "auto")
    bound = compiled_log_probs(model, guide, fallback=True) if options.compile else partial(log_probs, model, guide)
    log_k = linear(*map(math.log, options.count_ratio), *options.count_steps)
    limit = linear(*(math.log(1 / p - 1) for p in options.explore), *options.count_steps)
    decay = (options.steps // 2, options.steps)
    annealed = [
        *(Annealed(half.log_k, log_k) for half in (model, guide)),
        Annealed(guide.presence_limit, limit),
        Annealed(optim.param_groups[0]["lr"], cosine(options.lr, options.lr / 100, *decay)),
        Annealed(optim.param_groups[1]["lr"], cosine(options.baseline_lr, options.baseline_lr / 100, *decay)),
    ]
    seconds = fit(
        svi,
        train,
        run,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        annealed=annealed,
        evaluate=lambda: scene_metrics(bound, test.head(2000), options.num_steps),
        eval_every=options.eval_every,
        shown=SHOWN,
        resume=options.resume,
    )
    model.save_pretrained(run.folder)
    guide.save_pretrained(run.folder)
    torch.manual_seed(options.seed)
    metrics = scene_metrics(bound, test, options.num_steps)
    scene_pictures(model, guide, test.head(12), run.metrics, run.folder)
    run.finish(seconds, device, metrics)
    print(
        f"held out, {len(test)} scenes: "
        + ", ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
    )
    print(f"everything is in {run.folder}")


if __name__ == "__main__":
    cli.run_script(main)
