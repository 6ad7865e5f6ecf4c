"""Print the seconds that `import jaxtheory` adds to `import jax, flax, optax`.

Run: `python -m experiments.benchmarks.import_time`. Every run is a fresh interpreter
that imports the three first; the median of the runs is what counts.
"""

import statistics
import subprocess
import sys

NUM_RUNS = 7
PROGRAM = """
import time
import jax, flax, optax
start = time.perf_counter()
import jaxtheory
print(time.perf_counter() - start)
"""


def seconds() -> float:
    """Seconds that the import takes in one fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    return float(run.stdout)


def main() -> None:
    """Measure and print."""
    runs = [seconds() for _ in range(NUM_RUNS)]
    print(
        f"import jaxtheory adds {statistics.median(runs):.3f} s "
        f"(median of {NUM_RUNS}; {min(runs):.3f} to {max(runs):.3f})"
    )


if __name__ == "__main__":
    main()
