"""Time one training step of stock Pyro, of this library (uncompiled and compiled) and of handwritten torch code."""

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
from handwritten import HandwrittenStep, air3d_losses, air_losses, draw_losses, map_losses, vae_losses, vq_losses
from pyro.infer import TraceGraph_ELBO
from torch.utils.flop_counter import FlopCounterMode

from guides import AIR3DGuide, AIRGuide, DRAWGuide, EmptyGuide, MLPGuide, VQGuide
from pplmodels import AIR, AIR3D, DRAW, MLPVAE, VQVAE, GatedPixelCNN, PixelCNN
from pplmodels.data import make_tabletop_scenes
from pplmodels.infer import NVIL_ELBO, SVI, SummedOut_ELBO, adam
from pplmodels.io import write_json
from pplmodels.machine import resolve_device
from pplmodels.nn.renderer import KINDS, Renderer
from pplmodels.training import cli
from pplmodels.training.options import Parser, positive_int
from pplmodels.training.run import describe_device, versions

WARM, BLOCK = 3, 10  # consecutive untimed and timed steps of one implementation per turn
RESULT = Path(__file__).parent.parent / "results" / "benchmark.json"
WIDTHS = (512, 256, 128)  # widths of fully connected networks that are common in published code


def _pair_of_nets() -> tuple[MLPVAE, MLPGuide]:
    return MLPVAE(hidden_dims=WIDTHS[::-1], activation="relu"), MLPGuide(hidden_dims=WIDTHS, activation="relu")


def _draw_pair(num_steps: int = 16) -> tuple[DRAW, DRAWGuide]:
    model = DRAW(num_steps=num_steps, write_window=5)
    return model, DRAWGuide(model, read_window=2)


def _vq_pair() -> tuple[VQVAE, VQGuide]:
    model = VQVAE(dim=64, channels=64)
    return model, VQGuide(model, channels=64)


def _bits(*shape: int) -> torch.Tensor:
    return torch.rand(shape).round()


@dataclass(frozen=True)
class Case:
    """A pair, its handwritten losses, a function that creates a batch of a given size, and the batch sizes."""

    build: Callable
    losses: Callable
    images: Callable[[int], torch.Tensor]
    batches: tuple[int, ...]


def _scenes(n: int) -> torch.Tensor:
    return make_tabletop_scenes(n)[:]


def _codes(n: int) -> torch.Tensor:
    return torch.randint(128, (n, 8, 8))


CASES = {
    "air": Case(
        lambda: (AIR(), AIRGuide()),
        air_losses,
        lambda n: torch.rand(n, 1, 50, 50) * (torch.rand(n, 1, 50, 50) > 0.9),
        (64, 256),
    ),
    "air3d": Case(lambda: (AIR3D(), AIR3DGuide()), air3d_losses, _scenes, (64,)),
    "vae": Case(_pair_of_nets, vae_losses, lambda n: _bits(n, 1, 28, 28), (128, 512)),
    "draw": Case(_draw_pair, draw_losses, lambda n: _bits(n, 1, 28, 28), (128,)),
    "vq-vae": Case(_vq_pair, vq_losses, lambda n: torch.rand(n, 3, 32, 32).mul(255).round() / 255, (64,)),
    "pixelcnn": Case(lambda: (PixelCNN(size=3), EmptyGuide()), map_losses, _codes, (128,)),
    "gated pixelcnn": Case(lambda: (GatedPixelCNN(size=3), EmptyGuide()), map_losses, _codes, (128,)),
}


def steps_of(case: str, device: torch.device) -> dict[str, Callable]:
    """The step function of each implementation, on its own copy of the same weights."""
    pyro.set_rng_seed(0)
    modules = tuple(module.to(device) for module in CASES[case].build())
    ways = {}
    for name in ("handwritten", "compiled", "uncompiled", "stock"):
        model, guide = copy.deepcopy(modules)
        if name == "stock":
            # a name of its own: stock Pyro keeps all parameters in one global store
            svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceGraph_ELBO())
            ways[name] = lambda x, svi=svi: svi.step(x) / len(x)
        elif name == "handwritten":
            ways[name] = HandwrittenStep(CASES[case].losses, model, guide, adam(model, guide, 1e-3)).step
        else:
            ways[name] = SVI(model, guide, adam(model, guide, 1e-3), compile=name == "compiled").step
    if case == "vae" and device.type == "cpu" and (numpyro_step := _numpyro_step()):
        ways["numpyro"] = numpyro_step
    return ways


def _numpyro_step() -> Callable | None:
    """The step of NumPyro's jitted SVI on the same networks, or None if numpyro is not installed."""
    try:
        from numpyro_vae import NumPyroStep
    except ImportError:
        return None
    return NumPyroStep().step


def measure(case: str, batch: int, device: torch.device, rounds: int) -> dict:
    """Median milliseconds per step of each implementation, taken in turns; tracing time; peak memory; lower bound."""
    x = CASES[case].images(batch).to(device)
    ways = steps_of(case, device)
    first, losses = {}, {}
    for name, step in ways.items():
        pyro.set_rng_seed(1)
        begun = time.perf_counter()
        losses[name] = float(step(x))
        first[name] = time.perf_counter() - begun
    exact = {name: loss for name, loss in losses.items() if name != "numpyro"}
    assert max(exact.values()) - min(exact.values()) < 1e-5 * abs(losses["stock"]), losses
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            for number in range(WARM + BLOCK):  # the first steps of a turn refill the cache
                _synchronize(device)
                begun = time.perf_counter()
                step(x)
                _synchronize(device)
                if number >= WARM:
                    times[name].append(1e3 * (time.perf_counter() - begun))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "case": case,
        "batch": batch,
        "step_ms": medians,
        "stock_over_compiled": medians["stock"] / medians["compiled"],
        "compiled_over_handwritten": medians["compiled"] / medians["handwritten"],
        "trace_seconds": first["compiled"],
        "peak_bytes": {name: peak_bytes(ways[name], x) for name in ("uncompiled", "compiled")},
        "parts_ms": parts(ways["compiled"].__self__, ways["handwritten"].__self__, x, device),
        "floor_ms": floor(case, ways["handwritten"], x),
        "one_image_ms": 1e3 * _seconds(lambda: ways["handwritten"](x[:1]), device),
    }


def parts(compiled: SVI, by_hand: HandwrittenStep, x: torch.Tensor, device: torch.device) -> dict[str, float]:
    """Milliseconds spent in each part of a compiled step and of a handwritten step."""
    compiled.step(x)
    loss, images = compiled.evaluate_loss(x), len(x)
    optimizer = 1e3 * _seconds(lambda: compiled._update(loss, images), device)

    def gradients() -> None:
        compiled.optim.zero_grad(set_to_none=True)  # as in a step, which frees the old gradients
        compiled.gradients(x)

    def forward_backward() -> None:
        by_hand.optim.zero_grad(set_to_none=True)
        by_hand.losses(by_hand.model, by_hand.guide, x)[1].backward()

    return {
        "signature and graph": 1e3 * _seconds(gradients, device),
        "optimizer": optimizer,
        "by hand: forward and backward": 1e3 * _seconds(forward_backward, device),
        "by hand: optimizer": 1e3 * _seconds(by_hand.optim.step, device),
    }


def peak_bytes(step: Callable, x: torch.Tensor) -> int:
    """The peak memory of one step, relative to the memory held before it."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(x)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(x)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def long_draw(device: torch.device) -> dict[str, float]:
    """Time and peak memory of a compiled step of DRAW with attention, with the paper's 64 steps and batch size 128."""
    model, guide = (module.to(device) for module in _draw_pair(64))
    svi = SVI(model, guide, adam(model, guide, 1e-3), compile=True)
    x = torch.rand(128, 1, 28, 28, device=device).round()
    svi.step(x)
    return {"step_ms": 1e3 * _seconds(lambda: svi.step(x), device), "peak_bytes": peak_bytes(svi.step, x)}


def comparing(device: torch.device, steps: int = 10_000) -> dict[str, float]:
    """The share of ``steps`` AIR steps that is spent comparing graph and program at calls 2, 4, 8, ... (batch 64)."""
    model, guide = (module.to(device) for module in CASES["air"].build())
    step = SVI(model, guide, adam(model, guide, 1e-3), compile=True).step
    x = CASES["air"].images(64).to(device)
    seconds = []
    for _ in range(256):
        _synchronize(device)
        begun = time.perf_counter()
        step(x)
        _synchronize(device)
        seconds.append(time.perf_counter() - begun)
    compared = {2**power for power in range(1, 9)}
    plain = statistics.median(s for call, s in enumerate(seconds, 1) if call > 1 and call not in compared)
    comparison = statistics.median(seconds[call - 1] for call in compared) - plain
    return {
        "step_ms": 1e3 * plain,
        "comparison_ms": 1e3 * comparison,
        "share": int(math.log2(steps)) * comparison / (steps * plain),
        "share_with_first_step": (int(math.log2(steps)) * comparison + seconds[0]) / (steps * plain),
        "first_step_s": seconds[0],
        "steps": steps,
    }


def sampling(device: torch.device) -> dict[str, float]:
    """Seconds to sample 100 maps of 8 x 8 from each PixelCNN, with cached activations and with 64 full passes."""
    seconds = {}
    for model in (PixelCNN(size=3).to(device), GatedPixelCNN(size=3).to(device)):
        codes = torch.zeros(100, 8, 8, dtype=torch.int64, device=device)

        @torch.no_grad()
        def naive(model=model, codes=codes) -> None:
            for position in range(64):
                logits = model.network(codes).flatten(2)[..., position]
                codes.flatten(1)[:, position] = torch.distributions.Categorical(logits=logits).sample()

        name = type(model).__name__
        seconds[name] = _seconds(lambda model=model: model.p_x().sample((100,)), device)
        seconds[f"{name}, full passes"] = _seconds(naive, device)
    return seconds


def rendering(device: torch.device, scenes: int = 64, solids: int = 3) -> dict:
    """Milliseconds to render scenes of 32 x 32 pixels, without and with the backward pass."""
    renderer = Renderer().to(device)
    place, yaw = torch.randn(scenes, solids, 2, device=device), torch.randn(scenes, solids, device=device)
    kind, present = (
        torch.randint(len(KINDS), (scenes, solids), device=device),
        torch.ones(scenes, solids, device=device),
    )
    pose = [value.requires_grad_() for value in (place, yaw)]

    def forward() -> torch.Tensor:
        return renderer(present, kind, *pose).square().sum()

    return {
        "scenes": scenes,
        "solids": solids,
        "forward_ms": 1e3 * _seconds(forward, device),
        "forward_backward_ms": 1e3 * _seconds(lambda: torch.autograd.grad(forward(), pose), device),
    }


def by_objects(device: torch.device, rounds: int) -> list[dict]:
    """Time and peak memory of AIR's compiled step, by estimator and maximum number T of objects.

    The scenes have 64x64 pixels and three channels, and the model a background per scene and occlusion. The variants
    take turns, like the implementations in :func:`measure`.
    """
    x = torch.rand(64, 3, 64, 64, device=device)
    steps, rows = [], []
    for number in (2, 4, 8):
        sizes = {"canvas": (3, 64, 64), "num_steps": number, "window": 16, "background_model": "scene"}
        row: dict = {"T": number}
        for name, elbo in (("reinforce", NVIL_ELBO), ("summed-out", SummedOut_ELBO)):
            pair = AIR(**sizes, occlusion=True).to(device), AIRGuide(**sizes).to(device)
            step = SVI(*pair, adam(*pair, 1e-3), elbo(), compile=True).step
            step(x)
            row[f"{name}, MB"] = peak_bytes(step, x) / 1e6
            steps.append((row, f"{name}, ms", step))
        rows.append(row)
    times: dict[int, list[float]] = {index: [] for index in range(len(steps))}
    for _ in range(rounds):
        for index, (_, _, step) in enumerate(steps):
            times[index].append(1e3 * _seconds(lambda step=step: step(x), device))
    for index, (row, name, _) in enumerate(steps):
        row[name] = statistics.median(times[index])
    return rows


def floor(case: str, step: Callable, x: torch.Tensor) -> dict[str, float]:
    """Lower bounds of a step's milliseconds: its matrix arithmetic at the rate of a large product, and its parameter
    traffic (read twice, gradient written, Adam's seven passes) at the bandwidth of a large copy."""
    with FlopCounterMode(display=False) as counter:
        step(x)
    a = torch.rand(2048, 2048, device=x.device)
    flops = 2 * 2048**3 / _seconds(lambda: a @ a, x.device)
    big, copy_of_big = torch.rand(2, 2**25, device=x.device)
    bandwidth = 2 * 4 * 2**25 / _seconds(lambda: copy_of_big.copy_(big), x.device)
    parameters = sum(p.numel() for module in CASES[case].build() for p in module.parameters())
    return {
        "arithmetic": 1e3 * counter.get_total_flops() / flops,
        "traffic": 1e3 * 10 * 4 * parameters / bandwidth,
        "gflops": flops / 1e9,
        "gbytes_per_second": bandwidth / 1e9,
    }


def _seconds(work: Callable, device: torch.device) -> float:
    times = []
    for _ in range(12):
        _synchronize(device)
        begun = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> None:
    """Measure all cases and write results/benchmark.json."""
    parser = Parser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto uses CUDA if available")
    parser.add_argument("--rounds", type=positive_int, default=6, help="turns per implementation")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="pairs to measure")
    parser.add_argument("--out", type=Path, default=RESULT, help="output file")
    parser.add_argument(
        "--renderer", action="store_true", help="benchmark only the renderer of solids, into renderer.json"
    )
    parser.add_argument(
        "--objects", action="store_true", help="benchmark only AIR by the number of objects, into air-objects.json"
    )
    options = parser.parse_args(argv)
    device = resolve_device(options.device)
    special = {}
    if options.renderer:
        special["renderer"] = [rendering(device)]
    if options.objects:
        special["air-objects"] = by_objects(device, options.rounds)
    for name, rows in special.items():
        command = " ".join(["python", *sys.argv])
        described = {"command": command, "device": describe_device(device), "versions": versions(), "rows": rows}
        write_json(options.out.with_name(f"{name}.json"), described)
        print(*rows, sep="\n")
    if special:
        return
    rows = [measure(case, batch, device, options.rounds) for case in options.cases for batch in CASES[case].batches]
    described = {"device": describe_device(device), "versions": versions(), "rounds": options.rounds, "rows": rows}
    if "air" in options.cases:
        described["comparisons"] = comparing(device)
    if "draw" in options.cases:
        described["draw_64_steps"] = long_draw(device)
    if "pixelcnn" in options.cases:
        described["sampling_seconds"] = sampling(device)
    write_json(options.out, described)
    for row in rows:
        print(f"{row['case']}, batch {row['batch']}: {row['step_ms']}")


if __name__ == "__main__":
    cli.run_script(main)
