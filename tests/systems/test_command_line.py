"""Options from the command line, from files and from run folders."""

import json
from typing import Annotated, Literal

import pydantic
import pytest
import yaml

from pplmodels.errors import InputError
from pplmodels.systems import ImageFileOptions, System, all_systems, find_system
from pplmodels.systems.command_line import create_run, parse
from pplmodels.training.options import FiniteFloat, Option, PositiveInt


class ToyOptions(ImageFileOptions):
    steps: Annotated[PositiveInt, Option("gradient steps")] = 3
    widths: Annotated[tuple[PositiveInt, ...] | None, Option("widths", metavar="N")] = None
    range: Annotated[tuple[FiniteFloat, FiniteFloat], Option("limits", metavar=("A", "B"))] = (0.0, 1.0)
    kind: Annotated[Literal["a", "b"], Option("kind")] = "a"


class ToySystem(System):
    name = "toy"
    description = "A system without a pair."
    options_class = ToyOptions

    def load(self, options):
        raise NotImplementedError

    classes = build = held_out_metrics = plot = load


TOY = ToySystem()


def refused(function, *arguments, match):
    with pytest.raises(InputError, match=match) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


def stored(folder, change, *typed):
    folder.mkdir()
    config = {"system": "toy", **ToyOptions().plain(), "command": "python x.py", **change}
    (folder / "config.json").write_text(json.dumps(config))
    return parse(TOY, ["--resume", "--out", str(folder), *typed])


def test_stored_options_are_as_if_typed(tmp_path):
    options, run = stored(tmp_path / "run", {"widths": [3, 4], "lr": 1, "range": [-1e-05, 2], "seed": 5})
    assert (options.widths, options.lr, options.range, options.seed) == ((3, 4), 1.0, (-1e-05, 2.0), 5)
    assert isinstance(options.lr, float) and run.config["range"] == [-1e-05, 2.0]


def test_the_folder_of_the_data_is_the_one_that_a_run_had_unless_another_is_typed(tmp_path):
    had = {"data_dir": "/data"}
    assert stored(tmp_path / "run", had)[0].data_dir == "/data"
    options, run = stored(tmp_path / "moved", had, "--data-dir", "data")  # the default, typed
    assert options.data_dir == "data" and run.config["data_dir"] == "/data"


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "many"},
        {"steps": [3]},
        {"steps": 2.5},
        {"steps": True},
        {"steps": None},
        {"batch_size": 0},
        {"lr": {}},
        {"data": 3},
        {"data": None},
        {"widths": 3},
        {"widths": [[3]]},
        {"range": [1.0]},
        {"kind": "c"},
        {"kind": []},
        {"command": 3},
        {"system": "air"},
    ],
    ids=str,
)
def test_a_stored_option_that_cannot_be_typed_is_refused(tmp_path, change):
    refused(
        stored,
        tmp_path / "run",
        change,
        match="run (has an invalid value for|has no command|is a run of another system|is incomplete)",
    )


def test_options_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        ToyOptions().steps = 5


@pytest.mark.parametrize("name", all_systems())
def test_the_defaults_of_every_system_survive_json_and_the_command_line(name, tmp_path):
    system = find_system(name)
    options, _ = parse(system, [])
    assert system.options_class.of(json.loads(json.dumps(options.plain()))) == options
    for field in system.options_class.model_fields:
        assert system.options_class.option(field).help
    words = []
    for field, value in options.plain().items():
        flag = system.options_class.flag(field)
        if isinstance(value, bool):
            words += [flag] if value and field != "resume" else []
        elif value is not None and flag.startswith("--"):
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    again, _ = parse(system, _without_background(words))
    assert again == options


def _without_background(words):
    """The words without --background, which is refused for built-in data, as it does not apply to them."""
    if "--background" not in words:
        return words
    place = words.index("--background")
    return words[:place] + words[place + 2 :]


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_file_gives_options_and_the_command_line_overrides_them(tmp_path, ending):
    file = tmp_path / f"mine.{ending}"
    content = {"steps": 9, "lr": 0.5, "widths": [4, 2], "kind": "b"}
    file.write_text(json.dumps(content) if ending == "json" else yaml.safe_dump(content) + "batch-size: 7\n")
    options, run = parse(TOY, ["--config", str(file), "--lr", "0.25"])
    assert (options.steps, options.lr, options.widths, options.kind, run) == (9, 0.25, (4, 2), "b", None)
    assert options.schedule_steps == 9  # a default that follows from another option
    assert options.batch_size == (128 if ending == "json" else 7)


def test_the_configuration_of_an_earlier_run_is_such_a_file(tmp_path):
    first, _ = parse(TOY, ["--steps", "9", "--widths", "3", "--out", str(tmp_path / "run")])
    create_run(TOY, first, {"image": [1, 8, 8]}).close()
    again, _ = parse(TOY, ["--config", str(tmp_path / "run" / "config.json"), "--seed", "2"])
    assert again == first.replaced(seed=2, out=None)


def test_the_printed_configuration_is_such_a_file_too(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(TOY, ["--steps", "9", "--widths", "3", "5", "--lr", "1e-4", "--print-config"])
    assert ended.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    options, _ = parse(TOY, ["--config", str(tmp_path / "printed.yaml")])
    assert options == parse(TOY, ["--steps", "9", "--widths", "3", "5", "--lr", "1e-4"])[0]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("[]", "is not a JSON or YAML file"),
        ("a: [", "is not a JSON or YAML file"),
        ("1: 2", "is not a JSON or YAML file"),
        ("!!python/object/apply:os.system [true]", "is not a JSON or YAML file"),
        ("stepps: 3", "unknown option 'stepps'"),
        ("steps: 0", "--steps: 0 is not a positive integer"),
        ("kind: c", "--kind"),
        ("compile: 1", "--compile"),
        ("system: air", "has the options of air, not of toy"),
        ("imports: /tmp/theirs.py", "has --import: give this option on the command line"),
        ("init_from: runs/other", "has --init-from: give this option on the command line"),
        ("resume: true", "has --resume: give this option on the command line"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, content, sentence):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    refused(parse, TOY, ["--config", str(file)], match=sentence)


def test_a_new_training_needs_the_file_of_its_imports():
    refused(parse, TOY, ["--import"], match="--import needs a file")
    refused(ToyOptions.of, {"imports": True}, match="--import")


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused(parse, TOY, ["--config", str(tmp_path / "none.yaml")], match="none.yaml cannot be read")


def test_a_file_of_a_run_with_an_import_needs_the_import_on_the_command_line_too(tmp_path):
    module, file = tmp_path / "mine.py", tmp_path / "config.json"
    module.write_text("LOADED = True")
    file.write_text(json.dumps({"system": "toy", "imports": "/another/place.py", "steps": 5}))
    options, _ = parse(TOY, ["--config", str(file), "--import", str(module)])
    assert (options.imports, options.steps) == (str(module), 5)
