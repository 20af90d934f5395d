"""The folder of a run: its configuration, evaluations and result."""

import json
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from filelock import BaseFileLock, FileLock, Timeout

from pplmodels import distributed
from pplmodels.errors import InputError, as_input_error
from pplmodels.io import (
    TEMPORARY,
    append_line,
    atomic_write,
    read_complete_lines,
    read_json,
    remove_temporary_files,
    write_json,
)
from pplmodels.training.checkpoint import BEST_WEIGHTS, CHECKPOINT, step_of
from pplmodels.training.tensorboard import TensorBoardWriter

LOCK = ".lock"


class Run:
    """The folder of one training run.

    ======================  ==========================================================
    config.json             the options and the command line
    metrics.jsonl           one line per evaluation: step, seconds, metrics
    environment.jsonl       one line per start: first step, command, device, versions, commit
    result.json             the final held-out metrics, seed, seconds, device, versions
    checkpoint.safetensors  what ``--resume`` needs
    ``model.*, guide.*``    weights (safetensors) and constructor arguments (JSON)
    ``*.png, *.gif``        plots
    tensorboard/            the metrics as TensorBoard events, one file per start
    .lock                   present while a process trains in the folder
    ======================  ==========================================================

    Several ranks share a folder; rank 0 locks it and writes to it. All files are written inside of the folder, and a
    folder with links is rejected (:class:`InputError`).
    """

    RECORDED = ("command", "directory")  # entries of config.json beside those that are given

    def __init__(self, folder: Path, config: dict):
        _refuse_links(folder)
        self.folder, self.config = folder, config
        self._events: TensorBoardWriter | None = None
        self._lock: BaseFileLock | None = None

    @classmethod
    def create(cls, folder: str | Path, config: dict) -> "Run":
        """Create and lock a run in a new or empty folder. A folder with other contents is rejected and left unchanged.

        Files of a run that failed before any training are deleted.
        """
        begun = {"command": " ".join(["python", *sys.argv]), "directory": str(Path.cwd())}
        run = cls(Path(folder), {**config, **begun})
        if distributed.rank() == 0:
            run._create()
        distributed.barrier()
        return run

    def _create(self) -> None:
        try:
            self._refuse_used()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock()
            self._refuse_used()  # by somebody who was faster
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
            write_json(self.folder / "config.json", self.config)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written to ({error.strerror}).") from error

    def _refuse_used(self) -> None:
        folder = self.folder
        if not folder.exists() or (folder.is_dir() and _unused(folder)):
            return
        if (folder / "config.json").exists():
            raise InputError(
                f"{folder} already contains a run: choose another --out, or continue that run with --resume."
            )
        raise InputError(f"{folder} is not empty: choose another --out.")

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run, for reading; call :meth:`lock` before training it.

        Its files are untrusted. Raises :class:`InputError`.
        """
        folder = Path(folder)
        otherwise = f"{folder} is not a run: it has no readable config.json."
        try:
            config = read_json(folder / "config.json", otherwise)
        except OSError as error:
            raise InputError(otherwise) from error
        if not isinstance(config, dict):
            raise InputError(otherwise)
        return cls(folder, config)

    def take_over(self, earlier: str | Path) -> None:
        """Copy the checkpoint, evaluations and best weights of another run, to continue from them."""
        if distributed.rank() == 0:
            for name in ("metrics.jsonl", BEST_WEIGHTS, CHECKPOINT):  # the checkpoint last: it marks a complete copy
                source = Path(earlier) / name
                if source.exists():
                    atomic_write(self.folder / name, partial(shutil.copyfile, source))
        distributed.barrier()

    def give_back(self) -> None:
        """Remove what :meth:`take_over` copied, so that the folder can be used again."""
        if distributed.rank() == 0:
            for name in ("metrics.jsonl", BEST_WEIGHTS, CHECKPOINT):
                (self.folder / name).unlink(missing_ok=True)
        distributed.barrier()

    def within(self, name: str, **changed) -> "Run":
        """A locked run in a subfolder of this run: the existing one, or a new one.

        A new one has the configuration of this run, updated by ``changed``.
        """
        folder = self.folder / name
        known = distributed.all_gather_object((folder / "config.json").exists())[0]
        return Run.open(folder).lock() if known else Run.create(folder, {**self.config, **changed})

    def lock(self) -> "Run":
        """Prevent other processes from training in this folder until the run is closed or this process ends.

        Temporary files of killed processes are deleted. Returns the run. Raises :class:`InputError`.
        """
        if distributed.rank() > 0:
            return self
        lock = FileLock(self.folder / LOCK, timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(f"{self.folder} is in use: another process is training there.") from error
        except OSError as error:
            raise InputError(f"{self.folder} cannot be written to ({error.strerror}).") from error
        self._lock = lock
        remove_temporary_files(self.folder)
        return self

    @property
    def metrics(self) -> list[dict]:
        """The evaluations so far.

        Each has an integer ``step``, and numbers for seconds, bounds, KLs and accuracies.
        Raises :class:`InputError`.
        """
        path = self.folder / "metrics.jsonl"
        with as_input_error(f"{path} does not contain valid evaluations of a run."):
            return [_evaluation(json.loads(line)) for line in read_complete_lines(path)]

    def begin(self, step: int, device: torch.device) -> None:
        """Record the environment of a start at ``step``: device, versions and commit may differ between starts."""
        if distributed.rank() > 0:
            return
        path = self.folder / "environment.jsonl"
        sitting = {"step": step, "command": " ".join(["python", *sys.argv]), **environment(device)}
        text = "".join(read_complete_lines(path)) + json.dumps(sitting) + "\n"
        atomic_write(path, lambda temporary: temporary.write_text(text, "utf-8"))

    def forget_after(self, step: int) -> None:
        """Drop evaluations after ``step``, which a resumed run repeats."""
        if distributed.rank() > 0:
            return
        kept = "".join(json.dumps(line) + "\n" for line in self.metrics if line["step"] <= step)
        atomic_write(self.folder / "metrics.jsonl", lambda path: path.write_text(kept, "utf-8"))

    def log(self, step: int, seconds: float, metrics: dict) -> None:
        """Append one evaluation to metrics.jsonl and TensorBoard."""
        if distributed.rank() > 0:
            return
        line = json.dumps({"step": step, "seconds": round(seconds, 3), **metrics})
        append_line(self.folder / "metrics.jsonl", line)
        if self._events is None:
            self._events = TensorBoardWriter(self.folder / "tensorboard", step)
        scalars: dict[str, Any] = {}
        for name, value in metrics.items():
            numbered = {f"{name}/{i}": number for i, number in enumerate(value)} if isinstance(value, list) else {}
            scalars |= numbered or {name: value}
        self._events.add(step, {tag: value for tag, value in scalars.items() if isinstance(value, int | float)})

    def finish(self, seconds: float, device: torch.device, metrics: dict) -> None:
        """Write result.json."""
        if distributed.rank() > 0:
            return
        result = {
            "seed": self.config["seed"],
            "command": self.config["command"],
            "seconds": round(seconds, 1),
            **environment(device),
            "metrics": metrics,
        }
        write_json(self.folder / "result.json", result)
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release(force=True)
            self._lock = None


def last_slope(metrics: list[dict]) -> float | None:
    """The increase of the validation bound between the last two evaluations, in nats per 1,000 steps."""
    if len(metrics) < 2:
        return None
    before, last = metrics[-2:]
    return 1000 * (last["valid_elbo"] - before["valid_elbo"]) / (last["step"] - before["step"])


def environment(device: torch.device) -> dict:
    """Device, package versions and Git commit."""
    together = f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""
    return {"device": describe_device(device) + together, "versions": versions(), "commit": commit()}


def describe_device(device: torch.device) -> str:
    """A description of the device, with the number of threads on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads ({platform.machine()})"


def versions() -> dict[str, str]:
    """Package versions."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def commit() -> str | None:
    """The Git commit of this code; None outside of a checkout."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return answer.stdout.strip() or None


def _unused(folder: Path) -> bool:
    """Whether the folder is empty, or has only files of a run that failed before any training."""
    paths = [path for path in folder.iterdir() if path.name != LOCK and not path.name.startswith(TEMPORARY)]
    return not paths or (_is_configuration(folder / "config.json") and all(map(_is_of_a_start, paths)))


def _is_configuration(path: Path) -> bool:
    """Whether this is a run's, not somebody else's file of that name."""
    try:
        return isinstance(read_json(path, "")["command"], str)
    except (InputError, OSError, LookupError, TypeError):
        return False


def _is_of_a_start(path: Path) -> bool:
    """Whether a run has this file or folder before anything is trained in it."""
    if path.is_dir():
        inside = list(path.iterdir())
        if path.name == "starts":
            return all(part.is_dir() and _unused(part) for part in inside)
        return _unused(path) if inside else path.name == "tensorboard"
    if path.name == "metrics.jsonl":
        return path.stat().st_size == 0
    if path.name == CHECKPOINT:
        with suppress(InputError):
            return step_of(path) == 0
    return path.is_file() and path.name in ("config.json", "environment.jsonl")


def _refuse_links(folder: Path) -> None:
    """What a run writes would go where a link points: such a folder of a stranger's could reach any file."""
    inside = [folder, *(folder / name for name in ("starts", "tensorboard"))]
    found = [path for place in inside for path in (place.glob("*") if place == folder else place.rglob("*"))]
    for path in found:
        if path.is_symlink():
            raise InputError(f"{path} is a link, which is not allowed in the folder of a run.")


def _evaluation(line: dict) -> dict:
    """A line of metrics.jsonl; raises ValueError if a value that is needed is missing or not a number."""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise ValueError("not an evaluation")
    for name, value in {"seconds": None, **line}.items():
        drawn = name in ("seconds", "elbo", "count_accuracy") or name.endswith("_elbo") or name.startswith("kl/")
        if drawn and type(value) not in (int, float):
            raise ValueError(f"{name} is not a number")
        if type(value) is int:
            float(value)  # raises OverflowError
    return line
