"""Which run is meant where a folder of runs is given."""

import os

import pytest

from guides import MLPGuide
from pplmodels import MLPVAE
from pplmodels.errors import InputError
from pplmodels.io import PAIR, newest_run
from pplmodels.registry import load_pair


def runs(folder, *names, file="config.json"):
    for written, name in enumerate(names):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / file).write_text("{}")
        os.utime(folder / name / file, (written, written))


@pytest.mark.parametrize(
    "names, newest",
    [
        (["20261125-101010", "20261125-101010_10", "20261125-101010_2", "20251231-235959_11"], "20261125-101010_10"),
        (["20260101-000000", "mine"], "20260101-000000"),  # mine was written in 1970
        (["mine", "other"], "other"),
        (["20269999-999999", "other"], "other"),  # no moment
        (["20261125-101010_best", "other"], "other"),
    ],
)
def test_the_newest_run_is_the_last_that_began(tmp_path, capsys, names, newest):
    runs(tmp_path, *names)
    (tmp_path / "20991231-000000").mkdir()  # holds nothing
    (tmp_path / "20991231-000001").symlink_to(tmp_path / names[0])
    (tmp_path / "notes.txt").write_text("")
    assert newest_run(tmp_path) == tmp_path / newest
    assert capsys.readouterr().err == f"using the newest run in {tmp_path}: {tmp_path / newest}\n"


@pytest.mark.parametrize("file", ["config.json", "model.json"])
def test_a_run_and_a_pair_are_taken_as_they_are(tmp_path, capsys, file):
    runs(tmp_path, "20261125-101010", file=file)
    (tmp_path / file).write_text("{}")
    assert newest_run(tmp_path) == newest_run(str(tmp_path), PAIR) == tmp_path
    assert newest_run(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert newest_run(tmp_path / file) == tmp_path / file
    assert capsys.readouterr().err == ""


def test_a_pair_is_loaded_from_the_newest_folder_that_holds_one(tmp_path, capsys):
    for name, size in (("20260101-101010", 2), ("20260102-101010", 3)):
        for cls in (MLPVAE, MLPGuide):
            cls(image=(1, 4, 4), z_dim=size, hidden_dims=(3,)).save_pretrained(tmp_path / name)
    runs(tmp_path, "20260103-101010")  # has not come to its end
    _, guide = load_pair(tmp_path)
    assert guide._arguments["z_dim"] == 3
    assert str(tmp_path / "20260102-101010") in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot be read"):
        load_pair(tmp_path / "20260103-101010")
