"""What a run costs beside its work: an empty run against starting a Python process that imports torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from workingpapers.runs.process import LocalExecutor

REPEATS = 7


def seconds(work: object) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    """Print the medians of both, interleaved, their ratio, and the first run, which starts the server."""
    executor = LocalExecutor()
    first = seconds(lambda: executor.call(time.sleep, 0))
    runs, processes = [], []
    for _ in range(REPEATS):
        runs.append(seconds(lambda: executor.call(time.sleep, 0)))
        processes.append(seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)))
    executor.close()
    run, process = statistics.median(runs), statistics.median(processes)
    print(f"first run, with the server's start   {first:6.2f} s")
    print(f"each further run                     {run:6.2f} s")
    print(f"python -c 'import torch'             {process:6.2f} s")
    print(f"ratio, run to process                {run / process:6.2f}")


if __name__ == "__main__":
    main()
