"""What the pages show works: their Python blocks run, and the README's guide trains under both SVI classes."""

import re
from pathlib import Path

import pyro
import torch
from pyro.infer import TraceGraph_ELBO

from guides.systems.image_vae import IMAGE_VAE
from pplmodels import AIR
from pplmodels.infer import SVI, adam
from pplmodels.systems.command_line import parse

ROOT = Path(__file__).parent.parent


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


BLOCKS = blocks("README.md")
SIZES = {"canvas": (1, 10, 10), "num_steps": 2, "what_dim": 3, "window": 5}


def test_fifteen_lines_train_a_pair_and_show_its_posterior(capsys):
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 15
    names = {}
    exec(BLOCKS[0], names)
    assert names["loss"] < 25  # an untrained one has 44
    assert names["found"].posterior["z"].shape == (1, 100, 10, 8)
    assert "(chain: 1, image: 10, latent: 8)" in capsys.readouterr().out


def test_an_overridden_factor_trains_under_both():
    names = {}
    exec(BLOCKS[1], names)
    lines = BLOCKS[1].split("class ")[1].strip().splitlines()
    assert len(lines) <= 15
    x = torch.rand(8, 1, 10, 10)
    for train in (
        lambda model, guide: SVI(model, guide, adam(model, guide, 1e-2)),
        lambda model, guide: pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceGraph_ELBO()),
    ):
        pyro.clear_param_store()
        model, guide = AIR(**SIZES), names["CorrelatedAIRGuide"](**SIZES)
        before = {name: p.detach().clone() for name, p in guide.named_parameters()}
        svi = train(model, guide)
        losses = [float(svi.step(x))]
        assert not any(torch.equal(p, before[name]) for name, p in guide.named_parameters())
        losses += [float(svi.step(x)) for _ in range(79)]
        assert sum(losses[-20:]) < sum(losses[:20])


def test_a_vae_of_parts_trains():
    (block,) = blocks("docs/systems/vae.md")
    names = {}
    exec(block, names)
    x = torch.randn(200, 3) @ torch.randn(3, 10)
    losses = [float(names["svi"].step(x)) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20])


def test_a_painting_has_as_many_canvases_as_its_page_says():
    (block,) = blocks("docs/systems/draw.md")
    names = {}
    exec(block, names)
    assert names["loss"].isfinite()
    assert names["painting"].canvases.shape == (9, 4, 1, 8, 8) and names["painting"].writing.shape == (8, 4, 3)


def test_the_page_on_inspection_runs(recwarn):
    names = {}
    for block in blocks("docs/inspect.md"):
        exec(block, names)
    assert names["where"].dims == ("chain", "draw", "image")
    assert names["graph"].model == {"z": [], "x": ["z"]}
    assert names["weights"].pareto_k.dims == ("image",) and names["calibrated"].ranks["count"].shape == (500,)
    assert names["noise"].dims == ("objective", "module")


def test_the_pages_of_discrete_codes_run():
    names = {}
    for page in ("docs/systems/vq-vae.md", "docs/systems/pixelcnn.md"):
        (block,) = blocks(page)
        exec(block, names)
    assert names["images"].shape == (4, 1, 8, 8)
    assert names["sevens"].shape == (5, 4, 4)


def test_the_options_in_the_file_of_the_page_on_data_are_those_of_a_system(tmp_path):
    (block,) = blocks("docs/own-data.md", "yaml")
    (tmp_path / "photos.yaml").write_text(block)
    options, _ = parse(IMAGE_VAE, ["--config", str(tmp_path / "photos.yaml"), "--steps", "8000"])
    assert (options.data, options.image_size, options.steps) == ("photos/", 64, 8000)
    assert options.encoder_channels == (32, 64, 128) and not options.refine


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
