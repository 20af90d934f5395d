"""Collective operations for data-parallel training.

``torchrun`` starts the processes (ranks) and :func:`process_group` connects them. Without torchrun there is one rank,
and every operation in this module is a no-op.
"""

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.library import custom_op

from pplmodels.errors import InputError, RankLostError
from pplmodels.states import filled, named, packed, unpacked


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes started by torchrun, with NCCL for CUDA tensors and gloo for CPU tensors."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, number, size = next(dist.rendezvous("env://"))
    dist.init_process_group(store=_fresh_store(store, number, size), rank=number, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _fresh_store(store: dist.Store, number: int, size: int) -> dist.Store:
    """A part of torchrun's store that only the current ranks use.

    torchrun's store outlives the ranks: after a restart, it still holds the addresses of the previous ranks, and a
    rank that reads such a stale address hangs. So each rank writes a new name, and all continue once all ranks have
    read the same names.
    """
    store.set(f"name/{number}", uuid.uuid4().hex)
    while True:
        names = [name.decode() for name in store.multi_get([f"name/{other}" for other in range(size)])]
        store.set(f"seen/{number}", " ".join(names))
        if len(set(store.multi_get([f"seen/{other}" for other in range(size)]))) == 1:
            return dist.PrefixStore(names[0], store)
        time.sleep(0.02)


_alone = False  # whether this rank currently runs inside alone()


@contextmanager
def alone() -> Iterator[None]:
    """Inside this context the world size is 1, so that one rank can run code that the other ranks do not run."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this rank, from 0. Only rank 0 writes files and prints messages."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_restart() -> bool:
    """Whether torchrun has restarted the ranks, because one of them ended or the set of machines changed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return flag if world_size() == 1 else bool(all_reduce(torch.tensor(float(flag))))


def barrier() -> None:
    """Wait until all ranks have reached this call."""
    if world_size() > 1:
        with _translate_errors():
            dist.barrier()


def shard(length: int) -> slice:
    """This rank's slice of a sequence of ``length`` items. The ranks' slices differ in length by at most one."""
    bounds = [length * number // world_size() for number in (rank(), rank() + 1)]
    return slice(*bounds)


def check_divisible(batch_size: int) -> None:
    """Raise :class:`pplmodels.errors.InputError` if a batch cannot be divided equally between the ranks."""
    if batch_size % world_size():
        raise InputError(f"batches of {batch_size} images cannot be divided equally between {world_size()} ranks.")


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all ranks of tensors of the same shape. Gradients are summed over all ranks, too.

    It can be part of a compiled step. All ranks must call it equally often and in the same order.
    """
    return tensor if world_size() == 1 else _sum(tensor)


@custom_op("pplmodels::all_reduce", mutates_args=())  # a custom op, so that it can be traced
def _sum(tensor: Tensor) -> Tensor:
    summed = tensor.clone(memory_format=torch.contiguous_format)
    with _translate_errors():
        dist.all_reduce(summed)
    return summed


_sum.register_autograd(lambda ctx, grad: _sum(grad))


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's tensor, on every rank. Like :func:`all_reduce`, it can be part of a compiled step."""
    return all_reduce(tensor if rank() == 0 else torch.zeros_like(tensor))


def all_reduce_list(tensors: Sequence[Tensor]) -> list[Tensor]:
    """:func:`all_reduce` of several tensors of the same device and dtype, in a single operation."""
    if world_size() == 1:
        return list(tensors)
    bucket = torch.cat([tensor.flatten() for tensor in tensors])
    with _translate_errors():
        dist.all_reduce(bucket)
    parts = bucket.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def all_gather(rows: Tensor) -> Tensor:
    """The tensors ``(N_r, ...)`` of all ranks, concatenated, on every rank."""
    if world_size() == 1:
        return rows
    lengths = _all(torch.tensor(len(rows), device=rows.device))
    padded = rows.new_zeros(max(map(int, lengths)), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[: int(length)] for part, length in zip(_all(padded), lengths, strict=True)])


def _all(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks, which must have the same shape."""
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _translate_errors():
        dist.all_gather(parts, tensor)
    return parts


@torch.no_grad()
def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Copy the values of rank 0 to all ranks, in place."""
    if world_size() > 1:
        with _translate_errors():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def all_gather_object(value) -> list:
    """A list of all ranks' values, on every rank: tensors and plain values, nested in the same way on all of them."""
    if world_size() == 1:
        return [value]
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    state = {"value": value, "rank": torch.tensor(rank())}  # safetensors 0.4 writes no file without a tensor
    sent = torch.frombuffer(bytearray(packed(named(state))), dtype=torch.uint8).to(device)
    lengths = [int(length) for length in _all(torch.tensor(len(sent), device=device))]
    parts = [part.cpu().numpy().tobytes() for part in all_gather(sent).split(lengths)]
    return [filled(state, unpacked(part))["value"] for part in parts]


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Replace torch's errors about a lost rank by :class:`RankLostError`."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError("another rank has exited or does not respond.") from error
