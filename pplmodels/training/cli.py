"""What every script does around its work: exit codes, and errors in one sentence."""

import gc
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pplmodels import distributed
from pplmodels.errors import InputError, NonFiniteLossError, RankLostError, StorageError, Terminated
from pplmodels.training.run import Run
from pplmodels.training.signals import raise_on_signal

RUN_FOLDER = "run_folder"  # attribute of exceptions, also of built-in ones, that resumable() sets


def run_script(main: Callable[[], object]) -> None:
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
        code, sentence = 1, f"stopped: {error} Earlier files are intact. Free some disk space, then {_advice(error)}"
    except RankLostError as error:
        code, sentence = 1, f"rank {distributed.rank()} stopped: {error} You can {_advice(error)}"
    except Terminated as error:
        code, sentence = 143, f"interrupted; {_advice(error)}"
    except KeyboardInterrupt as error:
        code, sentence = 130, f"interrupted; {_advice(error)}"
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    gc.collect()  # the error's frames are released: this ends what they held, such as data-loading processes
    sys.exit(code)


@contextmanager
def resumable(run: Run) -> Iterator[None]:
    """Exceptions that interrupt the work in this context carry the folder of ``run`` to :func:`run_script`."""
    try:
        yield
    except (StorageError, RankLostError, KeyboardInterrupt) as error:
        setattr(error, RUN_FOLDER, run.folder)
        raise


def _advice(error: BaseException) -> str:
    """The command that continues the interrupted work, with ``--resume --out FOLDER`` if there is a run folder."""
    command, folder = ["python", *sys.argv], getattr(error, RUN_FOLDER, None)
    if folder is not None and (folder / "config.json").exists():
        command += [] if "--resume" in command else ["--resume"]
        command += [] if any(word.split("=")[0] == "--out" for word in command) else ["--out", str(folder)]
    return f"continue with: {shlex.join(command)}"
