"""The base class of models and guides: named factors, saved and rebuilt without the training script."""

import inspect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType

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

IMAGE_DIMS = ("channel", "row", "column")  # dimensions
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_PARAMS_PER_TENSOR = 4  # that a constructor may register for each tensor that is saved: it may replace some


class PairModule(PyroModule):
    """One half of a pair, a model or a guide: a named PyroModule that remembers its constructor arguments.

    ``role`` ("model" or "guide") names the half's two files in a folder: ``<role>.safetensors`` holds the
    weights and buffers, ``<role>.json`` the class name and the constructor arguments. Neither file can run
    code when it is loaded. A constructor's arguments alone decide the shapes of the weights, and it reads no value of a
    tensor for that: a half is sketched on the meta device, without memory, before it is rebuilt.

    ``dims`` names the event dimensions of sites, the number of a step left out, and ``coords`` says what some of these
    dimensions count: :func:`pplmodels.inspect.posterior` and its like label their arrays so.
    """

    role: str
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    coords: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __new__(cls, *args, **kwargs):
        """Record what ``__init__`` is about to receive."""
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
        """Write the weights and the constructor arguments into ``folder`` (made if missing)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {"class": type(self).__name__, "arguments": self._arguments}
        description, weights = files_of(folder, self.role)
        write_json(description, described)
        atomic_write(weights, lambda path: path.write_bytes(packed(self.state_dict())))

    def load_weights(self, folder: str | Path) -> None:
        """Take over the weights that a half of the same sizes has saved in ``folder``, and stay in this mode.

        A buffer that a constructor's argument sets (a prior's mean, an annealed ratio) keeps this half's value. Raises
        :class:`InputError` for other sizes.
        """
        _, weights = files_of(folder, self.role)
        with as_input_error(f"{weights} does not hold the weights of a {type(self).__name__} of these sizes."):
            values = mapped(weights)
            if _shapes(values) != _shapes(self.state_dict()):
                raise ValueError("other shapes")
            own = inspect.signature(type(self)).parameters.keys() & dict(self.named_buffers(recurse=False)).keys()
            found = {key: value for key, value in values.items() if key not in own}
            self.load_state_dict(found, strict=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **modules: torch.nn.Module) -> "PairModule":
        """Rebuild what :meth:`save_pretrained` wrote, on the CPU, in evaluation mode and in the dtypes of its weights.

        Tensors that are not saved are made in the dtype of most weights. Where that has 16 bits they are made in
        float32, and of these the buffers are rounded, as :meth:`torch.nn.Module.to` does.
        ``modules`` are the constructor's arguments that are modules of somebody else, which are not saved with this
        half. Raises :class:`InputError` when the files are missing, cut short or of another class. No weights are
        allocated before the shapes that the description asks for are those whose bytes are in the weights' file.
        """
        name, arguments = description_of(folder, cls.role)
        description, weights = files_of(folder, cls.role)
        if name != cls.__name__:
            raise InputError(f"{description} describes a {name}, not a {cls.__name__}.")

        def build() -> PairModule:
            try:
                return cls(**arguments, **modules)
            except Exception as error:  # with arguments of a stranger, any
                raise InputError(f"{description} does not say what a {name} is made of ({error}).") from error

        with as_input_error(f"{weights} does not hold the weights of the {name} in {description}."):
            values = mapped(weights)
            shapes = _shapes(values)
            most = MAX_PARAMS_PER_TENSOR * (len(shapes) + 1)
            with torch.device("meta"), _ZeroForUnknown(), _registering_at_most(most):
                sketch = build()
            if _shapes(sketch.state_dict()) != shapes:
                raise ValueError("other shapes")
            dtype = _commonest_dtype(values)
            with torch.device("cpu"), default_dtype(dtype if dtype.itemsize > 2 else torch.float32):
                half = build()
            _give_dtypes(half, values, dtype)
            half.load_state_dict(values)
        return half.eval()


def files_of(folder: str | Path, role: str) -> tuple[Path, Path]:
    """Description and weights of a half."""
    return Path(folder) / f"{role}.json", Path(folder) / f"{role}.safetensors"


def description_of(folder: str | Path, role: str) -> tuple[str, dict]:
    """Class name and constructor arguments of a saved half."""
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
    """That of most floating-point tensors; torch's own default where there are none."""
    found = Counter(value.dtype for value in values.values() if value.dtype in FLOATING)
    return found.most_common(1)[0][0] if found else torch.float32


def _give_dtypes(half: PairModule, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Convert floating-point tensors where they are, so that whoever shares them still does.

    Those that are saved get the dtype of their values, the other buffers ``dtype`` where that has 16 bits.
    """
    for tensor in half.buffers() if dtype.itemsize == 2 else ():
        if tensor.dtype in FLOATING:
            tensor.data = tensor.data.to(dtype)
    for key, tensor in half.state_dict(keep_vars=True).items():
        if (dtype := values[key].dtype) != tensor.dtype:
            if not {dtype, tensor.dtype} <= set(FLOATING):
                raise ValueError(f"{key} is of another dtype")
            tensor.data = tensor.data.to(dtype)


class _ZeroForUnknown(TorchFunctionMode):
    """Reads 0 from tensors on the meta device, which have no values: networks of others look at what they keep."""

    READING = (torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.READING and args[0].is_meta:
            return function(torch.zeros((), dtype=args[0].dtype, device="cpu"))
        return function(*args, **(kwargs or {}))


@contextmanager
def _registering_at_most(number: int) -> Iterator[None]:
    """Let modules within register so many parameters: the layers of a made-up description could have no end."""
    registered = itertools.count(1)

    def count(*_) -> None:
        if next(registered) > number:
            raise ValueError("it has more layers than there are weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def data_plate(number: int) -> AbstractContextManager:
    """The plate "data" of ``number`` images, or nothing where it is open already.

    So a half can be a part of another, which opens the plate and runs it inside.
    """
    for plate in get_plates():
        if plate.name == "data":
            if plate.size != number:
                raise ValueError(f'{number} images are inside of a plate "data" of {plate.size}')
            return nullcontext()
    return pyro.plate("data", number, dim=-1)


def count_parameters(*modules: torch.nn.Module) -> int:
    """How many numbers the modules learn."""
    return sum(p.numel() for module in modules for p in module.parameters())
