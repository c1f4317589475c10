"""Code in a process of its own, for promises about memory and about what would never end."""

import resource
import subprocess
import sys

SECONDS = 120  # of CPU time: far above what is needed, far below for ever


def run_limited(*arguments):
    """Run Python with these arguments under a limit of CPU time; return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def most_memory():
    """Return the most memory in bytes that this process has held at any time."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
