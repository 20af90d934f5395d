"""Nested states as named leaves in one safetensors file, which cannot run code.

A *leaf* is a tensor, a number, a string, a boolean or None. Tensors are entries of the file; all other leaves are JSON
in its metadata. The file does not describe the nesting: the reader compares it with a state of its own.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

PLAIN = "plain"  # the metadata entry for leaves that are not tensors


def named(state, name: str = "") -> dict:
    """The leaves of nested dicts, lists and tuples by their paths below ``name``, such as ``model/net.weight``."""
    if not isinstance(state, dict | list | tuple):
        return {name: state}
    return {path: leaf for key, part in _parts(state, name).items() for path, leaf in named(part, key).items()}


def filled(like, leaves: Mapping, name: str = ""):
    """A state nested like ``like`` with the given ``leaves``, named as by :func:`named`.

    Tensors are copied to the CPU, with the dtypes and strides of those in ``like``: a fused optimizer reads a parameter
    and its moments in one memory order.
    """
    parts = [filled(part, leaves, path) for path, part in _parts(like, name).items()]
    if isinstance(like, dict):
        state = copy.copy(like)  # keeps the attributes of state_dict(), its version numbers
        state.update(zip(like, parts, strict=True))
        return state
    if isinstance(like, list | tuple):
        return type(like)(parts)
    leaf = leaves[name]
    return torch.empty_like(like, device="cpu").copy_(leaf) if isinstance(like, Tensor) else leaf


def _parts(state, name: str) -> dict:
    """The direct children of a dict, list or tuple by their paths; empty for a leaf."""
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {}
    return {f"{name}/{key}" if name else str(key): part for key, part in state.items()}


def packed(leaves: Mapping) -> bytes:
    """The bytes of a file with these leaves. Tensors that share memory or are not contiguous are copied."""
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    plain = {name: leaf for name, leaf in leaves.items() if name not in tensors}
    taken = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in taken else tensor.contiguous()
        taken.add(memory)
    return save(tensors, {PLAIN: json.dumps(plain)} if plain else None)


def unpacked(content: bytes) -> dict:
    """The leaves of bytes from :func:`packed`, from a trusted source."""
    length = int.from_bytes(content[:8], "little")
    return load(content) | _plain(json.loads(content[8 : 8 + length]).get("__metadata__"))


def mapped(path: Path) -> dict:
    """The leaves of an untrusted file, with memory-mapped tensors.

    Raises an exception of any type for a file of another format, for example if its size is not that of its header.
    """
    if not path.is_file():  # opening a named pipe would block
        raise FileNotFoundError(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return tensors | _plain(file.metadata())


def _plain(metadata: Mapping[str, str] | None) -> dict:
    return json.loads((metadata or {}).get(PLAIN, "{}"))
