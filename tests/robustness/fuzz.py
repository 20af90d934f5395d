"""Load randomly changed files: each must load, or raise an error of one sentence, within limited memory."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis
import hypothesis.configuration
import numpy as np
import torch
from mutations import mutated
from PIL import Image

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.data import Images, ImageSet, load_images, load_scenes
from pplmodels.errors import InputError
from pplmodels.infer import SVI, adam
from pplmodels.io import write_json
from pplmodels.registry import load_pair
from pplmodels.systems import find_system
from pplmodels.systems.command_line import parse, stored_options
from pplmodels.systems.evaluation import system_of
from pplmodels.training import Run, best_of_seeds, cli
from pplmodels.training.checkpoint import load_checkpoint, save_checkpoint
from pplmodels.training.options import Parser, nonnegative_int, positive_int, seed
from pplmodels.training.run import describe_device, versions
from pplmodels.training.state import TrainState

# Maximum memory in bytes for loading a small file, in addition to the memory before. An image of 2**24 pixels takes
# about 200 MB; the rest is a margin for allocators and for this script.
BOUND = 2**30
PATIENCE = 20  # maximum time to load one input in seconds
FOLDER = "fuzzed"
IMAGES = ImageSet(*[Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))] * 2)
SIZES = {"image": (1, 6, 6), "z_dim": 2, "hidden_dims": (3,)}
# Python audit events that must not occur while loading a file
STARTS = ("subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "socket.", "ctypes.dlopen")
CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.",
)


@dataclass(frozen=True)
class FileFormat:
    """A file format: ``write`` puts valid files in a folder, ``load`` reads them, ``change`` lists those to change."""

    write: Callable[[Path], object]
    load: Callable[[Path], object]
    change: tuple[str, ...]


def write_npz(folder: Path) -> None:
    """Write images, scenes with counts and boxes, and packed bits."""
    x = np.arange(4 * 36, dtype=np.uint8).reshape(4, 6, 6)
    np.savez(folder / "images.npz", x_train=x, x_test=x / 255, x_valid=x[..., None])
    n = np.array([0, 1, 0, 1])
    boxes = np.where(n[:, None, None] > 0, [1.0, 2.0, 3.0, 5.0], np.nan)
    truth = {"n_train": n, "n_test": n, "boxes_train": boxes, "boxes_test": boxes}
    np.savez_compressed(folder / "scenes.npz", x_train=x, x_test=x, **truth)
    np.savez(folder / "bits.npz", **{name: np.ones((2, 98), np.uint8) for name in ("train", "valid", "test")})


def load_npz(folder: Path) -> None:
    """Load the arrays like the training scripts."""
    for name in ("images", "bits"):
        for part in vars(load_images(str(folder / f"{name}.npz"))).values():
            assert part is None or (part.pixels.dtype == torch.uint8 and part.pixels.dim() == 4)
    for part in load_scenes(folder / "scenes.npz"):
        assert part.counts is None or (part.counts >= 0).all()


def write_pair(folder: Path) -> None:
    """Write a model and its guide."""
    for module in (MLPVAE(**SIZES), MLPGuide(**SIZES)):
        module.save_pretrained(folder)


def _state(seconds: float = 0.0) -> TrainState:
    model, guide = MLPVAE(**SIZES), MLPGuide(**SIZES)
    return TrainState(SVI(model, guide, adam(model, guide, lr=1e-3)), seconds=seconds)


def write_checkpoint(folder: Path) -> None:
    """Write a training checkpoint after one step."""
    state = _state(seconds=0.5)
    state.take_step(torch.rand(2, 1, 6, 6).round())
    save_checkpoint(folder, state)


def load_state(folder: Path) -> None:
    """Load the checkpoint into a new training state."""
    state = _state()
    load_checkpoint(folder, state)
    assert state.step >= 0 and state.seconds >= 0
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002 - draws from the restored generators


def write_run(folder: Path) -> None:
    """Write the JSON files of a run that can be resumed."""
    system = find_system("vae")
    options = system.options_class.of({"warm_up": 3, "steps": 9})
    config = {"system": "vae", **options.plain(), "image": [1, 8, 8], "command": "python train_vae.py"}
    lines = [{"step": step, "seconds": 1.5, "train_elbo": -2.5, "kl/z": 1.0, "valid_elbo": -3.0} for step in (3, 6)]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "starts.json").write_text(json.dumps({"kept": 2}))


def load_run(folder: Path) -> None:
    """Read the run like ``--resume``, evaluation and ``--config``."""
    stored_options(system_of(Run.open(folder)), Run.open(folder))
    parse(find_system("vae"), ["--config", str(folder / "config.json")])
    options, run = parse(find_system("vae"), ["--resume", "--out", str(folder)])
    find_system("vae").check_data(options, IMAGES, run)
    best_of_seeds(run, range(3), None)
    run.forget_after(6)
    assert all(line["step"] <= 6 for line in run.metrics)


def write_npy(folder: Path) -> None:
    """Write images of two dtypes."""
    x = np.arange(4 * 36, dtype=np.uint8).reshape(4, 6, 6)
    np.save(folder / "x_train.npy", x)
    np.save(folder / "x_test.npy", x[..., None] / 255)


def write_images(folder: Path) -> None:
    """Write ten images in all formats, including 16-bit, palette, transparent and EXIF-rotated images."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(10):
        ending = ("png", "jpg", "bmp", "webp", "tif")[number % 5]
        Image.new("RGB", (6, 6), (number, 90, 200)).save(folder / f"{number}.{ending}")
    Image.new("RGB", (6, 6)).save(folder / "1.jpg", exif=exif)
    Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6) * 1000).save(folder / "5.png")
    drawing = Image.new("P", (6, 6))
    drawing.putpixel((2, 3), 1)
    drawing.save(folder / "6.png", transparency=0)
    (folder / "6.jpg").unlink()


def load_folder(folder: Path) -> None:
    """Load the folder as a dataset."""
    assert load_images(str(folder)).train.pixels.dtype == torch.uint8


FORMATS = {
    "npz": FileFormat(write_npz, load_npz, ("images.npz", "scenes.npz", "bits.npz")),
    "npy": FileFormat(write_npy, load_folder, ("x_train.npy", "x_test.npy")),
    "weights and description": FileFormat(
        write_pair, load_pair, ("model.json", "model.safetensors", "guide.json", "guide.safetensors")
    ),
    "training state": FileFormat(write_checkpoint, load_state, ("checkpoint.safetensors",)),
    "run": FileFormat(write_run, load_run, ("config.json", "metrics.jsonl", "starts.json")),
    "images": FileFormat(write_images, load_folder, ("0.png", "1.jpg", "2.bmp", "3.webp", "4.tif", "5.png", "6.png")),
}


class Watch:
    """Records forbidden actions: writing outside ``folder``, starting programs, unpickling, importing new packages."""

    def __init__(self, folder: Path):
        self.folder, self.seen = os.path.realpath(folder), []
        self.packages = {name.partition(".")[0] for name in sys.modules}
        sys.addaudithook(self._note)  # permanent: audit hooks cannot be removed

    def _note(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writing and not isinstance(path, int) and not self._inside(path):
                self.seen.append(f"opened {path!r} to write")
        elif event.startswith(CHANGES):
            if not all(self._inside(path) for path in arguments if isinstance(path, str | bytes | os.PathLike)):
                self.seen.append(f"{event} {arguments!r}")
        elif event.startswith(STARTS) or event == "pickle.find_class":
            self.seen.append(f"{event} {arguments!r}")
        elif event == "import" and arguments[0].partition(".")[0] not in self.packages:
            self.seen.append(f"imported {arguments[0]}")

    def _inside(self, path) -> bool:
        return os.path.realpath(os.fsdecode(path)).startswith(self.folder + os.sep)


def outcome(load: Callable[[Path], object], folder: Path, watch: Watch) -> str:
    """``"loaded"``, ``"refused"`` for an :class:`InputError` of one line, or a description of what else happened."""
    watch.seen.clear()
    try:
        load(folder)
        found = "loaded"
    except InputError as error:
        found = "refused" if str(error) and str(error).isprintable() else f"an error of several lines: {error!r}"
        cause = error
        while cause is not None:
            if _out_of_memory(cause):
                found = f"tried to allocate more than {BOUND} bytes: {cause!r}"
            cause = cause.__cause__ or cause.__context__
    except (Exception, SystemExit) as error:
        found = f"{type(error).__name__}: {error}"
    return watch.seen[0] if watch.seen else found


def _out_of_memory(error: BaseException) -> bool:
    said = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return said or isinstance(error, MemoryError) or "allocate" in str(error) or "not enough memory" in str(error)


def work(
    format: FileFormat, number: int, seed: int, replay: int | None, folder: Path, position, answer: Connection
) -> None:
    """Load ``number`` changed files in this process with limited memory, and send the counts to ``answer``.

    With ``replay``, only the input of this index is loaded, and a copy of it is written to the working directory.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # libraries warn about unusual files
    sys.dont_write_bytecode = True
    hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
    place = folder / FOLDER
    place.mkdir()
    format.write(place)
    format.load(place)
    good = {name: (place / name).read_bytes() for name in format.change}
    counts, others = {"tried": 0, "loaded": 0, "refused": 0, "other": 0}, []
    state = {"watch": None}

    def one(drawn: tuple[str, bytes]) -> None:
        index, (name, content) = counts["tried"], drawn
        counts["tried"] += 1
        position.value = index
        if replay is not None and index != replay:
            return
        (place / name).write_bytes(content)
        if replay is not None:
            Path(f"fuzzed-{index}-{name}").write_bytes(content)
        signal.alarm(PATIENCE)
        found = outcome(format.load, place, state["watch"])
        signal.alarm(0)
        for other in format.change:  # loading may have replaced other files
            (place / other).write_bytes(good[other])
        counts[found if found in counts else "other"] += 1
        if found not in counts:
            others.append({"index": index, "file": name, "found": found[:500]})

    def settings(number: int) -> hypothesis.settings:
        off = {"database": None, "deadline": None, "phases": [hypothesis.Phase.generate]}
        return hypothesis.settings(max_examples=number, suppress_health_check=list(hypothesis.HealthCheck), **off)

    # a run that is not counted, so that late imports happen before the watch begins
    settings(2)(hypothesis.seed(0)(hypothesis.given(mutated(good))(lambda drawn: None)))()
    state["watch"] = Watch(folder)
    before = limit_memory()
    settings(number)(hypothesis.seed(seed)(hypothesis.given(mutated(good))(one)))()
    answer.send(
        {**counts, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "others": others}
    )


def limit_memory() -> int:
    """Limit this process to :data:`BOUND` more bytes of mapped memory; returns its peak memory so far (Linux)."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BOUND, mapped + BOUND))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz(format: FileFormat, number: int, seed: int, replay: int | None = None) -> dict:
    """The counts of ``number`` inputs, loaded in a separate process. If it dies, this counts as ``other``."""
    context = multiprocessing.get_context("forkserver")  # imports packages only once
    context.set_forkserver_preload(
        [name for name in sys.modules if name.startswith(("pplmodels", "guides", "hypothesis"))]
    )
    position, (receiver, sender) = context.Value("q", -1), context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=work, args=(format, number, seed, replay, Path(folder), position, sender))
        process.start()
        sender.close()
        try:
            row = receiver.recv()
        except EOFError:
            process.join()
            found = {"index": position.value, "found": f"the process ended with exit code {process.exitcode}"}
            row = {"tried": position.value + 1, "loaded": None, "refused": None, "other": 1, "others": [found]}
        process.join()
    return row


def main(argv: list[str] | None = None) -> None:
    """Fuzz every format. Exits with 1 if an input was neither loaded nor refused."""
    parser = Parser(description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="file formats")
    parser.add_argument("--inputs", type=positive_int, default=10_000, metavar="N", help="inputs per format")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the changes")
    parser.add_argument(
        "--replay", type=nonnegative_int, metavar="INDEX", help="only load this input, and save it here"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="output file (default: only print the counts)")
    options = parser.parse_args(argv)
    begun, rows = time.perf_counter(), []
    for name in options.formats:
        rows.append({"what": name, **fuzz(FORMATS[name], options.inputs, options.seed, options.replay)})
        print(json.dumps(rows[-1]), flush=True)
    described = {
        "command": " ".join(["python", *sys.argv]),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - begun, 1),
        "device": describe_device(torch.device("cpu")),
        "versions": {**versions(), "hypothesis": hypothesis.__version__},
        "rows": rows,
    }
    if options.out is not None:
        write_json(options.out, described)
    if any(row["other"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    cli.run_script(main)
