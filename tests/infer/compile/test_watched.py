"""Restoring what was changed, where the marker of absence is itself a value."""

import types

import pytest

from pplmodels.infer.compile.watched import MISSING, Watched


class Slotted:
    __slots__ = ("value",)


def cell_of(*content):
    cell = types.CellType()
    if content:
        cell.cell_contents = content[0]
    return cell


@pytest.mark.parametrize("held", [(), (MISSING,), (3,)], ids=["absent", "marker", "number"])
@pytest.mark.parametrize("then", [(), (MISSING,), (4,)], ids=["absent", "marker", "number"])
def test_names_slots_cells_and_classes_are_restored(held, then):
    def put(content, variables, slotted, kind):
        variables.clear()
        variables.update(zip(["name"], content, strict=False))
        for owner in (slotted, kind):
            if hasattr(owner, "value"):
                del owner.value
            for value in content:
                owner.value = value

    variables, slotted, kind = {}, Slotted(), type("Kind", (), {})
    cell = cell_of(*held)
    put(held, variables, slotted, kind)
    watched = Watched()
    watched.names.append((variables, "name"))
    watched.slots.append((slotted, "value"))
    watched.classes.append(kind)
    watched.cells.append(cell)
    watched.remember()
    assert watched.unchanged()

    put(then, variables, slotted, kind)
    if then:
        cell.cell_contents = then[0]
    elif held:
        del cell.cell_contents
    assert watched.unchanged() == (held == then)
    watched.restore()
    assert list(variables.values()) == list(held)
    assert [owner.value for owner in (slotted, kind) if hasattr(owner, "value")] == [*held, *held]
    if held:
        assert cell.cell_contents is held[0]
    else:
        with pytest.raises(ValueError):
            _ = cell.cell_contents
