"""Random numbers that are drawn once and used in two runs of a program."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Recorded(TorchDispatchMode):
    """Records the results of all random operations inside this context, in ``results``."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and keep a copy of a random result, because the program may modify it."""
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.results.append(tree_map_only(Tensor, torch.clone, result))
        return result


class Replayed(TorchDispatchMode):
    """Inside this context, random operations return the results of another run of the same program.

    Arguments:
        results: those of :class:`Recorded`.
    """

    def __init__(self, results: list):
        super().__init__()
        self.results: Iterator = iter(results)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation, or copy the recorded result of a random one."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        if (recorded := next(self.results, None)) is None:
            raise RuntimeError("the pair draws other random numbers in a second run with the same arguments")
        if func._schema.is_mutable:
            return args[0].copy_(recorded)
        # A copy also keeps the compiled step from sharing operations of both runs, which would keep their results.
        return tree_map_only(Tensor, torch.clone, recorded)
