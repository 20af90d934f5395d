"""The base class of models and guides, which can be saved and loaded without the training script."""

import inspect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.runtime import get_plates
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from pplmodels.defaults import default_dtype
from pplmodels.errors import InputError, as_input_error
from pplmodels.io import atomic_write, read_json, write_json
from pplmodels.states import mapped, packed

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11

IMAGE_DIMS = ("channel", "row", "column")  # dimensions
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_PARAMS_PER_TENSOR = 4  # that a constructor may register per saved tensor; it may replace some


class PairModule(PyroModule):
    """A model or a guide: a PyroModule that records its constructor arguments.

    ``role`` ("model" or "guide") names the module's two files in a folder: ``<role>.safetensors`` holds the weights and
    buffers, and ``<role>.json`` the class name and the constructor arguments. Loading these files cannot execute code.
    The shapes of the weights must depend only on the constructor arguments and not on values of tensors, because a
    module is first built on the meta device, without memory, when it is loaded.

    ``dims`` maps the names of sites, without the step number, to the names of their event dimensions. ``coords`` maps
    names of dimensions to the labels of their entries. Functions such as :func:`pplmodels.inspect.posterior` label
    their arrays with both.
    """

    role: str
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    coords: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __new__(cls, *args, **kwargs):
        """Record the arguments of ``__init__``."""
        self = super().__new__(cls)
        signature = inspect.signature(cls)
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        described = {name: value for name, value in arguments.items() if not isinstance(value, torch.nn.Module)}
        object.__setattr__(self, "_arguments", described)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the weights and the constructor arguments into ``folder``, which is created if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {"class": type(self).__name__, "arguments": self._arguments}
        description, weights = files_of(folder, self.role)
        write_json(description, described)
        atomic_write(weights, lambda path: path.write_bytes(packed(self.state_dict())))

    def load_weights(self, folder: str | Path) -> None:
        """Load the weights that a module of the same sizes has saved in ``folder``, without changing the training mode.

        Buffers that are set by constructor arguments (e.g. a prior's mean or an annealed ratio) keep their values.
        Raises :class:`InputError` if sizes differ.
        """
        _, weights = files_of(folder, self.role)
        with as_input_error(f"{weights} does not contain the weights of a {type(self).__name__} of these sizes."):
            values = mapped(weights)
            if _shapes(values) != _shapes(self.state_dict()):
                raise ValueError("other shapes")
            own = inspect.signature(type(self)).parameters.keys() & dict(self.named_buffers(recurse=False)).keys()
            found = {key: value for key, value in values.items() if key not in own}
            self.load_state_dict(found, strict=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **modules: torch.nn.Module) -> "Self":
        """Load a module saved by :meth:`save_pretrained`, on the CPU, in evaluation mode, in the dtypes of its weights.

        Tensors that are not saved are created in the dtype of most weights. If that dtype has 16 bits, they are
        created in float32, and the buffers among them are then rounded, as by :meth:`torch.nn.Module.to`.
        ``modules`` are the constructor arguments that are modules, because these are not saved with the module. Raises
        :class:`InputError` if the files are missing, truncated or of another class. Weights are only allocated after
        the shapes in the description have been found to match the tensors in the weights file.
        """
        name, arguments = description_of(folder, cls.role)
        description, weights = files_of(folder, cls.role)
        if name != cls.__name__:
            raise InputError(f"{description} describes a {name}, not a {cls.__name__}.")

        with as_input_error(f"{weights} does not contain the weights of the {name} in {description}."):
            values = mapped(weights)
            shapes = _shapes(values)
            most = MAX_PARAMS_PER_TENSOR * (len(shapes) + 1)
            with torch.device("meta"), _ZeroForUnknown(), _registering_at_most(most):
                sketch = cls._built(description, arguments, modules)
            if _shapes(sketch.state_dict()) != shapes:
                raise ValueError("other shapes")
            dtype = _commonest_dtype(values)
            with torch.device("cpu"), default_dtype(dtype if dtype.itemsize > 2 else torch.float32):
                module = cls._built(description, arguments, modules)
            _give_dtypes(module, values, dtype)
            module.load_state_dict(values)
        return module.eval()

    @classmethod
    def _built(cls, description: Path, arguments: dict, modules: dict[str, torch.nn.Module]) -> "Self":
        try:
            return cls(**arguments, **modules)
        except Exception as error:  # untrusted arguments can cause any exception
            raise InputError(f"{description} has invalid arguments for a {cls.__name__} ({error}).") from error


def files_of(folder: str | Path, role: str) -> tuple[Path, Path]:
    """The paths of a module's description and weights."""
    return Path(folder) / f"{role}.json", Path(folder) / f"{role}.safetensors"


def description_of(folder: str | Path, role: str) -> tuple[str, dict]:
    """The class name and the constructor arguments of a saved module."""
    description, _ = files_of(folder, role)
    otherwise = f"{description} is not a description of a {role}."
    try:
        described = read_json(description, otherwise)
    except OSError as error:
        raise InputError(f"{description} cannot be read ({error.strerror}).") from error
    match described:
        case {"class": str(name), "arguments": dict(arguments)}:
            return name, arguments
    raise InputError(otherwise)


def _shapes(values: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in values.items()}


def _commonest_dtype(values: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of most floating-point tensors, or torch's default dtype if there are none."""
    found = Counter(value.dtype for value in values.values() if value.dtype in FLOATING)
    return found.most_common(1)[0][0] if found else torch.float32


def _give_dtypes(module: PairModule, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Convert floating-point tensors in place, so that shared tensors stay shared.

    Saved tensors get the dtype of their values. Other buffers get ``dtype`` if it has 16 bits.
    """
    for tensor in module.buffers() if dtype.itemsize == 2 else ():
        if tensor.dtype in FLOATING:
            tensor.data = tensor.data.to(dtype)
    for key, tensor in module.state_dict(keep_vars=True).items():
        if (dtype := values[key].dtype) != tensor.dtype:
            if not {dtype, tensor.dtype} <= set(FLOATING):
                raise ValueError(f"{key} has another dtype")
            tensor.data = tensor.data.to(dtype)


class _ZeroForUnknown(TorchFunctionMode):
    """Reads 0 from tensors on the meta device, which have no values, for third-party networks that read buffers."""

    READING = (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.READING and args[0].is_meta:
            return function(torch.zeros((), dtype=args[0].dtype, device="cpu"))
        return function(*args, **(kwargs or {}))


@contextmanager
def _registering_at_most(number: int) -> Iterator[None]:
    """Limit the parameters registered inside this context: a crafted description could ask for endless layers."""
    registered = itertools.count(1)

    def count(*_) -> None:
        if next(registered) > number:
            raise ValueError("it has more layers than the weights file")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def data_plate(number: int | None) -> AbstractContextManager:
    """The plate "data" of ``number`` images, or a null context if it is already open.

    So a module can be embedded in another one that opens the plate. If ``number`` is None, there is one image without a
    batch dimension: the plate has no size, as in :class:`pyro.plate`.
    """
    for plate in get_plates():
        if plate.name == "data":
            if plate.size != number:
                raise ValueError(f'{number} images are inside a plate "data" of size {plate.size}')
            return nullcontext()
    return pyro.plate("data", number, dim=-1)


def count_parameters(*modules: torch.nn.Module) -> int:
    """The total number of elements of the modules' parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())
