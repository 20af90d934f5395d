"""The state that a program reads and changes besides its arguments: everything reachable from its objects.

A model or guide does not only read tensors, but also attributes, modes, hooks, globals, and the contents of lists and
dicts. :class:`State` collects all of these. It separates tensors, whose values are read whenever a graph runs, from a
hashable signature of everything else. Two states with the same signature only differ in the values of their tensors.
"""

import dis
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial, partialmethod
from itertools import chain
from operator import is_
from types import (
    CellType,
    CodeType,
    EllipsisType,
    FunctionType,
    MethodType,
    ModuleType,
    NoneType,
    NotImplementedType,
)

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pplmodels.infer.compile.watched import MISSING, Watched, content_of
from pplmodels.rng import (
    Generator,
    get_generator_state,
    get_rng_state,
    set_generator_state,
    set_rng_state,
)

LIMIT = 50_000  # maximum number of visited objects; all others are compared by identity
ARRAY = 1_000_000  # maximum size in bytes of arrays that are compared by content
VALUES: tuple[type, ...] = (bool, int, float, complex, str, bytes, range, NoneType, EllipsisType, NotImplementedType)
VALUES += (torch.dtype, torch.device, torch.layout, torch.memory_format)
# Instances of these libraries' classes are compared by identity, unless WALKED names their module. Their classes and
# functions are assumed not to change.
LIBRARIES = {*sys.stdlib_module_names, "builtins", "torch", "torchvision", "pyro", "numpy", "scipy", "pandas"}
LIBRARIES |= {"matplotlib", "PIL", "tqdm", "tensorboard", "sklearn", "networkx", "xarray", "arviz", "IPython"}
WALKED = ("torch.nn", "torch.distributions", "pyro", "argparse", "types", "collections", "dataclasses", "functools")
CONTEXT = "pyro.nn.module._Context"  # a cache that is empty between calls
TENSOR = {"unconstrained"}  # an attribute that Pyro sets on the values of parameters
UNREAD = {  # attributes that a step does not read: hooks for saving and loading, and the flag of argument checks
    "_validate_args",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_non_persistent_buffers_set",
}


class State:
    """Everything that can be reached from some objects.

    The traversal visits modules, functions (their closures, defaults and globals), bound methods, partials, lists,
    dicts, sets, classes and plain objects, and also distributions and handlers of torch and Pyro. Objects of other
    libraries are compared by identity.

    Arguments:
        roots: the objects by name.
        known: another state. Objects in it are referred to and not visited again.
        hooks: whether to include the hooks of modules.

    Attributes:
        tensors: every tensor, once, in an order that is determined by the signature.
        signature: everything else in hashable form: values with their types, structure, classes and functions, the
            identities of objects and tensors, and each tensor's shape, strides, dtype, device and ``requires_grad``.
    """

    def __init__(self, roots: Mapping[str, object], known: "State | None" = None, hooks: bool = True):
        self.tensors: list[Tensor] = []
        self.generators: list[Generator] = []
        self.arrays: list[tuple[np.ndarray, int]] = []
        self.iterators: list[int] = []
        self.unsupported: list[int] = []  # places of tensors of other classes and layouts
        self._known, self._hooks = known, hooks
        self._names: list[tuple[int, str]] = []  # for each part, the place of its holder and its name there
        self._held: list = []  # keeps objects alive, so that ids in the signature stay unique
        self._seen: dict[int, int] = {}
        self._places: dict[int, list] = {}
        self._watched = Watched()
        self._waiting: deque = deque((thing, -1, name) for name, thing in roots.items())
        parts: list = [tuple(roots)]
        self._names.append((-1, ""))
        while self._waiting:
            thing, holder, name = self._waiting.popleft()
            self._names.append((holder, name))
            parts.append(self._part(thing, len(parts)))
        self.signature = (*parts, _shared_storage(self.tensors))
        self._kinds, self._memory = list(map(kind_of, self.tensors)), list(map(Tensor.data_ptr, self.tensors))
        self._watched.remember()

    def unchanged(self) -> bool:
        """Whether a new traversal would find the identical tensors and the same signature."""
        same_kinds = list(map(kind_of, self.tensors)) == self._kinds
        same_memory = list(map(Tensor.data_ptr, self.tensors)) == self._memory
        return same_kinds and same_memory and self._watched.unchanged()

    def restore_bindings(self) -> None:
        """Restore the objects that dicts, lists, sets, cells and attributes held."""
        self._watched.restore()

    def can_rebind(self, index: int) -> bool:
        """Whether a tensor can be replaced in its holder: an attribute, list, dict or variable, or a tuple in one."""
        return bool(self._watched.places(self.tensors[index]))

    def rebind(self, tensors: Mapping[int, Tensor]) -> None:
        """Replace tensors, given by their indices, in their holders."""
        for index, tensor in tensors.items():
            if index not in self._places:
                self._places[index] = self._watched.places(self.tensors[index])
            for place in self._places[index]:
                self._watched.exchange(place, self.tensors[index], tensor)
            self._seen[id(tensor)] = self._seen.pop(id(self.tensors[index]))
            self.tensors[index], self._memory[index] = tensor, tensor.data_ptr()

    def holds(self, thing) -> bool:
        """Whether this object has been visited."""
        return id(thing) in self._seen

    def names(self, places: list[int]) -> str:
        """The names of several parts, joined by commas."""
        return ", ".join(map(self.name, places))

    def large_arrays(self, size: int) -> list[int]:
        """The places of NumPy arrays with more than ``size`` entries."""
        return [place for array, place in self.arrays if array.size > size]

    def get_rng_state(self) -> list:
        """The states of the random generators that were found."""
        return list(map(get_generator_state, self.generators))

    def difference(self, other: "State") -> str:
        """The name of the first difference to another state and a description of it; "" if there is none."""
        for place, (mine, its) in enumerate(zip(self.signature[:-1], other.signature[:-1], strict=False)):
            if mine != its:
                return f"{self.name(place)}{_how(mine, its)}"
        if self.signature == other.signature:
            return ""
        return "the memory shared by tensors" if len(self.signature) == len(other.signature) else "the number of values"

    def changed_numbers(self, other: "State") -> list[str]:
        """The names of the plain numbers that differ from another state, if there are no other differences."""
        *mine, memory = self.signature
        *its, other_memory = other.signature
        if len(mine) != len(its) or memory != other_memory:
            return []
        places = [i for i, (a, b) in enumerate(zip(mine, its, strict=True)) if a != b]
        numbers = all(_number(mine[i]) and _number(its[i]) for i in places)
        return [self.name(i) + _how(its[i], mine[i]) for i in places] if numbers else []

    def name(self, place: int) -> str:
        """The path of a part from the roots, such as ``model.net.weight``."""
        holder, name = self._names[place]
        return name if holder < 0 else self.name(holder) + name

    def tensor_name(self, index: int) -> str:
        """The path of a tensor from the roots."""
        return self.name(self._seen[id(self.tensors[index])])

    def _part(self, thing, place: int):
        """The part of the signature for a thing. Everything that it holds is queued."""
        kind: type = type(thing)
        if kind in VALUES or isinstance(thing, np.generic):
            return kind, thing if thing == thing else "nan", str(thing)  # distinguishes 0.0 and -0.0
        if self._known is not None and (at := self._known._seen.get(id(thing))) is not None:
            return "known", at
        if (at := self._seen.get(id(thing))) is not None:
            if isinstance(thing, Tensor) and self._names[at][0] < 0:  # prefer the holder's name over a root's
                self._names[at] = self._names[-1]
            return "again", at
        self._seen[id(thing)] = place
        self._held.append(thing)
        if isinstance(thing, Tensor):
            return self._tensor(thing, place)
        if isinstance(thing, Iterator):
            self.iterators.append(place)
            return _Same(thing)
        if len(self._seen) > LIMIT:
            return _Same(thing)
        look = _look(kind)
        return look(self, thing, place) if look else _Same(thing)

    def _tensor(self, thing: Tensor, place: int):
        if type(thing) not in (Tensor, nn.Parameter) or thing.layout is not torch.strided or thing.is_nested:
            self.unsupported.append(place)
            return _Same(thing)
        self.tensors.append(thing)
        if thing.is_leaf and thing.requires_grad:
            self._watched.slots.append((thing, "_backward_hooks"))
            self._waiting.append((thing._backward_hooks, place, "'s hooks"))
        attributes = {name: value for name, value in vars(thing).items() if name not in TENSOR}
        if attributes:
            self._watched.dicts.append(vars(thing))
            self._enter(attributes.values(), place, [f".{name}" for name in attributes])
        return kind_of(thing), *attributes

    def _enter(self, things, place: int, names) -> None:
        self._waiting.extend((thing, place, name) for thing, name in zip(things, names, strict=True))

    def _sequence(self, thing: tuple | list | deque, place: int):
        self._enter(thing, place, [f"[{i}]" for i in range(len(thing))])
        if not isinstance(thing, tuple):
            self._watched.sequences.append(thing)
        return _Same(type(thing)), len(thing), self._attributes(thing, place)

    def _dict(self, thing: dict, place: int, attributes: bool = False):
        self._watched.dicts.append(thing)
        for key, value in thing.items():
            if not (attributes and key in UNREAD):
                self._waiting.append((value, place, f".{key}" if attributes else f"[{key!r}]"))
        own = None if attributes else self._attributes(thing, place)
        return _Same(type(thing)), tuple(_key(key) for key in thing if not (attributes and key in UNREAD)), own

    def _attributes(self, thing, place: int):
        """The attributes of an object of a subclass of list, tuple or dict."""
        attributes = getattr(thing, "__dict__", None)
        return self._dict(attributes, place, attributes=True) if isinstance(attributes, dict) and attributes else None

    def _slice(self, thing: slice, place: int):
        self._enter((thing.start, thing.stop, thing.step), place, (".start", ".stop", ".step"))
        return slice

    def _set(self, thing: set | frozenset, place: int):
        self._watched.sets.append((thing, frozenset(thing)))
        return type(thing), frozenset(map(_key, thing))

    def _array(self, thing: np.ndarray, place: int):
        self.arrays.append((thing, place))
        if thing.nbytes <= ARRAY:
            self._watched.arrays.append((thing, thing.copy()))
        content = _Same(thing) if thing.dtype == object or thing.nbytes > ARRAY else hash(thing.tobytes())
        return np.ndarray, thing.dtype.str, thing.shape, content

    def _function(self, thing: FunctionType, place: int):
        self._watched.functions.append(thing)
        self._enter((thing.__defaults__, thing.__kwdefaults__, vars(thing)), place, ("'s default ", "'s default ", ""))
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            self._waiting.append((cell, place, f"'s {name}"))
        if _is_library(thing):
            return _Same(thing.__code__)
        names, imported = _outside_names(thing.__code__)
        places = [(thing.__globals__, name, name) for name in names]
        found = [value for name in names if isinstance(value := thing.__globals__.get(name), ModuleType)]
        for module in (*found, *(sys.modules[name] for name in imported if name in sys.modules)):
            if not _is_library(module):
                read = [name for name in _names(thing.__code__) if name in vars(module)]
                places += [(vars(module), name, f"{module.__name__}.{name}") for name in read]
        for holder, name, said in places:
            self._watched.names.append((holder, name))
            self._waiting.append((holder.get(name, MISSING), -1, said))
        return _Same(thing.__code__)

    def _cell(self, thing: CellType, place: int):
        self._watched.cells.append(thing)
        self._waiting.append((content_of(thing), place, ""))
        return CellType

    def _method(self, thing: MethodType, place: int):
        self._enter((thing.__self__, thing.__func__), place, ("'s object", ""))
        return MethodType

    def _partial(self, thing: partial | partialmethod, place: int):
        self._enter((thing.func, thing.args, thing.keywords), place, ("", "'s arguments", "'s arguments"))
        return type(thing)

    def _wrapper(self, thing: staticmethod | classmethod | property | cached_property, place: int):
        inner: Callable | None
        if isinstance(thing, property):
            inner = thing.fget
        elif isinstance(thing, cached_property):
            inner = thing.func
        else:
            inner = thing.__func__
        self._waiting.append((inner, place, ""))
        return type(thing)

    def _reference(self, thing: weakref.ref, place: int):
        self._waiting.append((thing(), place, ""))
        return weakref.ref

    def _class(self, thing: type, place: int):
        if not _is_library(thing):
            self._watched.classes.append(thing)
            self._waiting.extend((base, -1, base.__qualname__) for base in thing.__mro__[1:])
            for key, value in vars(thing).items():
                self._waiting.append((value, place, f".{key}"))
        return _Same(thing)

    def _random(self, thing: Generator, place: int):
        self.generators.append(thing)
        return _Same(thing)

    def _module(self, thing: nn.Module, place: int):
        self._watched.dicts.append(vars(thing))
        keys: list[object] = []
        for key, value in vars(thing).items():
            if key in UNREAD or (not self._hooks and "_hook" in key):
                continue
            if isinstance(value, dict) and key.startswith("_"):  # parameters, buffers, modules and hooks
                self._watched.dicts.append(value)
                keys.append((key, *map(_key, value)))
                for name, held in value.items():
                    self._waiting.append((held, place, f".{name}"))
            else:
                keys.append(key)
                self._waiting.append((value, place, f".{key}"))
        self._waiting.append((type(thing), -1, type(thing).__qualname__))
        return _Same(type(thing)), *keys

    def _instance(self, thing, place: int):
        slots = [name for kind in type(thing).__mro__ for name in _slots(kind) if hasattr(thing, name)]
        self._watched.slots.extend((thing, name) for name in slots)
        self._enter([getattr(thing, name) for name in slots], place, [f".{name}" for name in slots])
        attributes = getattr(thing, "__dict__", None)
        keys = self._dict(attributes, place, attributes=True) if isinstance(attributes, dict) else None
        self._waiting.append((type(thing), -1, type(thing).__qualname__))
        return _Same(type(thing)), tuple(slots), keys


_LOOKS = (  # the first match is used
    (nn.Module, State._module),
    ((tuple, list, deque), State._sequence),
    (slice, State._slice),
    (dict, State._dict),
    ((set, frozenset), State._set),
    (FunctionType, State._function),
    (CellType, State._cell),
    (MethodType, State._method),
    ((partial, partialmethod), State._partial),
    ((staticmethod, classmethod, property, cached_property), State._wrapper),
    (np.ndarray, State._array),
    (weakref.ref, State._reference),
    (type, State._class),
    (threading.local, State._instance),
    (Generator, State._random),
)


@lru_cache(maxsize=10_000)
def _look(kind: type) -> Callable | None:
    """The method that visits objects of a class; None if they are only compared by identity."""
    for base, look in _LOOKS:
        if issubclass(kind, base):
            return look
    name = f"{kind.__module__}.{kind.__qualname__}"
    walked = not _is_library(kind) or name.startswith(WALKED)
    return State._instance if walked and name != CONTEXT and not issubclass(kind, ModuleType) else None


class Values:
    """A copy of the values of tensors and of Pyro's parameter store, which can be restored."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.store = {name: dict(entries) for name, entries in vars(pyro.get_param_store()).items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for tensor, value in self.tensors:
            if not torch.equal(tensor, value):
                tensor.data.copy_(value)  # .data, so that pending backward passes stay valid
        for name, entries in vars(pyro.get_param_store()).items():
            if not _same_entries(entries, self.store[name]):
                entries.clear()
                entries.update(self.store[name])


class Snapshot(Values):
    """:class:`Values` and the states of the random generators."""

    def __init__(self, tensors: list[Tensor], generators: Iterable[Generator] = ()):
        super().__init__(tensors)
        self.states = get_rng_state()
        self.own = [(generator, get_generator_state(generator)) for generator in generators]

    @classmethod
    def of(cls, *states: State) -> "Snapshot":
        """A snapshot of all tensors and generators in some states."""
        tensors = [tensor for state in states for tensor in state.tensors]
        return cls(tensors, [generator for state in states for generator in state.generators])

    def restore(self) -> None:
        """Put them back."""
        super().restore()
        set_rng_state(self.states)
        for generator, state in self.own:
            set_generator_state(generator, state)


def kind_of(tensor: Tensor) -> tuple:
    """The properties of a tensor that affect a graph: all except its values."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def unconstrained(value: Tensor) -> Tensor:
    """The tensor that a parameter's value is computed from, which Pyro keeps with the values of constrained parameters.

    Other values are returned as they are.
    """
    return getattr(value, "unconstrained", lambda: value)()


def tensors_of(modules: list[nn.Module]) -> list[Tensor]:
    """All parameters and buffers of modules and their submodules, without duplicates."""
    found = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return list(found.values())


def _same_entries(one: dict, other: dict) -> bool:
    return len(one) == len(other) and all(map(is_, chain(one, one.values()), chain(other, other.values())))


class _Same:
    """Compares by the identity of an object, which it keeps alive."""

    __slots__ = ("thing",)

    def __init__(self, thing):
        self.thing = thing

    def __eq__(self, other) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def _key(key):
    return (type(key), key) if type(key) in VALUES else _Same(key)


def _slots(kind: type) -> tuple:
    slots = vars(kind).get("__slots__", ())
    return tuple(s for s in ((slots,) if isinstance(slots, str) else slots) if s not in ("__dict__", "__weakref__"))


def _is_library(thing) -> bool:
    """Whether a class, function or module belongs to a library that is assumed not to change."""
    name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    return (name or "").partition(".")[0] in LIBRARIES


@lru_cache(maxsize=10_000)
def _outside_names(code: CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals that a function's code reads or writes and the modules that it imports, including nested code."""
    names: dict[str, None] = {}
    imported: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
            names[instruction.argval] = None
        elif instruction.opname == "IMPORT_NAME":
            imported[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _outside_names(constant)
            names |= dict.fromkeys(inner[0])
            imported |= dict.fromkeys(inner[1])
    return tuple(names), tuple(imported)


def _names(code: CodeType) -> tuple[str, ...]:
    """All names in a function's code, including nested code."""
    return code.co_names + tuple(name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c))


def _shared_storage(tensors: list[Tensor]) -> tuple:
    """For each tensor, the index of the first tensor with the same memory."""
    first: dict[int, int] = {}
    pointers = [t.untyped_storage().data_ptr() for t in tensors] if len(tensors) > 1 else []
    return tuple(first.setdefault(pointer, i) if pointer else i for i, pointer in enumerate(pointers))


def _number(part) -> bool:
    return isinstance(part, tuple) and len(part) == 3 and part[0] is not bool and isinstance(part[1], int | float)


def _how(mine, its) -> str:
    plain = all(isinstance(part, tuple) and len(part) == 3 and part[0] in VALUES for part in (mine, its))
    return f" ({mine[1]!r}, then {its[1]!r})" if plain else ""
