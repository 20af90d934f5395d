"""The comparison, small."""

import json
from dataclasses import replace

import pytest
from test_train_vaes import refused

from pplmodels.systems import comparison

TINY = ["--steps", "6", "--batch-size", "16", "--num-steps", "2", "--iw-samples", "3", "--iw-images", "20"]
NARROW = {
    "vae": {"hidden": (8,)},
    "ladder-vae": {"z_dims": (3, 2), "hidden": (8, 6)},
    "draw": {"hidden": 8},
    "draw-attention": {"hidden": 8},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_four_systems_are_trained_once_and_reported_side_by_side(script, tmp_path, monkeypatch, capsys):
    compare, out = script("compare"), tmp_path / "out"
    for name, sizes in NARROW.items():
        variant = comparison.VARIANTS.get(name, comparison.Variant(name, {}))
        narrow = replace(variant, options={**variant.options, **sizes, "compile": False})
        monkeypatch.setitem(comparison.VARIANTS, name, narrow)
    compare([*TINY, "--out", str(out)])
    report = json.loads((out / "report.json").read_text())
    text = (out / "report.md").read_text()
    assert list(report["rows"]) == list(NARROW)
    for name, row in report["rows"].items():
        for part in ("train", "validation", "test"):
            assert row[f"{part}/elbo"] == pytest.approx(row[f"{part}/reconstruction"] - row[f"{part}/kl"])
        assert f"| {name} | {row['train/elbo']:.2f} |" in text
        assert f"{row['parameters']:,}" in text
    assert all((out / f"{name}.png").exists() and f"({name}.png)" in text for name in ("curves", "samples"))

    two = [*TINY, "--systems", "vae", "draw", "--out", str(out)]
    trained = (out / "vae" / "result.json").stat().st_mtime_ns
    (out / "draw" / "result.json").unlink()  # as if it had been killed after its last step
    compare(two)
    assert json.loads((out / "report.json").read_text())["rows"]["vae"] == report["rows"]["vae"]
    assert (out / "vae" / "result.json").stat().st_mtime_ns == trained
    refused(lambda: compare([*two, "--lr", "0.1"]), "was trained with --lr 0.001, not 0.1", capsys)

    config = json.loads((out / "draw" / "config.json").read_text())
    (out / "draw" / "config.json").write_text(json.dumps({**config, "binarise": "threshold"}))
    runs = ["--runs", str(out / "vae"), str(out / "draw")]
    refused(lambda: compare([*runs, "--out", str(out)]), "vae has transform dynamic, draw threshold", capsys)


def test_systems_that_do_not_model_images_are_refused(script, tmp_path, capsys):
    compare = ["--systems", "air3d", "--out", str(tmp_path / "out")]
    refused(lambda: script("compare")(compare), "air3d cannot be compared, because it does not model images", capsys)
