"""Collective operations of the processes (ranks) that train one pair together.

``torchrun`` starts the ranks, :func:`process_group` joins them. Without torchrun there is one rank, and every operation
here is a no-op.
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
    """Join the processes that torchrun has started, over NCCL for tensors on CUDA and gloo for others."""
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
    """A part of the store that only these ranks know of.

    torchrun's store outlives the ranks: after a restart the addresses of those that are gone are still there, and who
    read one would wait for ever. So each rank takes a new name, and all go on when all have seen the same names.
    """
    store.set(f"name/{number}", uuid.uuid4().hex)
    while True:
        names = store.multi_get([f"name/{other}" for other in range(size)])
        store.set(f"seen/{number}", b" ".join(names))
        if len(set(store.multi_get([f"seen/{other}" for other in range(size)]))) == 1:
            return dist.PrefixStore(names[0].decode(), store)
        time.sleep(0.02)


_alone = False  # whether this rank does something that the others do not


@contextmanager
def alone() -> Iterator[None]:
    """Inside, there is one rank: for what one of them does while the others go on, who would not answer."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Which of them this is, from 0; rank 0 writes files and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_restart() -> bool:
    """Whether torchrun has started the ranks anew after one of them ended, or as machines came or went."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def any_rank(flag: bool) -> bool:
    """Whether the flag is up on any rank."""
    return flag if world_size() == 1 else bool(all_reduce(torch.tensor(float(flag))))


def barrier() -> None:
    """Go on when all ranks have come here."""
    if world_size() > 1:
        with _translate_errors():
            dist.barrier()


def shard(length: int) -> slice:
    """The part of so many things in a row that is this rank's; the parts differ by one at most."""
    bounds = [length * number // world_size() for number in (rank(), rank() + 1)]
    return slice(*bounds)


def check_divisible(batch_size: int) -> None:
    """Raise :class:`pplmodels.errors.InputError` if the ranks' parts of a batch would differ."""
    if batch_size % world_size():
        raise InputError(f"batches of {batch_size} images have no equal shares for {world_size()} ranks.")


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors of one shape, on every rank; what depends on it sends its gradient to all of them.

    It can be part of a compiled step. All ranks must come to it as often, and in the same order.
    """
    return tensor if world_size() == 1 else _sum(tensor)


@custom_op("pplmodels::all_reduce", mutates_args=())  # an operation of its own, so that it can be traced
def _sum(tensor: Tensor) -> Tensor:
    summed = tensor.clone(memory_format=torch.contiguous_format)
    with _translate_errors():
        dist.all_reduce(summed)
    return summed


_sum.register_autograd(lambda ctx, grad: _sum(grad))


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's tensor, on every rank; as :func:`all_reduce`, it can be part of a compiled step."""
    return all_reduce(tensor if rank() == 0 else torch.zeros_like(tensor))


def all_reduce_list(tensors: Sequence[Tensor]) -> list[Tensor]:
    """:func:`all_reduce` of several tensors of one device and type by one exchange."""
    if world_size() == 1:
        return list(tensors)
    bucket = torch.cat([tensor.flatten() for tensor in tensors])
    with _translate_errors():
        dist.all_reduce(bucket)
    parts = bucket.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def all_gather(rows: Tensor) -> Tensor:
    """The ranks' ``(N_r, ...)`` one after another, on every rank."""
    if world_size() == 1:
        return rows
    lengths = _all(torch.tensor(len(rows), device=rows.device))
    padded = rows.new_zeros(max(map(int, lengths)), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[: int(length)] for part, length in zip(_all(padded), lengths, strict=True)])


def _all(tensor: Tensor) -> list[Tensor]:
    """The ranks' tensors of one shape."""
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _translate_errors():
        dist.all_gather(parts, tensor)
    return parts


@torch.no_grad()
def broadcast_(tensors: Sequence[Tensor]) -> None:
    """Give every rank the values of rank 0, in place."""
    if world_size() > 1:
        with _translate_errors():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def all_gather_object(value) -> list:
    """What each rank holds, in a list on every rank: tensors and plain values, which all of them nest alike."""
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
    """Words for what torch says when a rank is no longer there."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError("another rank has ended, or does not answer.") from error
