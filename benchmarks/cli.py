"""Start-to-finish time of the commands that only look, beside an empty Python program.

    python benchmarks/cli.py

Each command is a process of its own, output thrown away, against an empty store. The commands take turns, so that a
busy machine disturbs all alike; printed are medians of seconds passed and of processor seconds, and the ratio to the
empty program. The goal is under 0.5 s each.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

CALL = ["-c", "from workingpapers.cli import main; main(prog_name='papers')"]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "papers --help": [*CALL, "--help"],
    "papers list": [*CALL, "list"],
    "papers search 'lable efficient probe'": [*CALL, "search", "lable efficient probe"],
    "papers show moment-probing": [*CALL, "show", "moment-probing"],
}
REPEATS = 7


def seconds(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds that passed and the processor seconds that a program took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = perf_counter()
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, *arguments], env=environment, stdout=quiet, stderr=quiet, check=True)
    passed = perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "WORKINGPAPERS_STORE": str(Path(folder) / "runs.sqlite")}
        for arguments in COMMANDS.values():
            seconds(arguments, environment)  # compiles what was not compiled yet
        for _ in range(REPEATS):
            for name, arguments in COMMANDS.items():
                times[name].append(seconds(arguments, environment))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, median of {REPEATS}\n")
    print(f"{'command':40}{'seconds':>9}{'processor s':>13}{'ratio':>8}")
    empty = statistics.median(passed for passed, _ in times["python -c pass"])
    for name, pairs in times.items():
        passed, used = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{name:40}{passed:>9.3f}{used:>13.3f}{passed / empty:>8.1f}")


if __name__ == "__main__":
    main()
