"""The gradients and buffers of the pairs on some images; torchrun starts this file on several ranks."""

import math
import sys
from pathlib import Path

import pyro
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import PAIRS

from pplmodels import distributed
from pplmodels.infer import (
    SVI,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    PerSite_ELBO,
    ReweightedWakeSleep_ELBO,
    adam,
)
from pplmodels.metrics import log_probs

IMAGES = 12


def importance_weighted(model, guide, x):
    """An objective of two particles per image, drawn one after the other, whose surrogate has another value."""
    runs = [log_probs(model, guide, x) for _ in range(2)]
    log_weights = torch.stack([sum(log_p.values()) - sum(log_q.values()) for log_p, log_q, _ in runs])
    bound = log_weights.logsumexp(0) - math.log(2)
    return -bound.sum(), -(log_weights.softmax(0).detach() * log_weights).sum()


LOSSES = {
    "nvil": PerSite_ELBO,
    "summed out": lambda: PerSite_ELBO(estimators={"z_pres": "enum"}),
    "stops and choices summed out": lambda: PerSite_ELBO(estimators={"z_pres": "enum", "z_kind": "enum"}),
    "leave one out": lambda: PerSite_ELBO(estimators={"z_pres": "rloo"}, num_particles=3, max_plate_nesting=1),
    "measure-valued": lambda: PerSite_ELBO(estimators={"z_pres": "mvd"}),
    "free bits": lambda: FreeBits_ELBO(2.0),
    "importance-weighted": lambda: importance_weighted,
    "vimco": lambda: ImportanceWeighted_ELBO(3),
    "gdreg in chunks": lambda: ImportanceWeighted_ELBO(3, "gdreg", chunk=2),
    "wake-sleep": lambda: ReweightedWakeSleep_ELBO(3, insomnia=0.5),
}
CASES = {
    **{name: (name, "nvil") for name in PAIRS},
    "air, summed out": ("air", "summed out"),
    "air, leave one out": ("air", "leave one out"),
    "air, measure-valued": ("air", "measure-valued"),
    "air in 3-d, summed out": ("air in 3-d", "stops and choices summed out"),
    "air in 3-d, stops summed out": ("air in 3-d", "summed out"),
    "ladder vae, free bits": ("ladder vae", "free bits"),
    "ladder vae, importance-weighted": ("ladder vae", "importance-weighted"),
    "ladder vae, gdreg in chunks": ("ladder vae", "gdreg in chunks"),
    "sigmoid belief net, vimco": ("sigmoid belief net", "vimco"),
    "sigmoid belief net, wake-sleep": ("sigmoid belief net", "wake-sleep"),
}


class SharedNoise(TorchDispatchMode):
    """Each random operation draws for the images of all ranks, the same values everywhere; a rank keeps its share."""

    def __init__(self):
        super().__init__()
        self.draws = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.draws += 1
        torch.manual_seed(self.draws)
        mine = distributed.shard(IMAGES)
        if func is torch.ops.aten.randint.low or func is torch.ops.aten.randint.default:
            return func(*args, **kwargs)  # a codebook's candidates, which are rank 0's
        axis = list(args[0].shape).index(mine.stop - mine.start)  # after particles and alternative values
        whole = [
            torch.cat([argument] * distributed.world_size(), axis) if isinstance(argument, Tensor) else argument
            for argument in args
        ]
        drawn = func(*whole, **kwargs).narrow(axis, mine.start, mine.stop - mine.start)
        return args[0].copy_(drawn) if func._schema.is_mutable else drawn


def estimates(case: str) -> dict[str, torch.Tensor]:
    """What the third of three estimates and all before it leave: loss, gradients and buffers."""
    name, loss = CASES[case]
    pyro.set_rng_seed(0)
    x = PAIRS[name].batch(IMAGES)
    pair = torch.nn.ModuleList(PAIRS[name].build())
    svi = SVI(*pair, adam(*pair, 1e-3), LOSSES[loss]())
    with SharedNoise(), pyro.validation_enabled(False):
        for _ in range(3):
            value, images, gradients = svi.gradients(x[distributed.shard(IMAGES)])
    assert images == IMAGES
    parameters = [name for name, _ in pair.named_parameters()]
    found = {"loss": value, **{f"buffer {name}": buffer for name, buffer in pair.named_buffers()}}
    return found | {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    with distributed.process_group():
        for case in CASES:
            found = {name: value.contiguous().clone() for name, value in estimates(case).items()}
            save_file(found, f"{sys.argv[1]}/{case}.{distributed.rank()}")
