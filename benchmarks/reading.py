"""Time training on images in memory, in .npy files and in a folder of PNG files, interleaved in one run."""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from guides import ConvGuide
from pplmodels import ConvVAE
from pplmodels.data import Images, load_images
from pplmodels.infer import SVI, adam
from pplmodels.io import write_json
from pplmodels.machine import resolve_device
from pplmodels.rng import seed_all
from pplmodels.training import cli
from pplmodels.training.options import Parser, nonnegative_int, positive_int
from pplmodels.training.run import describe_device, versions

RESULT = Path(__file__).parent.parent / "results" / "data.json"
SIZE, HELD_OUT = 64, 100
STEPS = 10  # consecutive steps of one variant before the next variant's turn
KINDS = ("memory", ".npy files", "PNG files")


def parser() -> Parser:
    """The script's options."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--images", type=positive_int, default=5000, help=f"number of color images of {SIZE}x{SIZE} pixels"
    )
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images per step")
    parser.add_argument("--rounds", type=positive_int, default=10, help=f"turns per variant, of {STEPS} steps each")
    parser.add_argument("--workers", type=nonnegative_int, default=1, help="number of data-loading processes")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses CUDA if available")
    return parser


def made(folder: Path, number: int) -> dict[str, Path]:
    """Write smooth random color images as .npy files and as PNG files."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (number + HELD_OUT, 3, 8, 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear").byte().permute(0, 2, 3, 1).numpy()
    for name in ("npy", "pictures/train", "pictures/test"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "npy/x_train.npy", smooth[HELD_OUT:])
    np.save(folder / "npy/x_test.npy", smooth[:HELD_OUT])
    for index, image in enumerate(smooth):
        part = "test" if index < HELD_OUT else "train"
        Image.fromarray(image).save(folder / "pictures" / part / f"{index:06}.png")
    return dict(zip(KINDS, (folder / "npy", folder / "npy", folder / "pictures"), strict=True))


def endless(images: Images, batch_size: int) -> Iterator[Tensor]:
    """An endless iterator over shuffled batches of equal size."""
    order = torch.Generator().manual_seed(0)
    drawn = (torch.randint(len(images), (batch_size,), generator=order) for _ in itertools.count())
    return images.batched(drawn)


def main(argv: list[str] | None = None) -> None:
    """Create the files, train on each variant in turns and write the results."""
    options = parser().parse_args(argv)
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        paths = made(Path(folder), options.images)
        batches, steps = {}, {}
        for kind in KINDS:
            seed_all(0)
            memory = None if kind == KINDS[0] else 0
            images = load_images(paths[kind], memory=memory, workers=options.workers).train.to(device)
            batches[kind] = endless(images, options.batch_size)
            model = ConvVAE(image=images.shape, z_dim=32, likelihood="logistic").to(device)
            guide = ConvGuide(image=images.shape, z_dim=32).to(device)
            steps[kind] = SVI(model, guide, adam(model, guide, 1e-3), compile=True).step
        seconds = {kind: [] for kind in KINDS}
        reading = {kind: [] for kind in KINDS}
        for turn in range(options.rounds + 1):  # the first turn includes tracing and is not counted
            for kind in KINDS:
                for times, step in ((reading[kind], len), (seconds[kind], steps[kind])):
                    begun = time.perf_counter()
                    for x in itertools.islice(batches[kind], STEPS):
                        step(x)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    if turn:
                        times.append((time.perf_counter() - begun) / STEPS)
        batches.clear()  # before the files are deleted
    whole, read = ({kind: statistics.median(times[kind]) for kind in KINDS} for times in (seconds, reading))
    rows = [
        {
            "images in": kind,
            "ms per step": round(1000 * whole[kind], 1),
            "times that from memory": round(whole[kind] / whole["memory"], 3),
            "ms to wait for a batch when nothing else is done": round(1000 * read[kind], 2),
        }
        for kind in KINDS
    ]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "seed": 0,
        "device": describe_device(device),
        "versions": versions(),
        "rows": rows,
    }
    write_json(RESULT, result)
    for row in rows:
        print(", ".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    cli.run_script(main)
