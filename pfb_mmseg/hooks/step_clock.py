"""What a step took, blocked or not, and the time saved by it."""

from __future__ import annotations

import statistics
import time


class StepClock:
    """Times training steps on the host; full ones are what the blocked ones are measured against.

    MMEngine reads the losses after every step, which waits for the device, so the host's clock is
    the step's.
    """

    # The median of this many full steps is the yardstick: enough to forget the slow first ones.
    _WINDOW = 200

    def __init__(self) -> None:
        self.full_times: list[float] = []
        self.total_time = 0.0
        self.num_steps = 0
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, full: bool) -> None:
        """Count the step that is over; ``full``: every image was trained on and none was scored."""
        seconds = time.perf_counter() - self._started
        self.total_time += seconds
        self.num_steps += 1
        if full:
            self.full_times = [*self.full_times, seconds][-self._WINDOW :]

    @property
    def time_saved(self) -> float | None:
        """1 - time of all steps / time of as many full steps; None before the first full step."""
        if not self.full_times:
            return None
        return 1 - self.total_time / (self.num_steps * statistics.median(self.full_times))

    def state_dict(self) -> dict:
        return {
            'full_times': list(self.full_times),
            'total_time': self.total_time,
            'num_steps': self.num_steps,
        }

    def load_state_dict(self, state: dict) -> None:
        self.full_times = list(state['full_times'])
        self.total_time = state['total_time']
        self.num_steps = state['num_steps']
