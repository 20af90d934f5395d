"""Create result cards from finished runs, and fill the tables in README.md and docs/ from result cards."""

import json
import re
import statistics
from pathlib import Path

from pplmodels import plotting
from pplmodels.errors import InputError
from pplmodels.io import atomic_write, newest_run
from pplmodels.training import cli
from pplmodels.training.options import Parser
from pplmodels.training.run import last_slope

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "results"
OF_ONE_RUN = ("seed", "command", "directory", "data_dir")  # configuration entries that may differ between runs


def write_card(name: str, runs: list[Path], note: str) -> Path:
    """Write results/<name>.json from run folders that only differ in their seed, including evaluation.json if any."""
    results, configs, lines = [], [], []
    for run in map(newest_run, runs):
        try:
            result = json.loads((run / "result.json").read_text("utf-8"))
            config = json.loads((run / "config.json").read_text("utf-8"))
            if (run / "evaluation.json").exists():
                evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))
                if evaluation.pop("data") != config["data"]:
                    raise InputError(f"{run} was last evaluated on other data: evaluate it on its own again.")
                result["metrics"] |= evaluation
            results.append(result)
            configs.append(config)
            lines.append([json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()])
        except (OSError, ValueError) as error:
            raise InputError(f"{run} is not the folder of a finished run.") from error
    fixed = [{key: value for key, value in config.items() if key not in OF_ONE_RUN} for config in configs]
    if any(other != fixed[0] for other in fixed):
        raise InputError("these runs differ in more than their seed: write a card for each.")
    names = dict.fromkeys(name for result in results for name in result["metrics"])
    metrics = {name: [result["metrics"].get(name) for result in results] for name in names}
    if "count_accuracy" in metrics:
        metrics["seconds_to_98"] = [seconds_to(0.98, run) for run in lines]
    if "valid_elbo" in lines[0][-1]:
        metrics["last_slope"] = [last_slope(run) for run in lines]
    card = {
        "model": configs[0]["system"],
        "data": _in_default_folder(configs[0]["data"]),
        "protocol": note,
        "command": published(results[0]["command"]),
        "seeds": [result["seed"] for result in results],
        "device": results[0]["device"],
        "versions": results[0]["versions"],
        "commit": results[0]["commit"],
        "seconds": [result["seconds"] for result in results],
        "metrics": metrics,
        "curve": lines,
    }
    CARDS.mkdir(exist_ok=True)
    path = CARDS / f"{name}.json"
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(card) + "\n", "utf-8"))
    return path


def published(command: str) -> str:
    """A run's command with the data in the default folder and without the run's, which do not affect the results."""
    command = re.sub(r" --(data-dir|out)[ =]\S+", "", command)
    return re.sub(r"(?<= --data[ =])\S+", lambda data: _in_default_folder(data[0]), command)


def _in_default_folder(data: str) -> str:
    """The value of --data, with the folders of a path replaced by ``data/``."""
    return f"data/{Path(data).name}" if Path(data).name != data.rstrip("/") else data


def seconds_to(accuracy: float, curve: list[dict]) -> float | None:
    """Seconds of training until the first evaluation that reaches a count accuracy, or None."""
    return next((line["seconds"] for line in curve if line["count_accuracy"] >= accuracy), None)


def picture(names: list[str], path: Path) -> None:
    """Plot count accuracy against seconds of training, with one line per run and one color per card."""
    curves = {name: json.loads((CARDS / f"{name}.json").read_text("utf-8"))["curve"] for name in names}
    plotting.save(plotting.curves_by_run(curves, "count_accuracy"), path)


def table(cards: list[dict], metrics: list[str]) -> str:
    """A Markdown table with one row per card and seed that has any of the metrics. Commands omit seed and folder."""
    head = ["command", "seed", *metrics, "seconds", "device"]
    rows = [
        [
            "`" + re.sub(r" --(seed|out) \S+", "", card["command"]) + "`",
            str(seed),
            *(_figure(card["metrics"].get(metric, [None] * (i + 1))[i]) for metric in metrics),
            f"{card['seconds'][i]:.0f}",
            card["device"],
        ]
        for card in cards
        for i, seed in enumerate(card["seeds"])
        if any(card["metrics"].get(metric, [None] * (i + 1))[i] is not None for metric in metrics)
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def medians(cards: list[dict], metrics: list[str]) -> str:
    """A Markdown table with one row per card: for each metric, the median over the seeds and the range."""
    head = ["command", "seeds", *metrics, "seconds", "device"]
    rows = [
        [
            "`" + re.sub(r" --(seed|out) \S+", "", card["command"]) + "`",
            str(len(card["seeds"])),
            *(_median(card["metrics"].get(metric, [])) for metric in metrics),
            _median(card["seconds"]),
            card["device"],
        ]
        for card in cards
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _median(values: list[float | None]) -> str:
    """The median of the values, and their range if there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    middle = _figure(statistics.median(known))
    return middle if len(known) == 1 else f"{middle} ({_figure(min(known))} to {_figure(max(known))})"


def _cell(value) -> str:
    return _figure(value) if isinstance(value, float) else str(value)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def update_tables(path: Path) -> None:
    """Rewrite the text between each marker and ``<!-- end -->`` in a page.

    ``<!-- results: CARD CARD | METRIC METRIC -->`` inserts a table with a row per seed, ``<!-- medians: ... -->`` one
    with a row per card, ``<!-- figure: CARD METRIC -->`` the median over the card's seeds and their range within a
    line, ``<!-- benchmark -->`` the tables of the benchmark, and ``<!-- rows: NAME -->`` the
    rows of results/NAME.json.
    """

    def card(name: str) -> dict:
        return json.loads((CARDS / f"{name}.json").read_text("utf-8"))

    def fill(match: re.Match) -> str:
        names, metrics = (part.split() for part in match[2].split("|"))
        written = {"results": table, "medians": medians}[match[1]]([card(name) for name in names], metrics)
        return f"<!-- {match[1]}:{match[2]}-->\n\n{written}\n\n<!-- end -->"

    def figure(match: re.Match) -> str:
        name, metric = match[1].split()
        return f"<!-- figure:{match[1]}-->{_median(card(name)['metrics'][metric])}<!-- end -->"

    def rows(match: re.Match) -> str:
        found = card(match[1].strip())
        names = [name for name, value in found["rows"][0].items() if not isinstance(value, list)]
        lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in found["rows"])]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        source = f"`{found['command']}`, on {found['device']}, torch {found['versions']['torch']}."
        return f"<!-- rows:{match[1]}-->\n\n{text}\n\n{source}\n\n<!-- end -->"

    text = path.read_text("utf-8")
    if "<!-- benchmark -->" in text:
        filled = f"<!-- benchmark -->\n\n{benchmark_tables(card('benchmark'))}\n\n<!-- end -->"
        text = re.sub("<!-- benchmark -->.*?<!-- end -->", filled, text, flags=re.DOTALL)
    text = re.sub(r"<!-- (results|medians):(.*?)-->.*?<!-- end -->", fill, text, flags=re.DOTALL)
    text = re.sub(r"<!-- rows:(.*?)-->.*?<!-- end -->", rows, text, flags=re.DOTALL)
    text = re.sub(r"<!-- figure:(.*?)-->.*?<!-- end -->", figure, text)
    atomic_write(path, lambda temporary: temporary.write_text(text, "utf-8"))


def step_table(rows: list[dict]) -> str:
    """A Markdown table of the step times.

    "images/s, times one by one" is the throughput of the compiled step relative to handwritten steps on single images.
    """
    names = ["stock", "uncompiled", "compiled", "handwritten", "numpyro"]
    head = ["pair", "batch", *(f"{name}, ms" for name in names), "stock / compiled", "compiled / by hand", "floor, ms"]
    head.append("images/s, times one by one")
    lines = [head, ["---"] * len(head)]
    for row in rows:
        times = [f"{row['step_ms'][name]:.1f}" if name in row["step_ms"] else "" for name in names]
        ratios = [f"{row['stock_over_compiled']:.2f}", f"{row['compiled_over_handwritten']:.2f}"]
        bound = row["floor_ms"]["arithmetic"] + row["floor_ms"]["traffic"]
        faster = row["one_image_ms"] * row["batch"] / row["step_ms"]["compiled"]
        lines.append([row["case"], str(row["batch"]), *times, *ratios, f"{bound:.1f}", f"{faster:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parts_table(rows: list[dict]) -> str:
    """A Markdown table of the time spent in each part of a compiled step."""
    head = ["pair", "batch", *(f"{part}, ms" for part in rows[0]["parts_ms"]), "peak memory"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        held, without = (row["peak_bytes"][name] for name in ("compiled", "uncompiled"))
        memory = f"{held / 1e6:.0f} MB, {held / without:.2f} of the uncompiled step's"
        lines.append([row["case"], str(row["batch"]), *(f"{v:.2f}" for v in row["parts_ms"].values()), memory])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def benchmark_tables(measured: dict) -> str:
    """The results of benchmarks/step_time.py in Markdown."""
    paragraphs = [
        step_table(measured["rows"]),
        f"On {measured['device']}, torch {measured['versions']['torch']}.",
        "Where the time goes, each part timed alone:",
        parts_table(measured["rows"]),
        f"DRAW with 64 steps, batch 128, compiled: {measured['draw_64_steps']['step_ms']:.0f} ms a step, "
        f"{measured['draw_64_steps']['peak_bytes'] / 1e6:.0f} MB at its peak above weights and optimizer.",
    ]
    compared = measured["comparisons"]
    paragraphs.append(
        f"A comparison of AIR's graph with its program (batch 64) takes {compared['comparison_ms']:.0f} ms beyond a "
        f"step of {compared['step_ms']:.1f} ms, all of them {compared['share']:.2%} of {compared['steps']:,} steps; "
        f"with the first step, which traces ({compared['first_step_s']:.1f} s), "
        f"{compared['share_with_first_step']:.2%}."
    )
    drawn = measured["sampling_seconds"]
    for name in ("PixelCNN", "GatedPixelCNN"):
        kept, full = drawn[name], drawn[f"{name}, full passes"]
        paragraphs.append(
            f"Drawing 100 maps of 8 x 8 from a {name}: {kept:.2f} s, by 64 full passes {full:.2f} s: "
            f"{full / kept:.0f} times as long."
        )
    return "\n\n".join(paragraphs)


def main() -> None:
    """Run ``result_cards.py card NAME RUN...``, ``picture FILE.png NAME...`` or ``tables``."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    card = commands.add_parser("card", help="write results/NAME.json from runs that only differ in their seed")
    card.add_argument("name", metavar="NAME", help="<model>-<data>[-<variant>]")
    card.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    card.add_argument("--note", default="", help="description of the protocol and the machine")
    drawn = commands.add_parser("picture", help="plot count accuracy against seconds of training")
    drawn.add_argument("file", metavar="FILE.png", type=Path)
    drawn.add_argument("cards", metavar="NAME", nargs="+")
    commands.add_parser("tables", help="rewrite the tables in README.md and docs/ from the cards")
    options = parser.parse_args()
    if options.command == "card":
        print(write_card(options.name, options.runs, options.note))
    elif options.command == "picture":
        picture(options.cards, options.file)
    else:
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
            update_tables(page)


if __name__ == "__main__":
    cli.run_script(main)
