"""What the command lines of all training scripts share."""

import argparse
import gc
import itertools
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch

from pplmodels import distributed
from pplmodels.data.datasets import BUILT_IN
from pplmodels.errors import InputError, NonFiniteLossError, RankLostError, StorageError, Terminated
from pplmodels.io import STAMP, newest_run
from pplmodels.machine import available_memory
from pplmodels.module import PairModule
from pplmodels.rng import LARGEST_SEED
from pplmodels.training.checkpoint import FILE, has_checkpoint, step_of
from pplmodels.training.imports import add_import, run_import
from pplmodels.training.run import Run
from pplmodels.training.signals import raise_on_signal

# What may differ when a run is resumed: none of it changes what is computed. The code that --import names is checked by
# its classes; its path is never taken from a run's folder, which a stranger may have written.
NOT_STORED = (
    "out",
    "resume",
    "device",
    "data_dir",
    "data_memory",
    "workers",
    "compile",
    "imports",
    *("extend", "init_from"),
)
IMAGE_OPTIONS = ("background", "image_size", "white_level", "data_memory", "workers")
# Options that runs of version 0.1.0 do not have in their configuration; they were trained with the defaults.
LATER = (
    *IMAGE_OPTIONS,
    *("object_spread", "restart_steps", "schedule_steps", "extend", "init_from"),
)
ONCE = ("restarts", "with_prior", "eval_every")  # what a run that goes on from another one does not take over from it
# Options that say what is in the data: nor those, where other data are named.
OF_DATA = (*IMAGE_OPTIONS, "canvas", "counts", "unseen_counts", "max_objects", "object_size", "object_spread")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
_typed: argparse.Namespace | None = None  # the options of this process's command, once they are known


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults, and answers a mistake with one sentence and exit code 2."""

    def __init__(self, **options):
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str) -> None:
        """Say what is wrong and leave."""
        self.exit(2, f"{self.prog}: {message}\n")


DATASET_HELP = "digits (built in), mnist, cifar10, svhn, binarised-mnist, an .npz or .npy file, or a folder of images"


def training_parser(
    description: str,
    *,
    steps: int | None,
    batch_size: int,
    lr: float,
    data: str = "digits",
    known: str = DATASET_HELP,
    background: str | None = "white",
    usual_steps: str = "",
) -> Parser:
    """A parser with the options that every training script has.

    ``known`` are the data that it can be given; ``background`` is the default of --background, or None for data that
    are no images of the user's; ``usual_steps`` says what ``steps`` None means.
    """
    parser = Parser(description=description)
    source = parser.add_argument_group("data")
    metavar = "NAME" if background is None else "NAME|FILE|FOLDER"
    source.add_argument("--data", default=data, metavar=metavar, help=known)
    if background is None:
        parser.set_defaults(data_dir="data")
    else:
        add_image_options(source, background, "data")
    training = parser.add_argument_group("training")
    default = f" (default: {usual_steps})" if usual_steps else ""
    training.add_argument("--steps", type=positive_int, default=steps, help=f"gradient steps{default}")
    training.add_argument(
        "--schedule-steps",
        type=positive_int,
        metavar="N",
        help="steps that schedules other than the learning rate's are made for (default: --steps)",
    )
    training.add_argument("--batch-size", type=positive_int, default=batch_size, help="images a step")
    training.add_argument("--lr", type=positive_float, default=lr, help="Adam's learning rate")
    training.add_argument("--seed", type=seed, default=0, help="of weights, noise, scenes and order")
    training.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is one"
    )
    training.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="trace the step once and replay it: the same numbers, sooner",
    )
    training.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the steps' products; measures are float32"
    )
    add_import(parser, "a subclass of this pair's model or guide in it takes its place")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="run folder (default: runs/<script>-<data>/<time>)")
    output.add_argument("--resume", action="store_true", help="continue the run in --out, or the newest in it")
    begin = output.add_mutually_exclusive_group()
    begin.add_argument(
        "--extend", metavar="RUN", help="train RUN further, from its last state, to more --steps in a new run"
    )
    begin.add_argument("--init-from", metavar="RUN", help="begin with the weights of RUN")
    output.add_argument("--eval-every", type=positive_int, help="steps between evaluations (default: a tenth)")
    return parser


def add_image_options(
    source: argparse._ArgumentGroup, background: str | None = None, data_dir: str | None = None
) -> None:
    """How images of the user's are read (:func:`pplmodels.data.load_images`)."""
    source.add_argument("--data-dir", default=data_dir, metavar="DIR", help="where torchvision's data sets are, or go")
    source.add_argument(
        "--background", default=background, metavar="COLOUR", help="the colour under transparent pixels, as in CSS"
    )
    source.add_argument(
        "--image-size", type=positive_int, metavar="N", help="resize images, and crop the middle NxN (default: as is)"
    )
    source.add_argument(
        "--white-level",
        type=positive_float,
        metavar="VALUE",
        help="the value of full intensity (default: 255 of 8 bits, 65535 of 16, 1 of floats)",
    )
    source.add_argument(
        "--data-memory",
        type=positive_float,
        metavar="GIB",
        help="what images may take; more are read from disk batch by batch (default: half of what is free)",
    )
    source.add_argument(
        "--workers", type=nonnegative_int, metavar="N", help="processes that read from disk (default: 1 to 4)"
    )


def image_options(options: argparse.Namespace) -> dict:
    """The arguments of :func:`pplmodels.data.load_images` that the options say."""
    memory = available_memory() / 2 if options.data_memory is None else options.data_memory * 2**30
    device = resolve_device(options.device)
    if device.type == "cuda" and options.data_memory is None:
        memory = min(memory, torch.cuda.mem_get_info(device)[0] / 2)
    named = {name: getattr(options, name) for name in IMAGE_OPTIONS if name != "data_memory"}
    return {**named, "memory": int(memory)}


def parse(parser: Parser, argv: list[str] | None = None) -> tuple[argparse.Namespace, Run | None]:
    """The options, and with ``--resume`` the run to continue, locked, whose options then hold.

    ``options.typed`` are the names of those that are on the command line.
    """
    global _typed
    options = parser.parse_args(argv)
    options.typed = _explicit_options(parser, argv)
    if argv is None:
        _typed = options
    if distributed.is_restart() and options.out is not None:
        options.resume = options.resume or (Path(options.out) / "config.json").exists()
    run = None
    if options.resume:
        run = _resumed(parser, argv, options)
    elif options.extend or options.init_from:
        _taken_from(parser, argv, options)
    else:
        run_import(options)
    if "background" in options.typed and options.data in BUILT_IN:
        raise InputError(f"{options.data} has no transparency: --background does not apply to it.")
    distributed.check_divisible(options.batch_size)
    return options, run


def _resumed(parser: Parser, argv: list[str] | None, options: argparse.Namespace) -> Run:
    """The run in ``options.out``, locked; its options replace those that were not typed."""
    if options.out is None:
        raise InputError("--resume needs the run's folder: --out DIR.")
    options.out = distributed.all_gather_object(str(newest_run(options.out)) if distributed.rank() == 0 else "")[0]
    run = Run.open(options.out)
    if options.imports and not run.config.get("imports"):
        raise InputError(f"{options.out} was trained without --import.")
    run_import(options, run)
    given, restored = options.typed, options_from_config(parser, run)
    if not isinstance(run.config.get("command"), str) or not all(name in restored for name in stored_options(parser)):
        raise InputError(f"{options.out} holds a run of another script.")
    for name in stored_options(parser):
        stored, value = restored[name], getattr(options, name)
        if name in given and value != stored:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{options.out} was trained with {flag} {stored}, not {value}: a run keeps its options.")
        setattr(options, name, stored)
        run.config[name] = stored
    if "data_dir" not in given:  # the data may have moved since
        options.data_dir = restored.get("data_dir", options.data_dir)
    options.extend, options.init_from = restored["extend"], restored["init_from"]
    run.lock()
    if options.extend and not has_checkpoint(run.folder):  # it was killed before it had taken over
        run.take_over(options.extend)
    return run


def _taken_from(parser: Parser, argv: list[str] | None, options: argparse.Namespace) -> None:
    """Options that were not typed are those of the run that ``--extend`` or ``--init-from`` names."""
    flag = "extend" if options.extend else "init_from"
    folder = Path(
        distributed.all_gather_object(
            str(newest_run(getattr(options, flag)).absolute()) if distributed.rank() == 0 else ""
        )[0]
    )
    earlier = Run.open(folder)
    run_import(options, earlier)
    given, restored = options.typed, options_from_config(parser, earlier)
    if not all(name in restored for name in stored_options(parser)):
        raise InputError(f"{folder} holds a run of another script.")
    for name in {*stored_options(parser), "data_dir"} - {*given, *ONCE, *(OF_DATA if "data" in given else ())}:
        setattr(options, name, restored.get(name, getattr(options, name)))
    setattr(options, flag, str(folder))
    if options.extend:
        if not has_checkpoint(folder):
            raise InputError(f"{folder} holds no checkpoint of a training to extend.")
        reached = step_of(folder / FILE)
        if options.steps <= reached:
            raise InputError(f"{folder} has taken {reached} steps: give more --steps than that to extend it.")


def options_from_config(parser: Parser, run: Run) -> dict:
    """The options of ``parser`` that config.json of ``run`` has, as if they had been typed.

    A stranger may have written that file: what the command line would not take raises :class:`InputError`.
    """
    actions = {action.dest: action for action in parser._actions}
    found = {}
    for name in vars(parser.parse_args([])):
        if name not in run.config:
            if name in LATER:
                found[name] = parser.get_default(name)
            continue
        stored = run.config[name]
        try:
            found[name] = _as_typed(actions.get(name), parser.get_default(name), stored)
            if name in ("data", "data_dir"):
                found[name] = _where_it_was(found[name], run)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{run.folder} cannot have been trained with {flag} {stored!r}.") from error
    return found


def _where_it_was(path: str, run: Run) -> str:
    """A relative path of the data, from the directory in which the run was begun if there is nothing of it here."""
    begun = run.config.get("directory")
    before = Path(begun if isinstance(begun, str) else "") / path
    return str(before) if before.exists() and not Path(path).exists() else path


def stored_options(parser: Parser) -> list[str]:
    """The names of the options that a run keeps: all but :data:`NOT_STORED`."""
    return [name for name in vars(parser.parse_args([])) if name not in NOT_STORED]


def _as_typed(action: argparse.Action | None, default, stored):
    """A value out of a file as the option's action makes it of text; options without an action have one value."""
    if stored is None or action is None:
        if stored != default:
            raise ValueError("not a value of this option")
        return default
    if action.nargs == 0:
        if not isinstance(stored, bool):
            raise ValueError("neither on nor off")
        return stored
    if action.nargs in (None, "?"):
        return _converted(action, stored)
    if not isinstance(stored, list) or (isinstance(action.nargs, int) and len(stored) != action.nargs):
        raise ValueError("not as many values as this option has")
    return [_converted(action, value) for value in stored]


def _converted(action: argparse.Action, stored):
    if action.type is None and not isinstance(stored, str):
        raise ValueError("no text")
    value = stored if action.type is None else action.type(str(stored))
    if action.choices is not None and value not in action.choices:
        raise ValueError("none of the choices")
    return value


def _explicit_options(parser: Parser, argv: list[str] | None) -> set[str]:
    """The names of the options that were typed."""
    defaults = {action.dest: action.default for action in parser._actions if action.default is not argparse.SUPPRESS}
    unset = object()
    parser.set_defaults(**dict.fromkeys(defaults, unset))
    typed = parser.parse_args(argv)
    parser.set_defaults(**defaults)
    return {name for name, value in vars(typed).items() if value is not unset}


def initialise(options: argparse.Namespace, *halves: PairModule) -> None:
    """Give the halves the weights of the run that ``--init-from`` names, if there is one."""
    if options.init_from:
        for half in halves:
            half.load_weights(options.init_from)


def create_run(options: argparse.Namespace, script: str) -> Run:
    """A new run folder for ``options``, in which ``out`` then names it."""
    if options.out is None:
        folder = Path("runs") / f"{script}-{Path(options.data).stem}" / datetime.now().strftime(STAMP)
        options.out = distributed.all_gather_object(str(_unused(folder)) if distributed.rank() == 0 else "")[0]
    config = {name: value for name, value in vars(options).items() if name not in ("out", "resume", "typed")}
    run = Run.create(options.out, {"script": script, **config})
    if options.extend:
        run.take_over(options.extend)
        options.resume = True
    return run


def _unused(folder: Path) -> Path:
    """``folder``, made by nobody else: with a number behind its name where others began in the same second."""
    for number in itertools.count(2):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = folder.with_name(f"{folder.name.partition('_')[0]}_{number}")
            continue
        except OSError as error:
            raise InputError(f"{folder} cannot be written to ({error.strerror}).") from error
        return folder


def check_images(options: argparse.Namespace, run: Run | None, shape: tuple[int, ...]) -> None:
    """Refuse images of another shape than those that ``run`` was trained on; note the shape of a new run's images."""
    options.image = list(shape)
    trained = options.image if run is None else run.config.get("image", options.image)
    if trained != options.image:
        sizes = ["x".join(map(str, image)) if isinstance(image, list) else image for image in (options.image, trained)]
        raise InputError(f"the images of {options.data} are {sizes[0]}; {run.folder} was trained on {sizes[1]}.")


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held, on a GPU the most of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``; whatever ends it early is told in one sentence.

    Exit codes: 2 for bad input, 1 for a failed training or a file that could not be written, 130 for Ctrl-C, 143 for
    SIGTERM. A character that the terminal's encoding lacks is printed as its number, ``\\u2713``, say.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks have streams of their own
            stream.reconfigure(errors="backslashreplace")
    try:
        with raise_on_signal(), distributed.process_group():
            main()
        return
    except InputError as error:
        code, sentence = 2, str(error)
    except NonFiniteLossError as error:
        code, sentence = 1, f"training stopped: {error} The last good checkpoint is kept."
    except StorageError as error:
        code, sentence = 1, f"stopped: {error} What was there before is whole. When there is room, {_how_to_go_on()}"
    except RankLostError as error:
        code, sentence = 1, f"rank {distributed.rank()} ends: {error} To take up the work, {_how_to_go_on()}"
    except Terminated:
        code, sentence = 143, f"stopped; {_how_to_go_on()}"
    except KeyboardInterrupt:
        code, sentence = 130, f"stopped; {_how_to_go_on()}"
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    gc.collect()  # the frames of the error are gone; what they held ends, such as processes that read images
    sys.exit(code)


def _how_to_go_on() -> str:
    """The command that takes up this process's work: with ``--resume --out FOLDER`` once there is a run."""
    command = ["python", *sys.argv]
    if _typed is not None and _typed.out is not None and (Path(_typed.out) / "config.json").exists():
        command += [] if "--resume" in command else ["--resume"]
        command += [] if any(word.split("=")[0] == "--out" for word in command) else ["--out", _typed.out]
    return f"go on with: {shlex.join(command)}"


def positive_int(text: str) -> int:
    """A whole number from 1."""
    return _number(text, int, 1, "a whole number from 1")


def nonnegative_int(text: str) -> int:
    """A whole number from 0."""
    return _number(text, int, 0, "a whole number from 0")


def seed(text: str) -> int:
    """A whole number from 0 to 2^63."""
    return _number(text, int, 0, "a whole number from 0 to 2^63", most=LARGEST_SEED)


def odd_int(text: str) -> int:
    """An odd whole number from 3."""
    value = _number(text, int, 3, "an odd whole number from 3")
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an odd whole number from 3")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    return _number(text, float, sys.float_info.min, "a number above 0")


def finite_float(text: str) -> float:
    """A number that is finite."""
    return _number(text, float, -sys.float_info.max, "a finite number")


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, float, 0, "a number from 0 to 1", most=1)


def _number(text: str, kind: type, least: float, wanted: str, most: float = sys.float_info.max):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value
