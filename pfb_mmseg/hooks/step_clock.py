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
        self.blocked_time = 0.0
        self.num_blocked = 0
        self.num_steps = 0
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, full: bool) -> None:
        """Count the step that is over; ``full``: every image was trained on and none was scored."""
        seconds = time.perf_counter() - self._started
        self.num_steps += 1
        if full:
            self.full_times = [*self.full_times, seconds][-self._WINDOW :]
        else:
            self.blocked_time += seconds
            self.num_blocked += 1

    @property
    def time_saved(self) -> float | None:
        """Share of the time of all steps, had they been full ones, that blocking has saved.

        A full step saves nothing, whatever it took: the first ones are slow for other reasons.
        None before the first full and the first blocked step.
        """
        if not self.full_times or not self.num_blocked:
            return None
        full_time = statistics.median(self.full_times)
        return (self.num_blocked * full_time - self.blocked_time) / (self.num_steps * full_time)

    def state_dict(self) -> dict:
        return {
            'full_times': list(self.full_times),
            'blocked_time': self.blocked_time,
            'num_blocked': self.num_blocked,
            'num_steps': self.num_steps,
        }

    def load_state_dict(self, state: dict) -> None:
        self.full_times = list(state['full_times'])
        self.blocked_time = state['blocked_time']
        self.num_blocked = state['num_blocked']
        self.num_steps = state['num_steps']
