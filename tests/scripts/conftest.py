"""What the script tests share."""

from functools import partial

import pytest

from pplmodels import plotting


@pytest.fixture(autouse=True)
def _rough_pictures(monkeypatch):
    """Pictures as files, without the layout and the resolution that take most of a short training's time.

    The notebooks' and the README's tests draw as users do.
    """
    monkeypatch.setattr(plotting, "_grid", partial(plotting._grid, layout=None))
    monkeypatch.setattr(plotting, "save", lambda figure, path: figure.savefig(path, dpi=10))
