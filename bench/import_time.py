"""What `import patchclamp` costs over `import torch`, and how fast `patchclamp --help` answers, in fresh processes.

    bench/.venv-peers/bin/python bench/import_time.py --json bench/results/import_time.json

An import is timed inside its process, so that the interpreter's own start does not dilute the ratio; `--help` is timed
from outside, as a user waits for it. Ends with status 1 if a claim fails.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from protocol import Claim, report, take_turns

THREADS = 2
COMMAND = Path(sysconfig.get_path("scripts")) / "patchclamp"
IMPORT = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


def import_seconds(statement: str) -> float:
    """Seconds that `statement` takes as the first of a fresh interpreter."""
    child = [sys.executable, "-c", IMPORT.format(statement=statement)]
    return float(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)


def help_seconds() -> float:
    """Seconds from starting `patchclamp --help` to its end."""
    start = time.perf_counter()
    subprocess.run([COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def modules_imported_by_help() -> set[str]:
    """Names of all modules that `patchclamp --help` imports, as the interpreter itself reports them."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    child = subprocess.run([COMMAND, "--help"], check=True, capture_output=True, text=True, env=environment)
    lines = (line for line in child.stderr.splitlines() if line.startswith("import time:"))
    names = {line.rsplit("|", 1)[1].strip() for line in lines}
    if "patchclamp" not in names:
        raise AssertionError("patchclamp is not among the modules that its own command imports; the trace is broken")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    runs: dict[str, Callable[[], object]] = {
        "import torch": lambda: import_seconds("import torch"),
        "import patchclamp": lambda: import_seconds("import patchclamp"),
        "import patchclamp, first use of load": lambda: import_seconds("import patchclamp; patchclamp.load"),
        "patchclamp --help": help_seconds,
    }
    timings = take_turns(runs, rounds=chosen.rounds, warmup=1)
    over = timings.ratio(["import patchclamp"], ["import torch"])
    answer = timings.median("patchclamp --help")
    heavy = sorted(name for name in modules_imported_by_help() if name.partition(".")[0] in {"torch", "transformers"})
    claims = [
        Claim("importing takes at most 1.1 times `import torch`", over.median, over.interval, 1.1, over.median <= 1.1),
        Claim("`patchclamp --help` answers within half a second", answer, None, 0.5, answer < 0.5),
        Claim("modules of torch and transformers that --help imports: 0", len(heavy), None, 0, not heavy),
    ]
    return report(
        "import_time",
        threads=THREADS,
        setting={"rounds": chosen.rounds},
        timings=timings,
        claims=claims,
        measured={"heavy_modules_of_help": heavy[:20]},
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
