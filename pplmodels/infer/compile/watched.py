"""Detection and undoing of changes to the contents of Python objects."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from operator import attrgetter, is_, setitem
from types import CellType, FunctionType, MappingProxyType

import numpy as np

MISSING = object()  # stands for what is absent; whether something is absent is recorded separately
FUNCTION = attrgetter("__code__", "__defaults__", "__kwdefaults__")


class Watched:
    """The containers that a state was read from, and their contents.

    Contents are compared by identity, in one pass over all containers of a kind, which takes microseconds.
    """

    def __init__(self):
        self.dicts: list[dict] = []
        self.sequences: list[list | deque] = []
        self.classes: list[type] = []
        self.functions: list[FunctionType] = []
        self.cells: list[CellType] = []
        self.names: list[tuple[dict, str]] = []
        self.slots: list[tuple[object, str]] = []
        self.sets: list[tuple[set | frozenset, frozenset]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []

    def remember(self) -> None:
        """Record the current contents, with which :meth:`unchanged` compares."""
        self.proxies = list(map(vars, self.classes))
        self.named = [found for found, _ in self.names], [name for _, name in self.names]
        self.sizes, self.held = self._sizes(), list(self._contents())

    def unchanged(self) -> bool:
        """Whether all contents are still in their places."""
        return (
            self._sizes() == self.sizes
            and all(map(is_, self._contents(), self.held))
            and all(thing == content for thing, content in self.sets)
            and all(np.array_equal(array, copy) for array, copy in self.arrays)
        )

    def places(self, thing) -> list["Place"]:
        """The places that hold a thing: in a dict, list, variable or global, directly or within a tuple."""
        values = [Place(setitem, d, key, value) for d in self.dicts for key, value in d.items()]
        values += [Place(setitem, s, index, value) for s in self.sequences for index, value in enumerate(s)]
        cells = [Place(setattr, cell, "cell_contents", content_of(cell)) for cell in self.cells]
        names = [Place(setitem, found, name, found.get(name)) for found, name in self.names]
        start = sum(self.sizes) + sum(map(len, chain(self.dicts, self.proxies)))
        starts = (0, values), (start, cells), (start + len(cells) + 3 * len(self.functions), names)
        numbered = [replace(place, at=at) for first, places in starts for at, place in enumerate(places, first)]
        return [place for place in numbered if _is_in(place.value, thing)]

    def exchange(self, place: "Place", old, new) -> None:
        """Replace a thing in its place."""
        place.value = self.held[place.at] = _with(place.value, old, new)
        place.put(place.container, place.key, place.value)

    def restore(self) -> None:
        """Restore the recorded contents."""
        if self.unchanged():
            return
        held = iter(self.held)
        self._restore_containers(held)
        contents = list(islice(held, len(self.cells)))
        for function in self.functions:
            function.__code__, function.__defaults__, function.__kwdefaults__ = islice(held, 3)
        things = list(islice(held, len(self.names)))
        slots = list(islice(held, len(self.slots)))
        for cell, content in zip(self.cells, contents, strict=True):
            if next(held):
                cell.cell_contents = content
            elif has_content(cell):
                del cell.cell_contents
        for (variables, name), thing in zip(self.names, things, strict=True):
            if next(held):
                variables[name] = thing
            else:
                variables.pop(name, None)
        for (owner, name), thing in zip(self.slots, slots, strict=True):
            if next(held):
                object.__setattr__(owner, name, thing)
            elif hasattr(owner, name):
                object.__delattr__(owner, name)
        for members, content in self.sets:
            if isinstance(members, set):
                members.clear()
                members.update(content)
        for array, copy in self.arrays:
            if array.flags.writeable:
                array[...] = copy

    def _restore_containers(self, held: Iterator) -> None:
        """Restore dicts, sequences and classes from their values and keys, the first of the recorded contents."""
        values = [list(islice(held, size)) for size in self.sizes]
        dicts, others = len(self.dicts), len(self.dicts) + len(self.sequences)
        keys = [list(islice(held, size)) for size in (*self.sizes[:dicts], *self.sizes[others:])]
        for entries, names, things in zip(self.dicts, keys, values, strict=False):
            if not _same(entries, names) or not _same(entries.values(), things):
                entries.clear()
                entries.update(zip(names, things, strict=True))
        for sequence, things in zip(self.sequences, values[dicts:], strict=False):
            if not _same(sequence, things):
                sequence.clear()
                sequence.extend(things)
        for kind, names, things in zip(self.classes, keys[dicts:], values[others:], strict=True):
            for name in vars(kind).keys() - set(names):
                delattr(kind, name)
            for name, thing in zip(names, things, strict=True):
                if name not in vars(kind) or vars(kind)[name] is not thing:
                    setattr(kind, name, thing)

    def _sizes(self) -> list[int]:
        return list(map(len, chain(self.dicts, self.sequences, self.proxies)))

    def _contents(self) -> Iterator:
        """All contents: the values counted by :meth:`_sizes`, then the keys of dicts and classes, then the rest.

        The last entries state whether each cell, name and slot has any content.
        """
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
            map(has_content, self.cells),
            map(dict.__contains__, *self.named),
            (hasattr(thing, name) for thing, name in self.slots),
        )


@dataclass
class Place:
    """A place of a thing. ``put(container, key, value)`` replaces it, and ``at`` is its index in ``Watched.held``."""

    put: Callable
    container: object
    key: object
    value: object
    at: int = 0


def content_of(cell: CellType):
    """The content of a closure cell, or MISSING."""
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return MISSING


def has_content(cell: CellType) -> bool:
    """Whether the variable of a closure cell has a value."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _same(found, things: list) -> bool:
    return len(found) == len(things) and all(map(is_, found, things))


def _is_in(value, thing) -> bool:
    return value is thing or (isinstance(value, tuple) and any(_is_in(part, thing) for part in value))


def _with(value, old, new):
    """A value in which ``old``, directly or within nested tuples, is replaced by ``new``."""
    if value is old or not isinstance(value, tuple):
        return new if value is old else value
    parts = [_with(part, old, new) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
