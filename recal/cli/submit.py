"""Array jobs of `recal eval`: its parts, which submitit starts on a cluster or on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recal.cli.options import COUNT, option, packed
from recal.distributed import Part
from recal.errors import RecalError, UsageError, reason

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

# parameters of `recal eval` that are not those of its parts
NOT_OF_PARTS = frozenset(
    {"submit", "array", "gpus", "cpus", "time", "part", "plan", "output", "format", "json"}
)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """How parts are started; None as `submit` evaluates in this process."""

    submit: str | None
    array: int | None
    gpus: int
    cpus: int | None
    time: int


submission_options = packed(
    "submission",
    Submission,
    option(
        "--submit",
        "Start an array job, one for each part, and return: on SLURM, or as processes of this "
        "machine. Needs submitit.",
        click.Choice(("slurm", "local")),
    ),
    option("--array", "Number of parts of the array job.", COUNT),
    option("--gpus", "Number of GPUs of each part, with a process each.", click.IntRange(0), 0),
    option("--cpus", "Number of cores of each process.", COUNT, shown="the cluster's"),
    option("--time", "Time limit of each part, in minutes.", COUNT, 60),
)


@dataclass(frozen=True)
class PartJob:
    """The command of a part, which a job calls, and calls again after its time limit."""

    words: tuple[str, ...]
    processes: int

    def __call__(self) -> None:
        """Run the command in this process."""
        from submitit.helpers import TorchDistributedEnvironment

        from recal.cli.main import recal

        if self.processes > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        recal.main([*self.words], standalone_mode=False)

    def checkpoint(self) -> DelayedSubmission:
        """Return the same job, which submitit queues again when the time of this one is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit_parts(folder: Path, words: list[str], submission: Submission) -> list[Job[Any]]:
    """Start the parts of an evaluation and return their jobs.

    Args:
        folder: The folder of the run; logs are in its folder `jobs`.
        words: Options and targets of all parts.
        submission: How they are started.

    Raises:
        UsageError: submitit is not installed, or the cluster is not there.
        RecalError: The cluster refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "--submit: expected the package submitit, which is not installed. Install it with pip "
            "install 'recal-bn[submit]'."
        ) from error
    processes, count = max(1, submission.gpus), submission.array or 1
    asked = {
        "name": "recal",
        "timeout_min": submission.time,
        "gpus_per_node": submission.gpus,
        "tasks_per_node": processes,
        "cpus_per_task": submission.cpus,
    }
    try:
        executor = submitit.AutoExecutor(folder / "jobs", cluster=submission.submit)
        executor.update_parameters(**{key: value for key, value in asked.items() if value})
        with executor.batch():
            return [
                executor.submit(PartJob(("eval", "--part", str(Part(i, count)), *words), processes))
                for i in range(1, count + 1)
            ]
    except (RuntimeError, OSError) as error:
        raise RecalError(
            f"--submit {submission.submit}: expected jobs to be started, got {reason(error)}."
        ) from error
