"""StepClock: how long full and blocked steps and the waits between them take."""

from __future__ import annotations

import statistics
import time

_WINDOW = 200  # latest full steps that are compared with: enough to forget the slow first ones


class StepClock:
    """Times training steps and the waits between them, to compare blocked with full steps.

    MMEngine reads the losses after every step, which waits for the device, so the host's clock
    measures the step. A wait is the time from the end of a step to the start of the next one: the
    data loader, and the other hooks. A step is counted with the wait before it; the first one, and
    those after a :meth:`pause`, are not. All times are in seconds.
    """

    def __init__(self) -> None:
        self.full_times: list[float] = []
        self.full_waits: list[float] = []
        self.blocked_time = 0.0
        self.blocked_wait = 0.0
        self.num_blocked = 0
        self.num_steps = 0
        self._started = 0.0
        self._ended: float | None = None

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, full: bool) -> None:
        """Count the step that is over; ``full``: every image was trained on and none was scored."""
        before, self._ended = self._ended, time.perf_counter()
        if before is None:
            return
        wait, seconds = self._started - before, self._ended - self._started
        self.num_steps += 1
        if full:
            self.full_times = [*self.full_times, seconds][-_WINDOW:]
            self.full_waits = [*self.full_waits, wait][-_WINDOW:]
        else:
            self.blocked_time += seconds
            self.blocked_wait += wait
            self.num_blocked += 1

    def pause(self) -> None:
        """Do not count the wait before the next step, in which the run validates or saves."""
        self._ended = None

    @property
    def step_time_saved(self) -> float | None:
        """Share of the time of all steps, if all were full ones, that blocking has saved.

        A full step counts as saving nothing, since the first ones are slow for other reasons. None
        before the first full and the first blocked step.
        """
        return self._saved(0, 0)

    @property
    def time_saved(self) -> float | None:
        """Share of the wall clock that blocking has saved.

        As :attr:`step_time_saved`, with the mean wait added to steps of either kind, since a loader
        with several workers makes only some steps wait.
        """
        full_wait = sum(self.full_waits) / max(1, len(self.full_waits))
        return self._saved(full_wait, self.blocked_wait / max(1, self.num_blocked))

    def _saved(self, full_wait: float, blocked_wait: float) -> float | None:
        if not self.full_times or not self.num_blocked:
            return None
        full = statistics.median(self.full_times) + full_wait
        blocked = self.blocked_time / self.num_blocked + blocked_wait
        return self.num_blocked * (full - blocked) / (self.num_steps * full)

    def state_dict(self) -> dict:
        return {name: value for name, value in vars(self).items() if name[0] != '_'}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)
