"""Where a search's tasks run: on Ray, a few at a time, or in this process where there is none."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from penstock.cluster.tasks import cores_of_ray


class Done(NamedTuple):
    """A task that has ended: with a result, or with an error."""

    key: Any
    result: Any
    error: Exception | None


class Tasks(Protocol):
    """Runs calls side by side; the caller holds no more than `num_slots` of them at a time."""

    num_slots: int

    def share(self, value: Any) -> Any:
        """Put a value where every task finds it, once; give what a call takes in its place."""
        ...

    def start(self, key: Any, function: Callable[..., Any], *arguments: Any, num_cpus: int) -> None:
        """Begin a call."""
        ...

    def wait(self, timeout_s: float | None) -> Done | None:
        """Give a call that has ended, or None where none has in that time."""
        ...

    def cancel(self) -> None:
        """End what still runs."""
        ...


class OnRay:
    """Tasks of the Ray that this process is connected to; a lost worker's task runs again."""

    def __init__(self, num_slots: int, *, max_retries: int = 2) -> None:
        self.num_slots = num_slots
        self._max_retries = max_retries
        self._running: dict[Any, Any] = {}

    def share(self, value: Any) -> Any:
        """Put the value into Ray's store."""
        import ray

        return ray.put(value)

    def start(self, key: Any, function: Callable[..., Any], *arguments: Any, num_cpus: int) -> None:
        """Begin a task of so many CPUs."""
        import ray

        task = ray.remote(function).options(num_cpus=num_cpus, max_retries=self._max_retries)
        self._running[task.remote(*arguments)] = key

    def wait(self, timeout_s: float | None) -> Done | None:
        """Give a task that has ended, or None where none has in that time."""
        import ray

        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        if not ready:
            return None
        key = self._running.pop(ready[0])
        try:
            return Done(key, ray.get(ready[0]), None)
        except Exception as error:  # noqa: BLE001  # whose fault it was, the caller finds out
            return Done(key, None, error)

    def cancel(self) -> None:
        """End what still runs; its workers are killed, as a fit does not listen."""
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()


class Here:
    """Calls in this process, one after the other."""

    num_slots = 1

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Callable[..., Any], tuple[Any, ...]]] = deque()

    def share(self, value: Any) -> Any:
        """Give the value itself."""
        return value

    def start(self, key: Any, function: Callable[..., Any], *arguments: Any, num_cpus: int) -> None:
        """Keep the call for `wait`."""
        self._waiting.append((key, function, arguments))

    def wait(self, timeout_s: float | None) -> Done | None:
        """Run the next call."""
        key, function, arguments = self._waiting.popleft()
        try:
            return Done(key, function(*arguments), None)
        except Exception as error:  # noqa: BLE001  # whose fault it was, the caller finds out
            return Done(key, None, error)

    def cancel(self) -> None:
        """Forget what has not begun."""
        self._waiting.clear()


def result_of(running: Tasks) -> Any:
    """Wait for the one call that was begun, and give its result or raise its error."""
    done = None
    while done is None:
        done = running.wait(1.0)
    if done.error is not None:
        raise done.error
    return done.result


def tasks(num_slots: int | None = None) -> Tasks:
    """Where to run: on the Ray that this process is connected to, else here.

    Args:
        num_slots: how many at a time; None: as many as there are cores.
    """
    cores = cores_of_ray()
    return Here() if cores is None else OnRay(num_slots or cores)
