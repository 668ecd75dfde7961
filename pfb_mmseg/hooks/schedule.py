"""From which iteration to which batches are pruned."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop

from ..core.checks import check_bool


class Schedule:
    """A part of a run, in fractions of it, in iterations or in epochs; see :class:`PFBHook`.

    Raises:
        TypeError, ValueError: an argument is outside its range, or ``begin`` does not come before
            ``end``.
    """

    def __init__(self, begin: float | int, end: float | int, by_epoch: bool) -> None:
        check_bool('by_epoch', by_epoch)
        unit = 'an epoch' if by_epoch else 'an iteration'
        for name, value in (('begin', begin), ('end', end)):
            _check_moment(name, value, f'a fraction of the run (float in [0, 1]) or {unit}')
        if isinstance(begin, Integral) == isinstance(end, Integral) and begin >= end:
            raise ValueError(f'begin={begin!r} must come before end={end!r}')
        if isinstance(end, Integral) and end == 1 and not by_epoch:
            raise ValueError(
                f'end={end!r} is iteration 1 and would leave nothing to prune; write end=1.0 for '
                'the end of the run'
            )
        self.begin = begin
        self.end = end
        self.by_epoch = by_epoch

    def resolve(self, loop: BaseLoop) -> tuple[int, int]:
        """First pruned iteration, and the first that is not pruned any more.

        Raises:
            ValueError: nothing of the run would be pruned, or the loop counts no epochs.
        """
        if self.by_epoch and isinstance(loop, IterBasedTrainLoop):
            raise ValueError(
                f'by_epoch=True: {type(loop).__name__} counts iterations; give begin and end as '
                'iterations or as fractions of the run, or train with EpochBasedTrainLoop'
            )
        unit = len(loop.dataloader) if self.by_epoch else 1
        begin, end = (
            moment * unit if isinstance(moment, Integral) else round(moment * loop.max_iters)
            for moment in (self.begin, self.end)
        )
        if not begin < min(end, loop.max_iters):
            raise ValueError(
                f'begin={self.begin!r} is iteration {begin}, end={self.end!r} is iteration {end} '
                f'of {loop.max_iters}: begin must come before end, and before the end of the run'
            )
        return int(begin), int(end)


def _check_moment(name: str, value: Any, allowed: str) -> None:
    sentence = f'{name}={value!r}: expected {allowed} (int >= 0)'
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(sentence)
    if value < 0 or (not isinstance(value, Integral) and not value <= 1):
        raise ValueError(sentence)
