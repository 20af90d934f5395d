"""A run's folder: its configuration, its evaluations, its result."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pyro
import torch

from pplmodels.errors import InputError
from pplmodels.files import replace_file


class Run:
    """The folder of one training run.

    ====================  ==========================================================
    config.json           the options, and the command that was typed
    metrics.jsonl         one line an evaluation: step, seconds, metrics
    result.json           the final held-out metrics, seed, seconds, device, versions
    checkpoint.pt         what ``--resume`` needs
    ``model.*, guide.*``  the two halves' weights (safetensors) and arguments (JSON)
    ``*.png, *.gif``      pictures
    tensorboard/          the metrics as TensorBoard events
    ====================  ==========================================================
    """

    def __init__(self, folder: Path, config: dict):
        self.folder, self.config = folder, config
        self._writer = None

    @classmethod
    def create(cls, folder: str | Path, config: dict) -> "Run":
        """Begin a run in a new or empty folder; a folder with anything in it is refused and left alone."""
        folder = Path(folder)
        if (folder / "config.json").exists():
            raise InputError(f"{folder} holds another run: choose another --out, or continue that run with --resume.")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not an empty folder: choose another --out.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = {**config, "command": " ".join(["python", *sys.argv])}
            _write_json(folder / "config.json", config)
        except OSError as error:
            raise InputError(f"{folder} cannot be written to ({error.strerror}).") from error
        return cls(folder, config)

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run."""
        folder = Path(folder)
        try:
            return cls(folder, json.loads((folder / "config.json").read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no run: it has no readable config.json.") from error

    @property
    def metrics(self) -> list[dict]:
        """The evaluations so far; a last line that a kill cut short is not one."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, step: int) -> None:
        """Drop evaluations later than ``step``: a resumed run will come to them again."""
        kept = "".join(json.dumps(line) + "\n" for line in self.metrics if line["step"] <= step)
        replace_file(self.folder / "metrics.jsonl", lambda path: path.write_text(kept))

    def log(self, step: int, seconds: float, metrics: dict) -> None:
        """Append one evaluation to metrics.jsonl and TensorBoard."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **metrics}) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=step)
        for name, value in metrics.items():
            numbered = {f"{name}/{i}": number for i, number in enumerate(value)} if isinstance(value, list) else {}
            for tag, number in (numbered or {name: value}).items():
                if isinstance(number, int | float):
                    self._writer.add_scalar(tag, number, step)
        self._writer.flush()

    def finish(self, seconds: float, device: torch.device, metrics: dict) -> None:
        """Write result.json."""
        result = {
            "seed": self.config["seed"],
            "command": self.config["command"],
            "seconds": round(seconds, 1),
            "device": describe_device(device),
            "versions": versions(),
            "commit": commit(),
            "metrics": metrics,
        }
        _write_json(self.folder / "result.json", result)
        self.close()

    def close(self) -> None:
        """Let go of the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def describe_device(device: torch.device) -> str:
    """The device in words, with what decides its speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads ({platform.machine()})"


def versions() -> dict[str, str]:
    """What a figure depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}


def commit() -> str | None:
    """The commit of this code where it runs from a git checkout."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return answer.stdout.strip() or None


def _write_json(path: Path, content: dict) -> None:
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))
