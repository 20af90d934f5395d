"""Result cards from runs, and tables from cards."""

import importlib
import json
import re

import pytest
from starting import ROOT, SMALL

from pplmodels.errors import InputError
from pplmodels.training.run import last_slope


@pytest.mark.filterwarnings("default")
def test_a_card_holds_a_row_a_seed_and_the_table_shows_it(script, tmp_path, monkeypatch):
    results = importlib.import_module("result_cards")
    monkeypatch.setattr(results, "CARDS", tmp_path / "cards")
    train = script("train_air")
    runs = {name: tmp_path / name for name in ("first", "second", "other")}
    for (name, run), options in zip(runs.items(), (["0"], ["1"], ["1", "--what-dim", "5"]), strict=True):
        train([*SMALL, "--steps", "1", "--no-compile", "--out", str(run), "--seed", *options])
        assert (run / "result.json").exists(), name
    card = json.loads(results.write_card("air-small", [runs["first"], runs["second"]], "two seeds").read_text())
    assert card["seeds"] == [0, 1] and len(card["metrics"]["elbo"]) == len(card["curve"]) == 2
    page = tmp_path / "page.md"
    figure = "<!-- figure: air-small elbo -->0<!-- end -->"
    stale = "stale rows\n<!-- end -->\n"
    tables = f"<!-- results: air-small | elbo -->\n{stale}<!-- medians: air-small | elbo -->\n{stale}"
    page.write_text(f"before {figure}\n{tables}after\n")
    for _ in range(2):  # filling in a filled page changes nothing
        results.update_tables(page)
        text = page.read_text()
        low, high = sorted(card["metrics"]["elbo"])
        median = f"{(low + high) / 2:.4g} ({low:.4g} to {high:.4g})"
        assert text.startswith(f"before <!-- figure: air-small elbo -->{median}<!-- end -->\n")
        assert text.endswith("after\n") and "stale rows" not in text
        rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
        assert [row[2].strip() for row in rows] == ["0", "1", "2"]  # two seeds, then the number of seeds
        assert rows[2][3].strip() == median
        assert f"{card['metrics']['elbo'][1]:.4g}" in text
    results.picture(["air-small"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="differ in more than their seed"):
        results.write_card("air-small", [runs["first"], runs["other"]], "")
    with pytest.raises(InputError, match="not the folder of a finished run"):
        results.write_card("air-small", [tmp_path / "none"], "")
    within = tmp_path / "within"
    within.mkdir()
    runs["first"].rename(within / "first")
    runs["second"].rename(within / "second")
    newest = json.loads(results.write_card("air-small", [within], "the newest of a folder's").read_text())
    assert newest["seeds"] == [1]


@pytest.mark.parametrize(
    "typed, published",
    [
        ("--data mnist --data-dir ../mine --steps 5", "--data mnist --steps 5"),
        ("--steps 5 --data-dir=/home/me/sets", "--steps 5"),
        ("--data ../mine/images.npz --steps 5", "--data data/images.npz --steps 5"),
        ("--data=/home/me/photos/", "--data=data/photos"),
        ("--data images.npz --data-memory 2", "--data images.npz --data-memory 2"),
        ("--data photos/ --out runs/a/b --steps 5", "--data photos/ --steps 5"),
        ("--out=/home/me/runs --steps 5", "--steps 5"),
    ],
)
def test_a_card_does_not_say_where_the_data_lay(typed, published, tmp_path, monkeypatch):
    results = importlib.import_module("result_cards")
    monkeypatch.setattr(results, "CARDS", tmp_path / "cards")
    data = re.split("[ =]", typed)[1] if typed.startswith("--data") else "digits"
    found = {"seed": 0, "command": f"python scripts/train_vae.py {typed}", "metrics": {}, "seconds": 1.0}
    files = {
        "config.json": {"system": "vae", "data": data, "seed": 0},
        "result.json": found | {"device": "cpu", "versions": {}, "commit": None},
        "metrics.jsonl": {"step": 1},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    card = json.loads(results.write_card("vae", [tmp_path], "").read_text())
    assert card["command"] == f"python scripts/train_vae.py {published}"
    assert card["data"] == (re.split("[ =]", published)[1] if published.startswith("--data") else "digits")


def test_published_commands_name_no_folder_outside_of_the_project():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.[jm]*")]
    found = {page.name: re.findall(r"--data(?:-dir)?[ =](?:\.\.|/|~)\S*", page.read_text()) for page in pages}
    assert {page: folders for page, folders in found.items() if folders} == {}


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in PAGES])
def test_pages_say_what_the_cards_say(page, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / page).read_text())
    importlib.import_module("result_cards").update_tables(copy)
    assert copy.read_text() == (ROOT / page).read_text()


def test_the_slope_is_that_of_the_last_two_evaluations():
    curve = [{"step": step, "valid_elbo": elbo} for step, elbo in ((100, -9.0), (300, -5.0), (800, -4.0))]
    assert last_slope(curve) == pytest.approx(2.0)
    assert last_slope(curve[:1]) is None


def test_seconds_to_an_accuracy_are_those_of_the_first_evaluation_that_has_it():
    results = importlib.import_module("result_cards")
    curve = [{"seconds": 10.0 * i, "count_accuracy": a} for i, a in enumerate((0.5, 0.979, 0.981, 0.97, 0.99))]
    assert results.seconds_to(0.98, curve) == 20.0
    assert results.seconds_to(0.995, curve) is None


CARDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "results").glob("*.json")}
# nats an image that no bound can beat, and that a model of single pixels already reaches
POSSIBLE = {"mnist": (-45.5, -205.8), "rotated": (-4.40, -6.0), "aligned": (-4.40, -6.0)}


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "vae" in str(card.get("model"))])
def test_what_was_reported_is_possible(name):
    card = CARDS[name]
    best, worst = POSSIBLE.get(card["data"].removesuffix("-2"), (0.0, -float("inf")))
    metrics = card["metrics"]
    for bound in (*metrics["elbo"], *metrics.get("iw_bound", [])):
        if bound is not None and "bits_per_dim" not in metrics:
            assert worst < bound < best
    for bits in metrics.get("bits_per_dim", []):
        assert 0 < bits < 8
    for i, error in enumerate(metrics.get("iw_bound_standard_error", [])):
        assert metrics["iw_bound"][i] > metrics["elbo"][i] - 3 * error


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.get("model") == "pixelcnn"])
def test_a_trained_pixelcnn_knows_more_than_how_frequent_values_are(name):
    metrics = CARDS[name]["metrics"]
    for found, unigram in zip(metrics["nats_per_code"], metrics["unigram_nats_per_code"], strict=True):
        assert 0 < found < unigram
