"""Seeding, saving and restoring of all random generators of torch, NumPy and Python."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

LARGEST_SEED = 2**63  # largest seed that a user may give
SEEDS = 2**64  # number of seeds that torch's generators accept
Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def seed_all(seed: int) -> None:
    """Seed all generators, like Pyro does. NumPy's generator gets the last 32 bits of the seed.

    ``seed`` is from 0 to 2**64 - 1. Seeds derived from a user's seed must be taken modulo :data:`SEEDS`.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator, in case a guide uses it


def get_rng_state() -> dict:
    """The states of all random generators a program may draw from, as tensors, numbers and words in nested dicts."""
    version, values, spare = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator, in case a guide uses it
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.stack(gpus) if gpus else [],
        "python": {
            "version": version,
            "key": _plain(np.array(values)),
            "has_gauss": spare is not None,
            "gauss": spare or 0.0,
        },
        "numpy": {**numpy_state, "state": {k: _plain(v) for k, v in numpy_state["state"].items()}},
    }


def _plain(value):
    return torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value


def set_rng_state(states: dict) -> None:
    """Restore all generators to the states returned by :func:`get_rng_state`."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    python = states["python"]
    spare = python["gauss"] if python["has_gauss"] else None
    random.setstate((python["version"], tuple(python["key"].tolist()), spare))
    numpy_state = {**states["numpy"], "state": dict(states["numpy"]["state"])}
    numpy_state["state"]["key"] = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002 - as above


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the states of all generators on exit."""
    states = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(states)


def get_generator_state(generator: Generator):
    """The state of a single generator object."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def set_generator_state(generator: Generator, state) -> None:
    """Restore a single generator to the state returned by :func:`get_generator_state`."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
