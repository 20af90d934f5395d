"""Inject faults into training runs (kills, signals, full disks, clock jumps) and count the runs that survive."""

import errno
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from forked import (
    EVALUATING,
    FINISHING,
    PHASES,
    RUNS,
    SCENES,
    STARTING,
    TRAINING,
    begin,
    end,
    phase,
    run,
    until,
)
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pplmodels import io
from pplmodels.infer import SVI
from pplmodels.io import TEMPORARY, read_complete_lines, write_json
from pplmodels.systems import command_line
from pplmodels.training import cli, loop
from pplmodels.training.checkpoint import step_of
from pplmodels.training.options import Parser, positive_int, seed
from pplmodels.training.run import environment

RESULT = Path(__file__).parents[2] / "results" / "faults.json"
QUICK = "pixelcnn"  # the fastest run, used by faults that are tested with one kind of run only


def outcome(folder: Path) -> dict:
    """The contents of a finished run that must equal those of an undisturbed run. Elapsed times are excluded."""
    lines = [json.loads(line) for line in read_complete_lines(folder / "metrics.jsonl")]
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    drawn = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    weights = [load_file(folder / f"{role}.safetensors") for role in ("model", "guide")]
    return {
        "lines": [{name: value for name, value in line.items() if name != "seconds"} for line in lines],
        "events": {tag: values for tag, values in drawn.items() if tag != "seconds"},
        "metrics": json.loads((folder / "result.json").read_text())["metrics"],
        "weights": [{name: value.numpy().tobytes() for name, value in tensors.items()} for tensors in weights],
        "files": {path.name for path in folder.iterdir()},
    }


def diff_from_reference(folder: Path, reference: dict) -> list[str]:
    """The names of the contents in which a finished run differs from the reference run."""
    try:
        found = outcome(folder)
    except (OSError, ValueError) as error:
        return [f"unreadable: {error}"]
    return [name for name, value in reference.items() if found[name] != value]


def check_stopped_run(folder: Path, reference: dict) -> list[str]:
    """Errors in the folder of a run that was stopped at any point, as sentences: log lines that do not fit the step."""
    wrong = []
    if not (folder / "checkpoint.safetensors").exists():
        return wrong
    try:
        step = step_of(folder / "checkpoint.safetensors")
        expected = [line for line in reference["lines"] if line["step"] <= step]
        lines = [json.loads(line) for line in read_complete_lines(folder / "metrics.jsonl")]
        lines = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
        if lines[: len(expected)] != expected or len(lines) > len(expected) + 1:
            wrong.append(f"log lines of steps {[line['step'] for line in lines]} at a checkpoint of step {step}")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        wrong.append(f"check_stopped_run: {error}")
    return wrong


def start_or_resume_args(name: str, folder: Path) -> str:
    """The arguments that start a run in ``folder``, or resume it if it exists."""
    return f"--resume --out {folder}" if (folder / "config.json").exists() else f"{RUNS[name][1]} --out {folder}"


def kills(rng: random.Random, number: int, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Kill runs by kill -9 at random moments and resume them until they finish. They must equal the reference run."""
    count, left = 0, number
    while left:
        name = QUICK if count % 4 < 2 else list(reference)[count // 2 % len(reference)]
        folder, log = work / f"killed{count}", work / "log"
        count += 1
        here, finishing = [], False
        while True:
            pid = begin(RUNS[name][0], shlex.split(start_or_resume_args(name, folder)), log)
            if len(here) < left and not finishing:
                wanted = rng.randrange(len(PHASES))
                if wanted == STARTING:
                    time.sleep(rng.uniform(0, 0.3))
                else:
                    until(lambda pid=pid: phase[0] != STARTING, pid)
                    time.sleep(rng.uniform(0, reference[name]["seconds"] / 6))
                    until(lambda pid=pid, wanted=wanted: phase[0] in (wanted, FINISHING), pid)
                    time.sleep(rng.uniform(0, 0.005))
                where, finishing = PHASES[phase[0]], phase[0] == FINISHING
                os.kill(pid, signal.SIGKILL)
            code = end(pid)
            if code != -signal.SIGKILL:
                break
            here.append((f"kill -9 while {where}", check_stopped_run(folder, reference[name]["outcome"])))
        wrong = diff_from_reference(folder, reference[name]["outcome"])
        if code != 0:
            wrong.append(f"exit code {code}: {log.read_text()[-500:]}")
        left -= len(here)
        yield from ((what, found + wrong) for what, found in here)


def check_exit(log: Path, code: int, expected: int) -> list[str]:
    """Errors in how a process ended, as sentences: another exit code than expected, or a traceback."""
    text = log.read_text()
    wrong = [] if code == expected else [f"exit code {code}, not {expected}: {text[-500:]}"]
    return wrong + (["a traceback"] if "Traceback" in text else [])


def command_in(log: Path) -> str:
    """The arguments of the command that the last log line gives for resuming the run."""
    _, _, command = log.read_text().splitlines()[-1].partition("continue with: python ")
    return " ".join(shlex.quote(word) for word in shlex.split(command)[1:])


def check_continuation(name: str, log: Path, folder: Path, reference: dict) -> list[str]:
    """Run the command given in the last line of ``log``, and return the errors of the resumed run as sentences."""
    command = command_in(log)
    if "--resume" not in command or str(folder) not in command:
        return [f"the log gives no command: {log.read_text()[-300:]}"]
    code = run(RUNS[name][0], command, log)
    return check_exit(log, code, 0) + diff_from_reference(folder, reference[name]["outcome"])


def stops(rng: random.Random, number: int, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Send SIGINT and SIGTERM in each phase. The printed command must finish the run with the reference's results."""
    log = work / "log"
    cases = [(QUICK, moment) for moment in range(1, 5)]
    cases += [case for case in (("air", 1), ("starts", 1), ("starts", 2)) if case[0] in reference]
    for count in range(number):
        name, moment = cases[count % len(cases)]
        asked, expected = ((signal.SIGINT, 130), (signal.SIGTERM, 143))[count % 2]
        folder = work / f"stopped{count}"
        pid = begin(RUNS[name][0], shlex.split(start_or_resume_args(name, folder)), log)
        wanted = (TRAINING, EVALUATING, TRAINING, FINISHING)[moment - 1]
        until(lambda pid=pid, wanted=wanted: phase[0] == wanted, pid)
        if moment == 3:
            time.sleep(rng.uniform(0, reference[name]["seconds"] / 3))
        where = PHASES[phase[0]] if moment > 1 else "tracing the first step"
        os.kill(pid, asked)
        wrong = check_exit(log, end(pid), expected) + check_continuation(name, log, folder, reference)
        yield f"{asked.name} while {where}{', in one of several restarts' if name == 'starts' else ''}", wrong


def writes(rng: random.Random, number: int, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Let fsync report a full disk from a random call on: for checkpoints, log lines, weights or plots."""
    log = work / "log"
    for count in range(number):
        folder, name, left = work / f"full{count}", QUICK, rng.randrange(3, 85)

        def fault(left=left, fsync=os.fsync) -> None:
            def fsync_on_a_full_disk(descriptor: int) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fsync(descriptor)

            io.os.fsync = fsync_on_a_full_disk

        code = run(RUNS[name][0], start_or_resume_args(name, folder), log, fault)
        if code == 0:  # the run had fewer calls
            continue
        wrong = check_exit(log, code, 1) + check_stopped_run(folder, reference[name]["outcome"])
        if any(folder.glob(f"{TEMPORARY}*")):
            wrong.append("a temporary file is left")
        yield "a write that fails", wrong + check_continuation(name, log, folder, reference)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mount a small file system at ``folder``. Yields False if this process is not permitted to mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", folder], check=True)


def disks(rng: random.Random, number: int, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Train on a disk that is too small. After it is enlarged, the printed command must finish the run."""
    log = work / "log"
    for count in range(number):
        disk = work / f"disk{count}"
        with mounted(disk, f"size={4 * rng.randrange(1, reference[QUICK]['kilobytes'] // 4)}k") as done:
            if not done:
                return
            code = run(RUNS[QUICK][0], start_or_resume_args(QUICK, disk / "run"), log)
            if code == 0:  # the disk was large enough
                continue
            if not (disk / "run" / "config.json").exists():
                yield "a full disk", check_exit(log, code, 2)
                continue
            wrong = check_exit(log, code, 1) + check_stopped_run(disk / "run", reference[QUICK]["outcome"])
            if any((disk / "run").glob(f"{TEMPORARY}*")):
                wrong.append("a temporary file is left")
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            yield "a full disk", wrong + check_continuation(QUICK, log, disk / "run", reference)


def read_only(rng: random.Random, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Train in folders that cannot be written to. They must be rejected with exit code 2 and left unchanged."""
    log = work / "log"
    for folder in (Path("/proc/run"), Path("/sys/run")):
        wrong = check_exit(log, run(RUNS[QUICK][0], start_or_resume_args(QUICK, folder), log), 2)
        yield "a folder that cannot be written to", wrong + ([] if not folder.exists() else ["files are left"])
    with mounted(work / "disk", "size=64m") as done:
        if done:
            run(RUNS[QUICK][0], f"{RUNS[QUICK][1]} --steps 3 --out {work / 'disk' / 'run'}", log)
            before = sorted((work / "disk").rglob("*"))
            subprocess.run(["mount", "-o", "remount,ro", work / "disk"], check=True)
            for arguments in (
                f"{RUNS[QUICK][1]} --out {work / 'disk' / 'new'}",
                start_or_resume_args(QUICK, work / "disk" / "run"),
            ):
                wrong = check_exit(log, run(RUNS[QUICK][0], arguments, log), 2)
                left = sorted((work / "disk").rglob("*")) != before
                yield "a folder that cannot be written to", wrong + (["files are left"] if left else [])


def clocks(rng: random.Random, number: int, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Shift the wall clock by up to a year, randomly at each reading. Results and elapsed times must not change."""
    log = work / "log"
    for count in range(number):
        folder, seed = work / f"clock{count}", rng.random()

        def fault(seed=seed) -> None:
            jumps, true = random.Random(seed), time.time
            time.time = lambda: true() + jumps.uniform(-3e7, 3e7)

        begun = time.monotonic()
        code = run(RUNS[QUICK][0], start_or_resume_args(QUICK, folder), log, fault)
        spent = time.monotonic() - begun
        wrong = check_exit(log, code, 0) + diff_from_reference(folder, reference[QUICK]["outcome"])
        seconds = [json.loads(line)["seconds"] for line in read_complete_lines(folder / "metrics.jsonl")]
        if seconds != sorted(seconds) or not 0 < seconds[-1] < spent:
            wrong.append(f"elapsed times {seconds} in a run of {spent} s")
        yield "a wall clock that jumps", wrong


def concurrent_runs(rng: random.Random, work: Path, reference: dict[str, dict]) -> Iterator[tuple[str, list[str]]]:
    """Start three runs in the same second without --out, and several processes in the same folder."""
    name, log = QUICK, work / "log"
    (work / "cwd").mkdir()

    class Still(datetime):
        @classmethod
        def now(cls):
            return cls(2030, 1, 2, 3, 4, 5)

    def fault() -> None:
        command_line.datetime = Still
        os.chdir(work / "cwd")

    pids = [begin(RUNS[QUICK][0], shlex.split(RUNS[name][1]), work / f"log{i}", fault) for i in range(3)]
    wrong = [sentence for i, pid in enumerate(pids) for sentence in check_exit(work / f"log{i}", end(pid), 0)]
    folders = sorted((work / "cwd" / "runs" / f"{QUICK}-digits").iterdir())
    if len(folders) != 3:
        wrong.append(f"the folders are {folders}")
    for folder in folders:
        wrong += diff_from_reference(folder, reference[name]["outcome"])
    yield "runs that start in the same second", wrong

    folder = work / "shared"
    pid = begin(RUNS[QUICK][0], [*shlex.split(start_or_resume_args(name, folder)), "--steps", "1000000"], work / "log0")
    until(lambda: (folder / "checkpoint.safetensors").exists(), pid)
    for arguments in (f"--resume --out {folder}", f"{RUNS[name][1]} --out {folder}"):
        yield "a second process in the same folder", check_exit(log, run(RUNS[QUICK][0], arguments, log), 2)
    os.kill(pid, signal.SIGKILL)
    end(pid)
    pid = begin(RUNS[QUICK][0], ["--resume", "--out", str(folder)], log)
    until(lambda: phase[0] == TRAINING, pid)
    os.kill(pid, signal.SIGTERM)
    yield "a folder whose first process was killed", check_exit(log, end(pid), 143)


def non_finite_losses(rng: random.Random, number: int, work: Path, reference: dict) -> Iterator[tuple[str, list[str]]]:
    """Make the loss of a random step NaN. The last good checkpoint must be kept and be resumable."""
    log = work / "log"
    for count in range(number):
        folder, bad = work / f"infinite{count}", rng.randrange(20)

        def fault(left=bad) -> None:
            gradients = SVI.gradients

            def infinite(svi, *args):
                nonlocal left
                left -= 1
                loss, *others = gradients(svi, *args)
                return loss * torch.nan if left == -1 else loss, *others

            SVI.gradients = infinite

        wrong = check_exit(log, run(RUNS[QUICK][0], start_or_resume_args(QUICK, folder), log, fault), 1)
        if "infinite or NaN" not in log.read_text() or "checkpoint is kept" not in log.read_text():
            wrong.append(f"the error message is missing: {log.read_text()[-300:]}")
        if step_of(folder / "checkpoint.safetensors") > bad:
            wrong.append("a checkpoint was written after the non-finite loss")
        wrong += check_stopped_run(folder, reference[QUICK]["outcome"])
        code = run(RUNS[QUICK][0], start_or_resume_args(QUICK, folder), log)
        yield (
            "a non-finite loss",
            wrong + check_exit(log, code, 0) + diff_from_reference(folder, reference[QUICK]["outcome"]),
        )


def long_run(steps: int, work: Path) -> list[str]:
    """Train for ``steps`` steps. Memory and the number of file descriptors must not grow in the second half."""
    log, seen = work / "log", work / "seen.jsonl"

    def fault() -> None:
        log_line = loop.Run.log

        def look(run, step, *others) -> None:
            log_line(run, step, *others)
            held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            with open(seen, "a") as file:
                file.write(json.dumps([step, held, len(os.listdir("/proc/self/fd"))]) + "\n")

        loop.Run.log = look

    arguments = f"{SCENES} --device cpu --steps {steps} --eval-every {steps // 10} --out {work / 'long'}"
    wrong = check_exit(log, run("air", arguments, log, fault), 0)
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    (_, held, descriptors), *_, (_, held_last, descriptors_last) = rows[len(rows) // 2 :]
    if held_last > held + 8e6:
        wrong.append(f"memory grew from {held} to {held_last} bytes")
    if descriptors_last > descriptors:
        wrong.append(f"file descriptors grew from {descriptors} to {descriptors_last}")
    return wrong


def reference_runs(names: list[str], work: Path) -> tuple[dict[str, dict], list[str]]:
    """The results of undisturbed runs by name, and the differences between two runs with the same seed."""
    reference, wrong = {}, []
    for name in names:
        (system, arguments), log = RUNS[name], work / "log"
        pid = begin(system, shlex.split(f"{arguments} --out {work / name}"), log)
        until(lambda pid=pid: phase[0] != STARTING, pid)
        begun = time.monotonic()
        wrong += check_exit(log, end(pid), 0)
        size = sum(path.stat().st_size for path in (work / name).rglob("*") if path.is_file())
        found = {"outcome": outcome(work / name), "seconds": time.monotonic() - begun, "kilobytes": size // 1024}
        reference[name] = found
        run(system, f"{arguments} --out {work / f'{name}-again'}", log)
        wrong += [f"{name}: {what}" for what in diff_from_reference(work / f"{name}-again", found["outcome"])]
    return reference, wrong


def main(argv: list[str] | None = None) -> None:
    """Inject every fault, print one line per kind, and write the counts. Exits with 1 if a run did not survive."""
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=positive_int, default=50, help="kills by kill -9 (others: a fifth or less)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help=f"kinds of runs, including {QUICK}")
    parser.add_argument("--long", type=positive_int, default=10_000, metavar="STEPS", help="length of the long run")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the times of faults")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE", help="output file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun, rng, few = time.monotonic(), random.Random(options.seed), -(-options.kills // 5)
    tried, survived = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        reference, wrong = reference_runs(options.runs, work)
        note = partial(_note, tried, survived)
        note("two runs with the same seed", wrong)
        for faults in (
            kills(rng, options.kills, work, reference),
            stops(rng, few, work, reference),
            writes(rng, few, work, reference),
            disks(rng, few, work, reference),
            read_only(rng, work, reference),
            clocks(rng, -(-few // 4), work, reference),
            concurrent_runs(rng, work, reference),
            non_finite_losses(rng, -(-few // 3), work, reference),
        ):
            for what, wrong in faults:
                note(what, wrong)
        if "air" in options.runs:
            note("memory and file descriptors of a long run", long_run(options.long, work))
    described = {
        "command": shlex.join(["python", *sys.argv]),
        "seed": options.seed,
        "seconds": round(time.monotonic() - begun, 1),
        **environment(torch.device("cpu")),
        "rows": [{"what": what, "tried": tried[what], "survived": survived[what]} for what in sorted(tried)],
    }
    write_json(options.out, described)
    for row in described["rows"]:
        print(f"{row['what']}: {row['survived']} of {row['tried']}")
    if survived != tried:
        sys.exit(1)


def _note(tried: Counter, survived: Counter, what: str, wrong: list[str]) -> None:
    tried[what] += 1
    survived[what] += not wrong
    print(f"{what}: {'not ' if wrong else ''}survived", file=sys.stderr)
    for sentence in wrong:
        print(f"{what}: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    cli.run_script(main)
