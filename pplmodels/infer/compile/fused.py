"""Fusing the operations of a traced graph with inductor, torch's compiler, in a background process."""

import copy
import hashlib
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor
from filelock import FileLock
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from pplmodels import distributed

SECONDS = 0.05  # of compilation per operation, on two cores
BEGUN = "the step is being fused in the background"
FOLDER = "PPLMODELS_CACHE"  # environment variable with the folder of the cache


class FusionError(RuntimeError):
    """A graph cannot be fused. The message is the reason."""


def cache_folder() -> Path:
    """The folder of fused graphs: ``$PPLMODELS_CACHE``, or ``pplmodels`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pplmodels"
    return Path(os.environ.get(FOLDER) or default)


class Fusion:
    """The fusion of a graph, in a background process of low priority.

    The result, a few megabytes, is kept in :func:`cache_folder` under a key of everything that it depends on: the
    graph, the layouts of its inputs, the number of threads, the versions of torch and Python, and the processor. Random
    operations are not fused: they call torch's kernels.

    Arguments:
        module: a graph of tensor operations. It is copied.
        inputs: tensors like those that it is called with.

    Attributes:
        expected_seconds: of the compilation on two cores.

    Raises :class:`FusionError` if such a graph cannot be fused.
    """

    def __init__(self, module: GraphModule, inputs: Sequence[Tensor]):
        if not hasattr(torch._inductor, "standalone_compile"):
            raise FusionError("fusion needs torch 2.8 or later")
        if distributed.world_size() > 1:
            raise FusionError("several ranks would have to change to the fused step at the same time")
        if any(tensor.device.type != "cpu" for tensor in inputs):
            raise FusionError("only graphs of CPU tensors are fused")
        memory = [tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()]
        if len(set(memory)) < len(memory):
            raise FusionError("two tensors of the step share memory")
        self.expected_seconds = SECONDS * len(module.graph.nodes)
        self._module, self._constants = _lifted(module)
        self._layouts = [_layout(tensor) for tensor in (*inputs, *self._constants)]
        self._path = cache_folder() / f"{_key(self._module, self._layouts)}.bin"
        self._process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Start the background process, unless the fused graph is in the cache.

        Raises :class:`FusionError` if the folder of the cache cannot be created.
        """
        if self._path.exists():
            return
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FusionError(f"the folder {cache_folder()} cannot be created ({error.strerror})") from error
        folder = Path(tempfile.mkdtemp(prefix="pplmodels-fusion-"))
        self._log = folder / "log"
        job = pickle.dumps((_written(self._module), self._layouts, str(self._path), torch.get_num_threads()))
        (folder / "job").write_bytes(job)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import run_job; run_job({str(folder)!r})"],
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(_kernels())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the training only
            )
        self._end = weakref.finalize(self, _end, self._process, folder)

    def is_ready(self) -> bool:
        """Whether the process has ended or, before :meth:`begin`, whether the fused graph is in the cache."""
        return self._path.exists() if self._process is None else self._process.poll() is not None

    def load(self) -> Callable[..., list]:
        """The fused graph, which is called like the module. Raises :class:`FusionError` if the fusion has failed."""
        if self._process is not None:
            code = self._process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines()
            self._end()
            if code or not self._path.exists():
                raise FusionError(lines[-1][:300] if lines else f"the compiler ended with exit code {code}")
        try:
            with _inductor():
                fused = torch._inductor.CompiledArtifact.load(path=str(self._path), format="binary")
        except Exception as error:
            self._path.unlink(missing_ok=True)  # it is compiled again next time
            raise FusionError(f"{type(error).__name__} while the fused graph is loaded") from error
        constants = self._constants
        return lambda *inputs: list(fused(*inputs, *constants))


def _end(process: subprocess.Popen, folder: Path) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # and its compilers
        else:
            process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _lifted(module: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """A copy of a graph in which constants are further inputs, and the constants."""
    module = copy.deepcopy(module)
    graph, constants = module.graph, []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        constants.append(getattr(module, node.target).detach())
        with graph.inserting_after(last):
            last = graph.placeholder(f"constant_{len(constants)}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    module.recompile()
    return GraphModule({}, graph), constants


@dataclass(frozen=True)
class _Name:
    """The name of a node, where it is the argument of another one."""

    name: str


def _written(module: GraphModule) -> list[tuple]:
    """The nodes of a graph without constants, in a form that can be pickled.

    (Pickled GraphModules run operations without tensors among their arguments, such as ``randn``, when they are read.)
    """

    def named(part: Any) -> Any:
        return _Name(part.name) if isinstance(part, Node) else part

    def target(node: Node) -> Any:
        return str(node.target) if isinstance(node.target, OpOverload) else node.target

    return [
        (node.op, node.name, target(node), map_aggregate(node.args, named), map_aggregate(node.kwargs, named))
        for node in module.graph.nodes
    ]


def _read(nodes: list[tuple]) -> GraphModule:
    """The graph whose nodes :func:`_written` returned."""
    graph = Graph()
    known: dict[str, Node] = {}

    def found(part: Any) -> Any:
        return known[part.name] if isinstance(part, _Name) else part

    for op, name, target, args, kwargs in nodes:
        if op == "call_function" and isinstance(target, str):
            target = attrgetter(target)(torch.ops)
        args, kwargs = (map_aggregate(value, found) for value in (args, kwargs))
        known[name] = graph.create_node(op, target, args, kwargs, name)
    return GraphModule({}, graph)


def _layout(tensor: Tensor) -> tuple[tuple, tuple, torch.dtype]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _key(module: GraphModule, layouts: list) -> str:
    parts = module.code, layouts, torch.get_num_threads(), torch.__version__, sys.version, _processor()
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _processor() -> str:
    """A description of the instructions that kernels compiled for this processor may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"


def _kernels() -> Path:
    return cache_folder() / "kernels"


@contextmanager
def _inductor() -> Iterator[None]:
    """Inductor's cache is ours inside this context, so that fused graphs and their kernels are in one place."""
    with patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(_kernels())}):
        yield


def run_job(folder: str) -> None:
    """Fuse the graph of a job's folder and write the result to the cache: the program of the background process."""
    if hasattr(os, "nice"):
        os.nice(19)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    nodes, layouts, path, threads = pickle.loads((Path(folder) / "job").read_bytes())  # written by the parent
    torch.set_num_threads(threads)
    try:
        with FileLock(f"{path}.lock"):  # another process may be fusing the same graph
            if not Path(path).exists():
                _fuse(_read(nodes), layouts, path)
    except Exception as error:
        traceback.print_exc()
        lines = [line for line in str(error).splitlines() if line.strip()]
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else ''}")


def _fuse(module: GraphModule, layouts: list, path: str) -> None:
    import torch._inductor.compile_fx  # takes seconds; without it, some of torch's modules import in a circle

    inputs: list[Any] = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in layouts]
    # random operations call torch's kernels, whose numbers are those of the replayed graph
    with torch.no_grad(), torch._inductor.config.patch(fallback_random=True):
        fused = torch._inductor.standalone_compile(module, inputs, dynamic_shapes="from_example_inputs")
    fused.save(path=path, format="binary")


def _end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
