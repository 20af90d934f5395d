"""The plate of a batch's images."""

from contextlib import AbstractContextManager, nullcontext

import pyro
from pyro.poutine.runtime import get_plates


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
