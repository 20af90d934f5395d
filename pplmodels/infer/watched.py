"""Whether Python objects still hold what they held."""

from collections.abc import Iterator
from itertools import chain, repeat
from operator import attrgetter, is_
from types import CellType, FunctionType, MappingProxyType

import numpy as np

MISSING = object()
FUNCTION = attrgetter("__code__", "__defaults__", "__kwdefaults__")


class Watched:
    """What a state was read from, and the very objects that it held: compared by identity, all of a kind at a time."""

    def __init__(self):
        self.dicts: list[dict] = []
        self.sequences: list = []
        self.classes: list[type] = []
        self.functions: list[FunctionType] = []
        self.cells: list[CellType] = []
        self.names: list[tuple[dict, str]] = []
        self.slots: list[tuple[object, str]] = []
        self.sets: list[tuple[set | frozenset, frozenset]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []

    def remember(self) -> None:
        """Take what is held now as what :meth:`unchanged` compares with."""
        self.proxies = list(map(vars, self.classes))
        self.named = [found for found, _ in self.names], [name for _, name in self.names]
        self.copies = [dict(d) for d in self.dicts], [list(s) for s in self.sequences], [dict(p) for p in self.proxies]
        self.sizes, self.held = self._sizes(), list(self._contents())

    def unchanged(self) -> bool:
        """Whether all of it is still held, in the same places."""
        return (
            self._sizes() == self.sizes
            and all(map(is_, self._contents(), self.held))
            and all(thing == content for thing, content in self.sets)
            and all(np.array_equal(array, copy) for array, copy in self.arrays)
        )

    def restore(self) -> None:
        """Put back what was held."""
        if self.unchanged():
            return
        dicts, sequences, classes = self.copies
        for found, saved in zip(self.dicts, dicts, strict=True):
            if len(found) != len(saved) or not all(
                map(is_, chain(found, found.values()), chain(saved, saved.values()))
            ):
                found.clear()
                found.update(saved)
        for found, saved in zip(self.sequences, sequences, strict=True):
            found.clear()
            found.extend(saved)
        for kind, saved in zip(self.classes, classes, strict=True):
            for name in vars(kind).keys() - saved.keys():
                delattr(kind, name)
            for name, value in saved.items():
                if vars(kind).get(name, MISSING) is not value:
                    setattr(kind, name, value)
        rest = self.held[sum(self.sizes) + sum(map(len, chain(self.dicts, self.proxies))) :]
        cells, rest = rest[: len(self.cells)], rest[len(self.cells) + 3 * len(self.functions) :]
        for cell, content in zip(self.cells, cells, strict=True):
            if content is not MISSING:
                cell.cell_contents = content
        for (found, name), value in zip(self.names, rest, strict=False):
            if value is MISSING:
                found.pop(name, None)
            else:
                found[name] = value
        for (thing, name), value in zip(self.slots, rest[len(self.names) :], strict=True):
            object.__setattr__(thing, name, value)
        for found, content in self.sets:
            if isinstance(found, set):
                found.clear()
                found.update(content)
        for array, saved in self.arrays:
            if array.flags.writeable:
                array[...] = saved

    def _sizes(self) -> list[int]:
        return list(map(len, chain(self.dicts, self.sequences, self.proxies)))

    def _contents(self) -> Iterator:
        """Everything held, in an order that the sizes divide."""
        return chain(
            chain.from_iterable(map(dict.values, self.dicts)),
            chain.from_iterable(self.sequences),
            chain.from_iterable(map(MappingProxyType.values, self.proxies)),
            chain.from_iterable(self.dicts),
            chain.from_iterable(self.proxies),
            map(content_of, self.cells),
            chain.from_iterable(map(FUNCTION, self.functions)),
            map(dict.get, *self.named, repeat(MISSING)),
            (getattr(thing, name, MISSING) for thing, name in self.slots),
        )


def content_of(cell: CellType):
    """What a variable of an enclosing function holds, or MISSING."""
    try:
        return cell.cell_contents
    except ValueError:  # of an empty cell, whose variable has no value yet
        return MISSING
