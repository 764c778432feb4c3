"""Runs many calls of one function: as Ray tasks, or in this process where there is no Ray."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_Call = Mapping[str, Any]


class RunTasks(Protocol):
    """Runs calls of one function and gives their results in the order of the calls."""

    def __call__(self, function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
        """Start at once; results are waited for as they are taken."""
        ...


def run_here(function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
    """Run the calls in this process, one after the other."""
    return (function(**call) for call in calls)


@dataclass(frozen=True, kw_only=True)
class RunOnRay:
    """Runs calls as Ray tasks, so many at a time; a task whose worker dies is run again."""

    max_in_flight: int
    max_retries: int = 3
    num_cpus: int = 1
    """Of each task, and so its threads."""

    def __call__(self, function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
        """Run the calls on the Ray that this process is connected to.

        Who takes no further result and closes the iterator ends what still runs.
        """
        import ray

        task = ray.remote(_call).options(num_cpus=self.num_cpus, max_retries=self.max_retries)
        waiting: dict[Any, int] = {}
        done: dict[int, Any] = {}
        numbered = iter(enumerate(calls))
        turn = 0
        try:
            while turn < len(calls):
                for number, call in itertools.islice(numbered, self.max_in_flight - len(waiting)):
                    waiting[task.remote(function, call)] = number
                ready, _ = ray.wait(list(waiting), num_returns=1)
                done[waiting.pop(ready[0])] = ray.get(ready[0])
                while turn in done:
                    yield done.pop(turn)
                    turn += 1
        finally:
            for reference in waiting if ray.is_initialized() else ():
                ray.cancel(reference)


def _call(function: Callable[..., Any], call: _Call) -> Any:
    return function(**call)


def runner(*, num_cpus: int = 1) -> RunTasks:
    """Where to run tasks of so many CPUs: on the Ray of this process, else in it."""
    cores = cores_of_ray()
    if cores is None:
        return run_here
    return RunOnRay(max_in_flight=max(cores // num_cpus, 1), num_cpus=num_cpus)


def cores_of_ray() -> int | None:
    """Give the cores of the Ray that this process is connected to; None where it is to none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if len([node for node in ray.nodes() if node["Alive"]]) > 1:
        return int(ray.cluster_resources().get("CPU", 1))
    # A Ray on one machine has more slots than cores, so that nothing starves.
    return os.cpu_count() or 1
