"""The guides that docs/guides.md composes train, compiled and under stock Pyro."""

import re
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import TraceGraph_ELBO

from pplmodels.infer import SVI, adam
from pplmodels.inspect import check_pair

PAGE = (Path(__file__).parent.parent / "docs" / "guides.md").read_text()
EXAMPLES = dict(re.findall(r"^## ([^\n]*)\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE))
ENGINES = {
    "compiled": lambda model, guide: SVI(model, guide, adam(model, guide, 1e-2), compile=True),
    "stock": lambda model, guide: pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceGraph_ELBO()),
}


def test_every_example_of_the_page_is_run():
    assert len(EXAMPLES) == PAGE.count("```python") > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("title", EXAMPLES)
def test_a_composed_guide_trains(title, engine):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    names = {}
    exec(EXAMPLES[title], names)
    model, guide, x = names["model"], names["guide"], names["x"]
    assert check_pair(model, guide, x) == []
    pyro.clear_param_store()
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    svi = ENGINES[engine](model, guide)
    losses = torch.tensor([float(svi.step(x)) for _ in range(120)])
    assert [name for name, p in guide.named_parameters() if torch.equal(p, before[name])] == []
    first, last = losses[:20], losses[-20:]
    assert first.mean() - last.mean() > 4 * (first.var() + last.var()).div(20).sqrt()


def test_an_autoguide_of_a_cell_that_is_run_again_is_another():
    pairs = []
    for _ in range(2):
        names = {}
        exec(EXAMPLES["An AutoGuide for some sites"], names)
        pairs.append((names["model"], names["guide"]))
        svi = SVI(*pairs[-1], adam(*pairs[-1], 1e-2))
        before = {name: p.detach().clone() for name, p in names["guide"].named_parameters()}
        svi.step(names["x"])
        assert not any(torch.equal(p, before[name]) for name, p in names["guide"].named_parameters())
        if len(pairs) == 1:
            start = before
    assert all(torch.equal(before[name], value) for name, value in start.items() if "auto" in name)
    first, second = ({id(p) for module in pair for p in module.parameters()} for pair in pairs)
    assert not first & second
