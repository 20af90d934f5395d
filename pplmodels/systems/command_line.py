"""From a system and the words of the command line to the options of a run, and from a run's folder to its options."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pplmodels import distributed
from pplmodels.data.datasets import BUILT_IN
from pplmodels.errors import InputError
from pplmodels.io import STAMP, newest_run
from pplmodels.training import Run, imports
from pplmodels.training.checkpoint import CHECKPOINT, has_checkpoint, step_of
from pplmodels.training.options import InvalidOptionError, parser_of, read_options

if TYPE_CHECKING:
    from pplmodels.systems.system import OptionsT, System

KEPT = ("run", "data", "once")  # scopes of the options that a run keeps
# Options that are read from a run's folder although they may change, because the run depends on them.
RESTORED = ("data_dir", "extend", "init_from")
UNSAVED = ("out", "resume")
ONLY_TYPED = ("imports", "resume", "extend", "init_from")  # options that files cannot give


def parse(system: "System[OptionsT, Any]", argv: Sequence[str] | None = None) -> tuple["OptionsT", Run | None]:
    """The options of a training and, with ``--resume``, the locked run to continue, whose stored options are used.

    Options come from the command line, then from the file of ``--config`` or the run of ``--resume``, ``--extend`` or
    ``--init-from``, and then from the defaults. With ``--print-config`` they are printed as YAML, and the program ends.
    Raises :class:`pplmodels.errors.InputError`.
    """
    given = _words(system, argv)
    file, printing = given.pop("config", None), given.pop("print_config", False)
    if distributed.is_restart() and "out" in given and (Path(given["out"]) / "config.json").exists():
        given["resume"] = True
    run, sources = None, [name for name in ("extend", "init_from") if given.get(name)]
    if given.get("resume"):
        options, run = resume(system, system.prepare(given))
    elif len(sources) + bool(file) > 1:
        raise InputError(
            "--config, --extend and --init-from cannot be combined, because each of them sets the options."
        )
    elif sources:
        options = _taken_from(system, system.prepare(given), sources[0])
    else:
        stored = _from_file(system, file, given) if file else {}
        options = system.options_class.of({**system.prepare({**stored, **given}), "imports": None})
        options = options.replaced(imports=imports.run_import(given.get("imports")))
    if "background" in given and options.data in BUILT_IN:
        raise InputError(f"{options.data} has no transparency: --background does not apply to it.")
    distributed.check_divisible(options.batch_size)
    if printing:
        if run is not None:
            run.close()
        print(yaml.safe_dump({k: v for k, v in options.plain().items() if k not in UNSAVED}, sort_keys=False), end="")
        sys.exit(0)
    return options, run


def _words(system: "System", argv: Sequence[str] | None) -> dict[str, Any]:
    """The options on the command line, unchecked."""
    parser = parser_of(system.options_class, system.description)
    files = parser.add_argument_group("configuration")
    files.add_argument("--config", metavar="FILE", help="read options from a JSON or YAML file, such as a run's config")
    files.add_argument("--print-config", action="store_true", help="print the options as YAML and exit")
    return vars(parser.parse_args(argv))


def _from_file(system: "System", path: str, given: Mapping[str, object]) -> dict[str, object]:
    """The options in a file, which may be the config.json of a run.

    A file cannot select code to run or another run to start from: only the command line can.
    """
    found = read_options(path)
    if found.get("system", system.name) != system.name:
        raise InputError(f"{path} has the options of {found['system']}, not of {system.name}.")
    for name in ONLY_TYPED:
        if found.pop(name, None) and name not in given:
            raise InputError(f"{path} has {system.options_class.flag(name)}: give this option on the command line.")
    recorded = ("system", *system.recorded, *Run.RECORDED) if "system" in found else ()
    return {name: value for name, value in found.items() if name not in recorded}


def resume(system: "System[OptionsT, Any]", given: dict[str, Any]) -> tuple["OptionsT", Run]:
    """The run in ``--out``, locked, and its options, with those of this process from the command line."""
    if "out" not in given:
        raise InputError("--resume needs the run's folder: --out DIR.")
    folder = distributed.all_gather_object(str(newest_run(given["out"])) if distributed.rank() == 0 else "")[0]
    run = Run.open(folder)
    if given.get("imports") and not run.config.get("imports"):
        raise InputError(f"{folder} was trained without --import.")
    path = imports.run_import(given.get("imports"), run)
    stored = stored_options(system, run)
    if not isinstance(run.config.get("command"), str):
        raise InputError(f"the config.json of {folder} has no command.")
    options = system.options_class.of({**stored.plain(), **given, "imports": path, "out": folder})
    for name in system.options_class.names(*KEPT):
        before, now = getattr(stored, name), getattr(options, name)
        if name in given and now != before:
            flag = system.options_class.flag(name)
            raise InputError(
                f"{folder} was trained with {flag} {_text(before)}, not {_text(now)}: the options of a "
                "run cannot be changed."
            )
    run.config |= {name: value for name, value in options.plain().items() if name in system.options_class.names(*KEPT)}
    run.lock()
    if options.extend and not has_checkpoint(run.folder):  # killed before it had copied the checkpoint
        run.take_over(options.extend)
    return options, run


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _taken_from(system: "System[OptionsT, Any]", given: dict[str, Any], name: str) -> "OptionsT":
    """The options of the run in ``--extend`` or ``--init-from``, overridden by the command line."""
    found = str(newest_run(given[name]).absolute()) if distributed.rank() == 0 else ""
    folder = Path(distributed.all_gather_object(found)[0])
    earlier = Run.open(folder)
    path = imports.run_import(given.get("imports"), earlier)
    kind = system.options_class
    stored = stored_options(system, earlier).plain()
    dropped = {*kind.names("once"), *(kind.names("data") if "data" in given else ())}
    inherited = {option: stored[option] for option in (*kind.names("run", "data"), "data_dir") if option in stored}
    inherited = {option: value for option, value in inherited.items() if option not in dropped}
    options = kind.of({**inherited, **given, "imports": path, name: str(folder)})
    if name == "extend":
        if not has_checkpoint(folder):
            raise InputError(f"{folder} has no checkpoint to extend.")
        reached = step_of(folder / CHECKPOINT)
        if options.steps <= reached:
            raise InputError(f"{folder} was trained for {reached} steps: --steps must be larger to extend it.")
    return options


def stored_options(system: "System[OptionsT, Any]", run: Run) -> "OptionsT":
    """The options that a run was trained with, from its config.json.

    The file is untrusted: a value that the command line would refuse raises :class:`pplmodels.errors.InputError`, and
    the file of ``--import`` is not taken from it.
    """
    if run.config.get("system") != system.name:
        raise InputError(f"{run.folder} is a run of another system than {system.name}.")
    kind = system.options_class
    wanted = kind.names(*KEPT)
    if not all(name in run.config for name in wanted):
        raise InputError(f"the config.json of {run.folder} is incomplete.")
    readable = [name for name in (*wanted, *RESTORED) if name in run.config and name in kind.model_fields]
    known = {name: run.config[name] for name in readable}
    try:
        options = kind.of(known)
    except InvalidOptionError as error:
        raise InputError(
            f"the config.json of {run.folder} has an invalid value for {error.flag}: {error.value!r}."
        ) from error
    places = {name: _where_it_was(getattr(options, name), run) for name in ("data", "data_dir") if name in known}
    return options.replaced(**places)


def _where_it_was(path: str, run: Run) -> str:
    """A path of the data. If it does not exist here, it is resolved against the directory where the run was started."""
    begun = run.config.get("directory")
    before = Path(begun if isinstance(begun, str) else "") / path
    return str(before) if before.exists() and not Path(path).exists() else path


def create_run(system: "System[OptionsT, Any]", options: "OptionsT", facts: Mapping[str, object]) -> Run:
    """A new run folder. ``facts`` about the data are written to its config.json beside the options."""
    out = options.out
    if out is None:
        folder = Path("runs") / f"{system.name}-{Path(options.data).stem}" / datetime.now().strftime(STAMP)
        out = distributed.all_gather_object(str(_unused(folder)) if distributed.rank() == 0 else "")[0]
    config = {name: value for name, value in options.plain().items() if name not in UNSAVED}
    run = Run.create(out, {"system": system.name, **config, **facts})
    if options.extend:
        run.take_over(options.extend)
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
    raise AssertionError("unreachable")
