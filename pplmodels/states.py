"""Nested states as named leaves, and these as the bytes of one safetensors file, which cannot run code.

A *leaf* is a tensor, or a number, a word, true, false or null. Tensors are entries of the file, the rest is JSON in its
metadata. A file does not say how its leaves are nested: who reads it has a state of its own to compare with.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

PLAIN = "plain"  # the entry of the metadata that holds what is not a tensor


def named(state, name: str = "") -> dict:
    """The leaves in dicts, lists and tuples by their paths, such as ``model/net.weight``; a leaf's own is ``name``."""
    if not isinstance(state, dict | list | tuple):
        return {name: state}
    return {path: leaf for key, part in _parts(state, name).items() for path, leaf in named(part, key).items()}


def filled(like, leaves: Mapping, name: str = ""):
    """What is nested as ``like`` and has these ``leaves``, by the names that :func:`named` gives them.

    Tensors are copies, on the CPU, in the dtypes and in the order in memory of those of ``like``: an optimizer walks
    through a parameter and what it keeps for it in one order.
    """
    parts = [filled(part, leaves, path) for path, part in _parts(like, name).items()]
    if isinstance(like, dict):
        state = copy.copy(like)  # a module's states are a dict with attributes, the versions of its parts
        state.update(zip(like, parts, strict=True))
        return state
    if isinstance(like, list | tuple):
        return type(like)(parts)
    leaf = leaves[name]
    return torch.empty_like(like, device="cpu").copy_(leaf) if isinstance(like, Tensor) else leaf


def _parts(state, name: str) -> dict:
    """What is directly inside a dict, list or tuple, by its path; nothing is in a leaf."""
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {}
    return {f"{name}/{key}" if name else str(key): part for key, part in state.items()}


def packed(leaves: Mapping) -> bytes:
    """The file of these leaves. Tensors may share memory and have any order in it: each is written as if alone."""
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    plain = {name: leaf for name, leaf in leaves.items() if name not in tensors}
    taken = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in taken else tensor.contiguous()
        taken.add(memory)
    return save(tensors, {PLAIN: json.dumps(plain)} if plain else None)


def unpacked(content: bytes) -> dict:
    """The leaves of what :func:`packed` has returned, from a place that is trusted."""
    length = int.from_bytes(content[:8], "little")
    return load(content) | _plain(json.loads(content[8 : 8 + length]).get("__metadata__"))


def mapped(path: Path) -> dict:
    """The leaves of a file that a stranger may have written; its tensors are parts of the file, not of memory.

    Raises any exception for a file of another form, one whose bytes are not those that its header says among them.
    """
    if not path.is_file():  # a named pipe would be waited for
        raise FileNotFoundError(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors | _plain(file.metadata())


def _plain(metadata: Mapping[str, str] | None) -> dict:
    return json.loads((metadata or {}).get(PLAIN, "{}"))
