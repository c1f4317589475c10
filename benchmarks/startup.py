"""Time `import recal` and `recal --help`, relative to importing click and rich alone.

    python benchmarks/startup.py

Times are medians over several interleaved processes; the ratio should stay under 2.5.
"""

import statistics
import subprocess
import sys
import time

RUNS = 15
COMMANDS = {
    "import click, rich": ["-c", "import click, rich"],
    "import recal": ["-c", "import recal"],
    "recal --help": ["-m", "recal", "--help"],
}


def main() -> None:
    """Measure and print."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS + 1):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - began)
    base = statistics.median(times["import click, rich"][1:])
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])  # the first run warms the caches
        print(f"{name:20} {1000 * median:6.0f} ms   ratio {median / base:.2f}")


if __name__ == "__main__":
    main()
