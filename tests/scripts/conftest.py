"""What the script tests share."""

from functools import partial

import pytest

from pplmodels import plotting
from pplmodels.training import loop, preview


@pytest.fixture
def previews():
    """For tests of what is drawn while a training goes on."""


@pytest.fixture(autouse=True)
def _rough_pictures(request, monkeypatch):
    """Pictures as files, without the layout and the resolution that take most of a short training's time.

    They are drawn at the end alone, but for tests with ``previews``. The notebooks' and the README's tests draw as
    users do.
    """
    if "previews" not in request.fixturenames:
        monkeypatch.setattr(loop, "Preview", lambda folder, saved, _: preview.Preview(folder, saved, None))
    monkeypatch.setattr(plotting, "_grid", partial(plotting._grid, layout=None))
    monkeypatch.setattr(plotting, "save", lambda figure, path: figure.savefig(path, dpi=10))
