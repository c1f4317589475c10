"""Evaluate the parts of a run as tasks of Ray.

    pip install ray
    python examples/ray_eval.py CHECKPOINT --suite cifar10c --data DATASETS --output RUN --parts 8

Every machine of the Ray cluster needs recal, the images, and the folder RUN. A task whose worker
dies is started again by Ray, and goes on with the cells that are there. `RAY_ADDRESS` names the
cluster; without it, the tasks run on this machine.
"""

import argparse
from pathlib import Path

import ray

import recal
from recal.errors import LockedError


@ray.remote(max_retries=3)
def evaluate_part(targets: list[str], part: str, options: dict[str, str]) -> str:
    """Evaluate one part and return how many cells other parts have not done yet."""
    try:
        run = recal.evaluate(targets, part=part, **options)
    except LockedError:  # of a run that is resumed
        return f"Part {part} has been taken over by another task"
    for failure in run.failures:
        print(failure)
    return f"{len(run.left)} cells are left"


def main() -> None:
    """Start a task for each part, and print how far the run is whenever one has finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--suite", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each task")
    parser.add_argument("--cpus", type=float, default=1, help="cores of each task")
    asked = parser.parse_args()
    ray.init()
    options = {
        "suite": asked.suite,
        "data": asked.data,
        # tasks have a working directory of their own
        "output": str(asked.output.resolve()),
        "device": "cuda" if asked.gpus else "cpu",
        "threads": max(1, int(asked.cpus)),
    }
    task = evaluate_part.options(num_gpus=asked.gpus, num_cpus=asked.cpus)
    running = [
        task.remote(asked.targets, f"{number}/{asked.parts}", options)
        for number in range(1, asked.parts + 1)
    ]
    while running:
        (done,), running = ray.wait(running)
        print(ray.get(done))
    print(f"All parts are done. The report: recal report {asked.output}")


if __name__ == "__main__":
    main()
