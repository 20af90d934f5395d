"""The comparison, small."""

import json

import pytest
from test_train_vaes import LADDER, refused

TINY = ["--steps", "6", "--batch-size", "16", "--num-steps", "2", "--iw-samples", "3", "--iw-images", "20"]
HIDDEN = ("--hidden", "8")
NARROW = {"vae": HIDDEN, "ladder-vae": LADDER, "draw": HIDDEN, "draw-attention": HIDDEN}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_four_systems_are_trained_once_and_reported_side_by_side(script, tmp_path, monkeypatch, capsys):
    compare, out = script("compare"), tmp_path / "out"
    for name, (training, options) in (systems := compare.__globals__["SYSTEMS"]).items():
        monkeypatch.setitem(systems, name, (training, (*options, *NARROW[name], "--no-compile")))
    compare([*TINY, "--out", str(out)])
    report = json.loads((out / "report.json").read_text())
    text = (out / "report.md").read_text()
    assert list(report["rows"]) == ["vae", "ladder-vae", "draw", "draw-attention"]
    for name, row in report["rows"].items():
        for part in ("train", "validation", "test"):
            assert row[f"{part}/elbo"] == pytest.approx(row[f"{part}/reconstruction"] - row[f"{part}/kl"])
        assert f"| {name} | {row['train/elbo']:.2f} |" in text
        assert f"{row['parameters']:,}" in text
    assert all((out / f"{name}.png").exists() and f"({name}.png)" in text for name in ("curves", "samples"))

    for name in ("ladder-vae", "draw-attention"):
        monkeypatch.delitem(systems, name)
    trained = (out / "vae" / "result.json").stat().st_mtime_ns
    (out / "draw" / "result.json").unlink()  # as if it had been killed after its last step
    compare([*TINY, "--out", str(out)])
    assert json.loads((out / "report.json").read_text())["rows"]["vae"] == report["rows"]["vae"]
    assert (out / "vae" / "result.json").stat().st_mtime_ns == trained
    refused(lambda: compare([*TINY, "--lr", "0.1", "--out", str(out)]), "was trained with --lr 0.001, not 0.1", capsys)

    config = json.loads((out / "draw" / "config.json").read_text())
    (out / "draw" / "config.json").write_text(json.dumps({**config, "reading": "threshold"}))
    runs = ["--runs", str(out / "vae"), str(out / "draw")]
    refused(lambda: compare([*runs, "--out", str(out)]), "vae has reading dynamic, draw threshold", capsys)
