"""Files of generated scenes with true counts and boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from pplmodels import plotting
from pplmodels.data import Images
from pplmodels.data.generated import PRESETS, generate_scenes, scene_arrays
from pplmodels.data.generated.grounds import GROUNDS
from pplmodels.errors import InputError
from pplmodels.io import atomic_write, named
from pplmodels.messages import say
from pplmodels.systems.options import DATA_DIR
from pplmodels.systems.pictures import save_picture
from pplmodels.training.options import (
    NonnegativeInt,
    Option,
    OptionModel,
    PositiveFloat,
    PositiveInt,
    Seed,
    Switch,
    parser_of,
)

SHOWN = 8  # scenes per row of the picture


class SceneFileOptions(OptionModel):
    """The options of a file of scenes. Without a value, an option has the value of the preset."""

    preset: Annotated[str, Option("what the scenes are like", metavar="PRESET", flag="", choices=tuple(PRESETS))]
    out: Annotated[str, Option("output file; a picture is written next to it", metavar="FILE.npz")]
    train: Annotated[PositiveInt, Option("number of training scenes", metavar="N")] = 20_000
    test: Annotated[PositiveInt, Option("number of held-out scenes", metavar="N")] = 5_000
    seed: Annotated[Seed, Option("random seed")] = 0
    data_dir: Annotated[str | None, DATA_DIR] = None
    objects: Annotated[
        str | None,
        Option("objects of the presets of digits: a dataset of gray images", "scenes", "digits|mnist|FILE|FOLDER"),
    ] = None
    canvas: Annotated[PositiveInt | None, Option("side of the scenes in pixels", "scenes", "N")] = None
    object_size: Annotated[
        PositiveFloat | None, Option("mean side of shapes, or of the frames of digits, in pixels", "scenes", "PIXELS")
    ] = None
    max_objects: Annotated[NonnegativeInt | None, Option("maximum number of objects per scene", "scenes", "N")] = None
    counts: Annotated[tuple[NonnegativeInt, ...] | None, Option("object counts, all equally likely", "scenes", "N")] = (
        None
    )
    ground: Annotated[str | None, Option("background", "scenes", choices=GROUNDS)] = None
    grey: Annotated[Switch, Option("gray shapes on a gray ground", "scenes")] = False
    overlap: Annotated[Switch, Option("objects may overlap; at least half of each is visible", "scenes")] = False

    def changes(self) -> dict[str, Any]:
        """The options of the preset that are replaced. Raises :class:`InputError`."""
        known = PRESETS[self.preset].options
        names = ("objects", "canvas", "object_size", "counts", "ground", "grey", "overlap")
        given = {name: value for name in names if (value := getattr(self, name)) not in (None, False)}
        for name, option in (("max_objects", "counts"), ("data_dir", "objects")):
            if getattr(self, name) is not None and option not in known:
                raise InputError(f"{self.flag(name)} does not apply to {self.preset}.")
        if self.max_objects is not None:
            if self.counts is not None:
                raise InputError("--counts and --max-objects cannot be combined: --counts lists all object counts.")
            given["counts"] = tuple(range(self.max_objects + 1))
        return given


def main(argv: Sequence[str] | None = None) -> None:
    """Generate scenes as the words of the command line say, and write them."""
    parser = parser_of(SceneFileOptions, "Generate scenes of several objects with true counts and bounding boxes.")
    write_scenes(SceneFileOptions.of(vars(parser.parse_args(argv))))


def write_scenes(options: SceneFileOptions) -> None:
    """Write an .npz file of scenes and, with the suffix .png, a picture of the first scenes and their boxes."""
    path = Path(options.out)
    if path.suffix.lower() != ".npz":
        raise InputError(f"--out must be an .npz file, but {path} is not one.")
    train, test = generate_scenes(
        options.preset,
        options.train,
        options.test,
        seed=options.seed,
        data_dir=options.data_dir or "data",
        **options.changes(),
    )
    with named(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    arrays = scene_arrays(train, test)
    atomic_write(path, lambda temporary: np.savez_compressed(temporary, allow_pickle=False, **arrays))
    picture = path.with_suffix(".png")
    save_picture(_rows({"training": train, "held out": test}), picture)
    say(f"wrote {len(train):,} training scenes and {len(test):,} held-out scenes to {path}, and a picture to {picture}")


def _rows(parts: dict[str, Images]) -> Figure:
    """A row with the first scenes of each part and their boxes."""
    shown = [scenes.head(SHOWN) for scenes in parts.values()]
    boxes = [scenes.boxes.numpy() for scenes in shown if scenes.boxes is not None]
    return plotting.scenes_with_boxes([scenes[:].numpy() for scenes in shown], boxes, list(parts))
