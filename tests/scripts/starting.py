"""How the script tests start scripts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANGS = 900  # seconds after which a process is taken to hang; none of them needs a tenth of it, on any machine
SMALL = [
    *("--canvas", "20", "--object-size", "8", "--train-scenes", "40", "--test-scenes", "30", "--window", "8"),
    *("--what-dim", "4", "--batch-size", "16", "--device", "cpu", "--no-compile"),
]

OWN = ["--scenes", *SMALL[SMALL.index("--train-scenes") :]]  # for ready-made scenes, whose canvas is what it is


def start(name, *arguments):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
