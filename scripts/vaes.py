"""Shared code of the VAE scripts: options, training of a pair on images, metrics and figures."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pplmodels import distributed
from pplmodels.data import Images, ImageSet, load_images
from pplmodels.data.transforms import TRANSFORMS
from pplmodels.errors import InputError
from pplmodels.infer import SVI, Annealed, FreeBits_ELBO, ScaledKL, adam, cyclical, delayed, learning_rates, linear
from pplmodels.messages import say
from pplmodels.metrics import compiled_log_probs, elbo_terms, log_probs
from pplmodels.metrics.bounds import LogProbs
from pplmodels.module import PairModule
from pplmodels.report import image_metrics, image_pictures
from pplmodels.rng import seed_all
from pplmodels.training import Run, cli, fit, imports, warn_if_short
from pplmodels.training.batch_norm import recompute_batch_norm

STEPS = 20_000
SHOWN = ("valid_elbo",)
HEADLINES = ("elbo", "bits_per_dim", "code_usage", "nats_per_code")


def parser(
    description: str, *, z_dim: int | None, batch_size: int = 128, lr: float = 1e-3, annealed: bool = True, **data: str
) -> cli.Parser:
    """The options of all VAE scripts.

    ``z_dim`` is None for models without a single code per image. ``annealed`` is false for models whose KL has no
    gradient, so that annealing it has no effect.
    """
    parser = cli.training_parser(description, steps=None, batch_size=batch_size, lr=lr, **data)
    if z_dim is not None:
        parser.add_argument("--z-dim", type=cli.positive_int, default=z_dim, help="number of latent dimensions")
    if annealed:
        add_annealing(parser)
    else:
        parser.set_defaults(warm_up=0, cycle=None, free_bits=None)
    schedule = parser.add_argument_group("training schedule")
    schedule.add_argument("--clip-norm", type=cli.positive_float, default=200.0, help="maximum gradient norm per image")
    schedule.add_argument(
        "--hold", type=cli.fraction, default=0.5, help="fraction of the steps before the learning rate falls to 1/100"
    )
    schedule.add_argument(
        "--averaging", type=cli.fraction, metavar="DECAY", help="evaluate and save averaged weights (try 0.999)"
    )
    schedule.add_argument(
        "--patience", type=cli.positive_int, metavar="N", help="stop after N evaluations without a better bound"
    )
    schedule.add_argument(
        "--valid",
        type=cli.positive_int,
        help="number of validation images, if the data have none (default: a tenth of the training images)",
    )
    return parser


def image_parser() -> cli.Parser:
    """A parser of the options about images in config.json, which all VAE scripts share."""
    described = parser("", z_dim=None)
    described.add_argument("--reading", choices=TRANSFORMS, default="levels")
    return described


def add_annealing(parser: cli.Parser) -> None:
    """Add the options that prevent posterior collapse."""
    bound = parser.add_argument_group("KL annealing")
    bound.add_argument(
        "--warm-up",
        type=cli.nonnegative_int,
        metavar="N",
        help="steps until the KL weight reaches 1 (default: a tenth of the steps, at most 2000)",
    )
    bound.add_argument("--cycle", type=cli.positive_int, metavar="STEPS", help="restart the warm-up every STEPS steps")
    bound.add_argument(
        "--free-bits", type=cli.positive_float, metavar="NATS", help="KL per latent site below which it has no gradient"
    )


def complete(options: argparse.Namespace, steps: dict[str, int]) -> None:
    """Set defaults that depend on other options. ``steps`` maps datasets to their default number of steps."""
    options.steps = options.steps or steps.get(options.data, STEPS)
    options.schedule_steps = options.schedule_steps or options.steps
    options.eval_every = options.eval_every or max(1, options.steps // 10)
    if options.warm_up is None:
        options.warm_up = min(2000, options.schedule_steps // 10)
    if options.cycle and not 0 < options.warm_up <= options.cycle:
        raise InputError(f"--cycle {options.cycle} needs a --warm-up from 1 to {options.cycle}, not {options.warm_up}.")


def measure(bound: Callable[[Tensor], LogProbs], model, guide, images: ImageSet) -> dict:
    """The metrics of the held-out images."""
    return image_metrics(bound, model, guide, images.test)


def draw(model, guide, images: ImageSet, run: Run) -> None:
    """Draw the figures of a run."""
    image_pictures(model, guide, images.test, run.metrics, run.folder)


def train(
    options: argparse.Namespace,
    run: Run | None,
    name: str,
    build: Callable[[], tuple[PairModule, PairModule]],
    images: ImageSet,
    draw: Callable[[PairModule, PairModule, ImageSet, Run], None] = draw,
    figures: Callable[[Callable[[Tensor], LogProbs], PairModule, PairModule, Images], dict] = image_metrics,
    objective: str = "elbo",
    late: Callable[[PairModule, PairModule], nn.Module | None] | None = None,
    late_from: float = 0.0,
) -> Path:
    """Train a new pair in ``run``, or in a new run of script ``name``; returns the folder with weights and metrics.

    ``figures`` computes the metrics of validation and test images. ``objective`` is the name of the objective
    without annealing. ``late`` returns the part of the pair, if any, that is only trained after the fraction
    ``late_from`` of the steps.
    """
    device = images.train.pixels.device
    seed_all(options.seed)
    model, guide = pair = imports.checked(options, build, images.train)
    cli.initialise(options, *pair)
    run = run or cli.create_run(options, name)
    halves = [ScaledKL(half) for half in pair] if options.warm_up else list(pair)
    part = late(model, guide) if late else None
    optim = adam(model, guide, options.lr, {part: options.lr} if part else None)
    elbo = FreeBits_ELBO(options.free_bits) if options.free_bits else None
    precision = cli.PRECISIONS[options.precision]
    svi = SVI(
        *halves, optim, elbo, clip_norm=options.clip_norm, compile=options.compile and "auto", precision=precision
    )
    falling = linear(options.lr, options.lr / 100, int(options.hold * options.steps), options.steps)
    courses = (falling, delayed(falling, int(late_from * options.schedule_steps)))
    annealed = [Annealed(rate, course) for rate, course in zip(learning_rates(optim), courses, strict=False)]
    if options.warm_up:
        warm_up = linear(0.0, 1.0, 0, options.warm_up)
        if options.cycle:
            warm_up = cyclical(0.0, 1.0, options.cycle, options.warm_up / options.cycle)
        annealed += [Annealed(half.beta, warm_up) for half in halves]
    warn_if_short(options.steps, annealed, "--warm-up")
    averaged = None
    if options.averaging:
        multi = get_ema_multi_avg_fn(options.averaging)
        averaged = AveragedModel(nn.ModuleList(halves), multi_avg_fn=multi, use_buffers=True).eval()
    measured = [model, guide] if averaged is None else [_bare(half) for half in averaged.module]
    bound = compiled_log_probs(*measured, fallback=True) if options.compile else partial(log_probs, *measured)

    def evaluate() -> dict:
        seen, _ = elbo_terms(bound, images.train.head(len(images.valid)).batches())
        metrics = figures(bound, *measured, images.valid)
        return {"train_elbo": seen["elbo"], "valid_elbo": metrics.pop("elbo"), **metrics}

    seconds = fit(
        svi,
        images.train,
        run,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        annealed=annealed,
        evaluate=evaluate,
        eval_every=options.eval_every,
        shown=SHOWN,
        objective="annealed_elbo" if options.warm_up else objective,
        resume=options.resume,
        averaged=averaged,
        patience=options.patience,
        saved=measured,
        draw=lambda: draw(*measured, images, run),
    )
    recompute_batch_norm(*measured, images.train.batches(options.batch_size))
    seed_all(options.seed + distributed.rank())
    metrics = figures(bound, *(half.eval() for half in measured), images.test)
    if distributed.rank() == 0:
        for half in measured:
            half.save_pretrained(run.folder)
        with distributed.alone():
            draw(*measured, images, run)
        run.finish(seconds, device, metrics)
        shown = ", ".join(f"{name} {metrics[name]:.4g}" for name in HEADLINES if name in metrics)
        print(f"held out, {len(images.test)} images: {shown}")
        print(f"everything is in {run.folder}")
    distributed.barrier()
    return run.folder


def _bare(half: nn.Module) -> nn.Module:
    return half.wrapped if isinstance(half, ScaledKL) else half


def add_binarise(group: argparse._ArgumentGroup) -> None:
    """Add the option that selects how gray images are binarized."""
    group.add_argument(
        "--binarise",
        choices=("dynamic", "threshold", "static"),
        default="dynamic",
        help="dynamic: sample pixels each time an image is used; threshold: cut at a half; static: data are binary",
    )


def load(options: argparse.Namespace, run: Run | None = None) -> ImageSet:
    """The images given by the options, with the pixel transform ``options.reading``, on the selected device.

    Validation and test images are binarized only once. Their shape must match that of an earlier ``run``, if given.
    """
    images = load_images(options.data, options.data_dir, **cli.image_options(options)).with_validation(options.valid)
    cli.check_images(options, run, images.train.shape)
    if options.reading == "static":
        for part in (images.train, images.test, images.valid):
            if not black_and_white(part):
                raise InputError(
                    f"{options.data} has grey pixels, which have no probability where pixels are 0 or 1: "
                    "draw them with --binarise dynamic, or cut them with --binarise threshold."
                )
    say_binarised(images.train, options.reading)
    images = images.map(lambda part: part.read_as(TRANSFORMS[options.reading]))
    if images.train.reading.kind == "binary" and images.train.reading.random:
        images = ImageSet(images.train, images.test.frozen(seed=0), images.valid.frozen(seed=0))
    device = cli.resolve_device(options.device)
    return images.map(lambda part: part.to(device))


def black_and_white(images: Images) -> bool:
    """Whether all pixels are 0 or 255."""
    return all(bool(((levels == 0) | (levels == 255)).all()) for levels in images.levels())


def say_binarised(images: Images, reading: str) -> None:
    """Print how gray or color images are binarized."""
    made = {
        "dynamic": "drawn as 0 or 1 with their intensity as probability, each time anew",
        "threshold": "cut to 0 or 1 at a half",
        "bits": "cut to 0 or 1 at a half (--pixels)",
    }
    if reading in made and not black_and_white(images):
        kind = "coloured pixels, by channel," if images.shape[0] == 3 else "grey pixels"
        say(f"{kind} are {made[reading]}; train_image_vae.py models their levels")
