"""Command-line options and error handling shared by all training scripts."""

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
from pplmodels.training.checkpoint import CHECKPOINT, has_checkpoint, step_of
from pplmodels.training.imports import add_import, run_import
from pplmodels.training.run import Run
from pplmodels.training.signals import raise_on_signal

# Options that may change when a run is resumed, because they do not affect the result. The file given by --import is
# checked by its classes. Its path is never read from a run folder, because run folders are untrusted input.
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
# Options that are missing from the configuration of version 0.1.0 runs, which were trained with the defaults.
LATER = (
    *IMAGE_OPTIONS,
    *("object_spread", "restart_steps", "schedule_steps", "extend", "init_from"),
)
ONCE = ("restarts", "with_prior", "eval_every")  # not inherited from the run given by --extend or --init-from
# Options that describe the data. They are not inherited either if --data is given.
OF_DATA = (*IMAGE_OPTIONS, "canvas", "counts", "unseen_counts", "max_objects", "object_size", "object_spread")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
_typed: argparse.Namespace | None = None  # the parsed options of this process


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a help text, except for None and False."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults and reports an error in one sentence, with exit code 2."""

    def __init__(self, **options):
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str) -> None:
        """Print the error and exit."""
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

    ``known`` is the help text of --data. ``background`` is the default of --background, or None for scripts that do
    not read the user's images. ``usual_steps`` is the help text for the default number of steps if ``steps`` is None.
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
        help="length of all schedules except the learning rate's, in steps (default: --steps)",
    )
    training.add_argument("--batch-size", type=positive_int, default=batch_size, help="images per step")
    training.add_argument("--lr", type=positive_float, default=lr, help="learning rate of Adam")
    training.add_argument("--seed", type=seed, default=0, help="random seed")
    training.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses CUDA if available"
    )
    training.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the training step: faster, with the same results",
    )
    training.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="autocast dtype in training; evaluation is float32",
    )
    add_import(parser, "its subclass of this pair's model or guide replaces the original")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="run folder (default: runs/<script>-<data>/<time>)")
    output.add_argument(
        "--resume", action="store_true", help="continue the run in --out, or the newest run in that folder"
    )
    begin = output.add_mutually_exclusive_group()
    begin.add_argument(
        "--extend", metavar="RUN", help="continue training from the last state of RUN, in a new run with more --steps"
    )
    begin.add_argument("--init-from", metavar="RUN", help="initialize with the weights of RUN")
    output.add_argument("--eval-every", type=positive_int, help="steps between evaluations (default: steps / 10)")
    return parser


def add_image_options(
    source: argparse._ArgumentGroup, background: str | None = None, data_dir: str | None = None
) -> None:
    """Add the options for reading the user's images (:func:`pplmodels.data.load_images`)."""
    source.add_argument("--data-dir", default=data_dir, metavar="DIR", help="folder of torchvision's datasets")
    source.add_argument(
        "--background", default=background, metavar="COLOR", help="background of transparent images (CSS color)"
    )
    source.add_argument(
        "--image-size", type=positive_int, metavar="N", help="resize images and center-crop to NxN (default: unchanged)"
    )
    source.add_argument(
        "--white-level",
        type=positive_float,
        metavar="VALUE",
        help="pixel value of full intensity (default: 255 for 8-bit, 65535 for 16-bit and 1 for float images)",
    )
    source.add_argument(
        "--data-memory",
        type=positive_float,
        metavar="GIB",
        help="memory for images; larger datasets are read from disk in batches (default: half of the free memory)",
    )
    source.add_argument(
        "--workers", type=nonnegative_int, metavar="N", help="number of data-loading processes (default: 1 to 4)"
    )


def image_options(options: argparse.Namespace) -> dict:
    """The arguments of :func:`pplmodels.data.load_images` that are given by the options."""
    memory = available_memory() / 2 if options.data_memory is None else options.data_memory * 2**30
    device = resolve_device(options.device)
    if device.type == "cuda" and options.data_memory is None:
        memory = min(memory, torch.cuda.mem_get_info(device)[0] / 2)
    named = {name: getattr(options, name) for name in IMAGE_OPTIONS if name != "data_memory"}
    return {**named, "memory": int(memory)}


def parse(parser: Parser, argv: list[str] | None = None) -> tuple[argparse.Namespace, Run | None]:
    """The options and, with ``--resume``, the locked run to continue, whose stored options are used.

    ``options.typed`` is the set of names of the options given on the command line.
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
    """The run in ``options.out``, locked. Its options replace those that were not given on the command line."""
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
    if options.extend and not has_checkpoint(run.folder):  # killed before it had copied the checkpoint
        run.take_over(options.extend)
    return run


def _taken_from(parser: Parser, argv: list[str] | None, options: argparse.Namespace) -> None:
    """Take options that were not given on the command line from the run in ``--extend`` or ``--init-from``."""
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
        reached = step_of(folder / CHECKPOINT)
        if options.steps <= reached:
            raise InputError(f"{folder} has taken {reached} steps: give more --steps than that to extend it.")


def options_from_config(parser: Parser, run: Run) -> dict:
    """The options of ``parser`` that the config.json of ``run`` contains, parsed like command-line arguments.

    The file is untrusted: a value that the command line would reject raises :class:`InputError`.
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
    """A path of the data. If it does not exist here, it is resolved against the directory where the run was started."""
    begun = run.config.get("directory")
    before = Path(begun if isinstance(begun, str) else "") / path
    return str(before) if before.exists() and not Path(path).exists() else path


def stored_options(parser: Parser) -> list[str]:
    """The names of the options that a run keeps: all except :data:`NOT_STORED`."""
    return [name for name in vars(parser.parse_args([])) if name not in NOT_STORED]


def _as_typed(action: argparse.Action | None, default, stored):
    """A stored value, parsed by the option's action. An option without an action only allows its default."""
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
    """The names of the options that were given on the command line."""
    defaults = {action.dest: action.default for action in parser._actions if action.default is not argparse.SUPPRESS}
    unset = object()
    parser.set_defaults(**dict.fromkeys(defaults, unset))
    typed = parser.parse_args(argv)
    parser.set_defaults(**defaults)
    return {name for name, value in vars(typed).items() if value is not unset}


def initialise(options: argparse.Namespace, *halves: PairModule) -> None:
    """Load the weights of the run given by ``--init-from``, if any, into the model and the guide."""
    if options.init_from:
        for half in halves:
            half.load_weights(options.init_from)


def create_run(options: argparse.Namespace, script: str) -> Run:
    """A new run folder for ``options``. Sets ``options.out`` to its path."""
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
    """Create ``folder``, with a number appended if another process created it in the same second."""
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
    """Reject images whose shape differs from those that ``run`` was trained on. Store the shape for a new run."""
    options.image = list(shape)
    trained = options.image if run is None else run.config.get("image", options.image)
    if trained != options.image:
        sizes = ["x".join(map(str, image)) if isinstance(image, list) else image for image in (options.image, trained)]
        raise InputError(f"the images of {options.data} are {sizes[0]}; {run.folder} was trained on {sizes[1]}.")


def resolve_device(name: str) -> torch.device:
    """The device selected by ``--device``."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def peak_bytes(device: torch.device) -> int:
    """The peak memory of this process; on a GPU, the peak memory of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main`` and report an error in one sentence.

    Exit codes: 2 for bad input, 1 for a failed training or a file that could not be written, 130 for Ctrl-C, 143 for
    SIGTERM. Characters missing from the terminal's encoding are printed as escapes such as ``\\u2713``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks replace these streams
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
    gc.collect()  # the error's frames are released: this ends what they held, such as data-loading processes
    sys.exit(code)


def _how_to_go_on() -> str:
    """The command that continues this process's work, with ``--resume --out FOLDER`` if a run folder exists."""
    command = ["python", *sys.argv]
    if _typed is not None and _typed.out is not None and (Path(_typed.out) / "config.json").exists():
        command += [] if "--resume" in command else ["--resume"]
        command += [] if any(word.split("=")[0] == "--out" for word in command) else ["--out", _typed.out]
    return f"go on with: {shlex.join(command)}"


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    return _number(text, int, 1, "a whole number from 1")


def nonnegative_int(text: str) -> int:
    """An integer of at least 0."""
    return _number(text, int, 0, "a whole number from 0")


def seed(text: str) -> int:
    """An integer from 0 to 2^63."""
    return _number(text, int, 0, "a whole number from 0 to 2^63", most=LARGEST_SEED)


def odd_int(text: str) -> int:
    """An odd integer of at least 3."""
    value = _number(text, int, 3, "an odd whole number from 3")
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an odd whole number from 3")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    return _number(text, float, sys.float_info.min, "a number above 0")


def finite_float(text: str) -> float:
    """A finite number."""
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
