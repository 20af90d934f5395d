"""Loading a folder of image files as a dataset."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pplmodels.data.images import Images, ImageSet
from pplmodels.data.levels import Decoding
from pplmodels.data.pictures import ENDINGS, Header, read_header, read_picture
from pplmodels.data.streams import DiskPixels, Storage
from pplmodels.errors import InputError
from pplmodels.messages import say

DARK = 64  # the 8-bit level of 14-bit white in a 16-bit image
HELD_OUT = 10  # every tenth image of a folder is held out
# ignored names in lower case, besides those that begin with a dot: from macOS archives, network and Windows drives
NO_DATA = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "lost+found"),
    *("$recycle.bin", "recycler", "system volume information"),
)
# names of subfolders for training, validation and held-out images
PARTS = (("train", "training"), ("test", "testing"), ("valid", "val", "validation"))


@dataclass(frozen=True)
class Pictures:
    """Image files of the same size as a source of :class:`pplmodels.data.streams.DiskPixels`."""

    paths: list[str]
    shape: tuple[int, int, int]
    decoding: Decoding

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def read(self, indices: Iterable[int]) -> Tensor:
        """The images at ``indices``, uint8 ``(B, C, H, W)``."""
        return torch.stack([self._image(Path(self.paths[index])) for index in indices])

    def _image(self, path: Path) -> Tensor:
        levels = read_picture(path, self.decoding)
        levels = np.atleast_3d(levels).transpose(2, 0, 1)
        pixels = self.decoding.fitted(torch.from_numpy(np.ascontiguousarray(levels)))
        pixels = pixels.expand(self.shape[0], *pixels.shape[1:])  # a gray image in a color dataset
        if pixels.shape != self.shape:
            raise InputError(f"{path} has changed: its image had another size before.")
        return pixels


def load_folder(folder: Path, decoding: Decoding, storage: Storage) -> ImageSet:
    """Load the image files in a folder and its subfolders, of which every tenth is held out.

    If all images are in subfolders ``train`` and ``test`` (and ``valid``), these are the parts instead. Copies of an
    image, which are detected by content, are never in different parts. Raises :class:`InputError`.
    """
    paths = _find(folder)
    if len(paths) < HELD_OUT:
        raise InputError(f"{folder} has {len(paths)} images ({', '.join(ENDINGS)}); at least {HELD_OUT} are needed.")
    bar = tqdm(paths, "reading headers", delay=2, leave=False, unit=" images")
    headers = [read_header(path, decoding) for path in bar]
    pictures = Pictures([str(path) for path in paths], _common_shape(folder, paths, headers, decoding), decoding)
    _report(folder, pictures, headers)
    read = storage.read(pictures, storage.holds(pictures))
    deep = max((level for level, header in zip(read.brightest, headers, strict=True) if header.deep), default=255)
    if deep <= DARK:
        say(
            f"warning: the images with more than 8 bits were converted to levels of at most {deep} of 255; set "
            "--white-level if this is wrong"
        )
    _refuse_blank(folder, headers, read.pixels, decoding)
    known: dict[bytes, int] = {}
    numbers = np.array([known.setdefault(content, len(known)) for content in read.contents])
    parts = _parts(folder, paths, read.pixels, numbers)
    say(f"{len(parts[0]):,} of the images are for training, {sum(map(len, parts[1:])):,} are held out")
    return ImageSet(*parts)


def _find(folder: Path) -> list[Path]:
    """The image files, sorted by path. Prints a line about other files."""
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    for path in sorted(_files(folder)):
        if not path.is_file():
            link, directory = path.is_symlink(), path.is_dir()
            skipped["broken links" if link else "unreadable folders" if directory else "special files"] += 1
            continue
        names = path.relative_to(folder).parts
        hidden = next((name for name in names if name.startswith(".") or name.lower() in NO_DATA), None)
        if hidden is None and path.suffix.lower() in ENDINGS:
            found.append(path)
        elif hidden is None:
            skipped[path.suffix or "without an extension"] += 1
        elif hidden is not names[-1]:
            skipped[f"in {hidden}"] += 1
        else:
            skipped["._*" if hidden.startswith("._") else hidden] += 1
    if skipped:
        counts = ", ".join(f"{number:,} {what}" for what, number in sorted(skipped.items()))
        say(f"skipped files in {folder}: {counts}")
    return found


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files in a folder, its subfolders and linked folders. Folders are only included if they cannot be read."""
    here = folder.resolve()
    if here in above:  # a link forms a cycle
        return
    try:
        within = list(folder.iterdir())
    except PermissionError:
        yield folder
        return
    for path in within:
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path


def _common_shape(folder: Path, paths: list[Path], headers: list[Header], decoding: Decoding) -> tuple[int, int, int]:
    """The shape (C, H, W) of all images after conversion. Raises :class:`InputError` if their sizes differ."""
    channels = 3 if any(header.colour for header in headers) else 1
    if decoding.image_size is not None:
        return channels, decoding.image_size, decoding.image_size
    sizes = [(header.height, header.width) for header in headers]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"the images in {folder} differ in size: {paths[0].name} is {sizes[0][0]}x{sizes[0][1]}, {path} is "
                f"{size[0]}x{size[1]}; use --image-size N to resize and crop all of them to NxN."
            )
    return channels, *sizes[0]


def _report(folder: Path, pictures: Pictures, headers: list[Header]) -> None:
    """Print how the files were read."""
    channels, height, width = pictures.shape
    say(f"read {len(pictures):,} images ({height}x{width}x{channels}, 8 bits) from {folder}")
    decoding = pictures.decoding
    sizes = {(header.height, header.width) for header in headers}
    resized = len(sizes - {(height, width)})
    notes = {
        "have more than 8 bits per channel and were converted to 8 bits": "deep",
        f"are transparent and were composited over {decoding.background} (--background)": "transparent",
        "were rotated or flipped according to their EXIF orientation": "turned",
        "have several pages or frames, of which only the first was read": "several",
    }
    for words, attribute in notes.items():
        if number := sum(getattr(header, attribute) for header in headers):
            say(f"{number:,} of the images {words}")
    if resized:
        say(f"resized and cropped images of {len(sizes):,} sizes, {min(sizes)} to {max(sizes)}, to {height}x{width}")


def _refuse_blank(folder: Path, headers: list[Header], pixels: Tensor | DiskPixels, decoding: Decoding) -> None:
    """Reject transparent drawings that are invisible because they have the color of the background."""
    transparent = [index for index, header in enumerate(headers) if header.transparent]
    blank = (bool((image == image[:, :1, :1]).all()) for image in map(pixels.__getitem__, transparent))
    if transparent and all(blank):
        raise InputError(
            f"the transparent images in {folder} are invisible over {decoding.background}: choose another --background."
        )


def _parts(folder: Path, paths: list[Path], pixels: Tensor | DiskPixels, numbers: np.ndarray) -> list[Images]:
    """Training, held-out and optional validation images, without copies of an image in different parts.

    ``numbers`` numbers distinct images in order; copies have the same number.
    """
    uses = _uses(folder, paths)
    distinct = numbers.max() + 1
    copies = len(numbers) - distinct
    if uses is None:
        last_ones = numbers % HELD_OUT == HELD_OUT - 1 if distinct >= HELD_OUT else numbers == distinct - 1
        if distinct == 1:
            say(f"warning: all images in {folder} are identical, so held-out images are also training images")
            last_ones = np.arange(len(numbers)) % HELD_OUT == HELD_OUT - 1
        elif copies:
            say(f"{copies:,} images are copies of others; copies are in the same part of the data")
        uses = last_ones.astype(int)
    elif copies:
        for use in (2, 0):  # held-out images stay held out
            mine, others = uses == use, (uses != use) & (uses > 0)
            uses = np.where(mine & np.isin(numbers, numbers[others]), -1, uses)
            if mine.any() and not (uses == use).any():
                raise InputError(f"every image in {PARTS[use][0]} of {folder} is also a held-out image.")
        left_out = (uses < 0).sum()
        say(f"{copies:,} images are copies of others; {left_out:,} are omitted, because they are in another part")
    images = Images(pixels, copies_of=torch.from_numpy(numbers) if copies else None)
    return [images.part(torch.from_numpy(np.flatnonzero(uses == use))) for use in range(uses.max() + 1)]


def _uses(folder: Path, paths: list[Path]) -> np.ndarray | None:
    """The index in :data:`PARTS` of each image's part, from its subfolder; None if not all subfolders name a part."""
    top = [path.relative_to(folder).parts[0].lower() for path in paths]
    known = {name: use for use, names in enumerate(PARTS) for name in names}
    uses = np.array([known.get(name, -1) for name in top])
    if set(uses) == {0, 2}:  # only train and val: val is held out
        uses = np.minimum(uses, 1)
    if uses.min() >= 0 and {0, 1} <= set(uses):
        return uses
    if named := sorted({name for name in top if name in known}):
        say(
            f"warning: the split of {folder} into {', '.join(named)} is ignored, because not all images are in train "
            "and test; every tenth image is held out instead"
        )
    return None
