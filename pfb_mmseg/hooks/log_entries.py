"""When the log gets an entry, and how a hook's scalars come into it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmengine.hooks import LoggerHook
from mmengine.logging import HistoryBuffer, MessageHub

# LogProcessor reads what begins so, and cuts it off.
_TRAIN = 'train/'
# Iterations between two entries of a run without LoggerHook, unless told otherwise.
_INTERVAL = 50


class LogEntries:
    """Hands scalars to MMEngine's log: one value each for an entry.

    They go into ``runner.message_hub`` as ``'train/<name>'``, where any hook can read them, and
    LoggerHook takes them from there into its line of the log and to the Visualizer's backends, as
    ``<name>``. It comes after hooks of NORMAL priority, so what they add here is in the entry of
    the same iteration.

    - A value stands in the hub until the next entry; a scalar that this one does not have is
      taken out, so LoggerHook never repeats it.
    - What ``log_processor`` does over a window is over so many entries, not iterations.
    - LogProcessor averages by itself what is called a loss or a time (its ``mean_pattern``). A
      value here is already one of the whole interval, or of the run: of such a scalar the hub
      keeps the last value alone, of which any average is the same number.

    Args:
        prefix: with which the names of the scalars begin, ``'pfb/'``.
        interval: iterations between two entries, beside those that LoggerHook makes; None: none,
            or every 50 where there is no LoggerHook.
    """

    def __init__(self, prefix: str, interval: int | None = None) -> None:
        self.prefix = prefix
        self.interval = interval

    def due(self, runner, batch_idx: int) -> bool:
        """Whether this iteration makes an entry; the run's last one always does."""
        interval = self.interval
        if interval is None and not _loggers(runner):
            interval = _INTERVAL
        return (
            _is_logged(runner, batch_idx)
            or runner.iter + 1 == runner.max_iters
            or (interval is not None and (runner.iter + 1) % interval == 0)
        )

    def add(self, runner, batch_idx: int, scalars: Mapping[str, int | float]) -> None:
        """Make an entry; ``scalars`` by their names, prefix included."""
        hub = runner.message_hub
        for key in [key for key in hub.log_scalars if key.startswith(_TRAIN + self.prefix)]:
            if key.removeprefix(_TRAIN) not in scalars:
                _take_out(hub, key)
        averaged = getattr(runner.log_processor, 'mean_pattern', None)
        for name, value in scalars.items():
            if averaged is not None and re.search(averaged, name):
                hub.log_scalars.setdefault(_TRAIN + name, HistoryBuffer(max_length=1))
            hub.update_scalar(_TRAIN + name, value)
        if not _is_logged(runner, batch_idx):  # nobody else hands it on
            runner.visualizer.add_scalars(dict(scalars), step=runner.iter + 1)


def _loggers(runner) -> list[LoggerHook]:
    return [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]


def _is_logged(runner, batch_idx: int) -> bool:
    """Whether LoggerHook makes an entry in this iteration.

    It comes later and does not tell beforehand, so this is its own condition over again: each
    interval, counted from the start of the epoch, and behind an epoch that is not longer than one.
    """
    loader = runner.train_dataloader
    return any(
        hook.every_n_inner_iters(batch_idx, hook.interval)
        or (
            hook.end_of_epoch(loader, batch_idx)
            and (not hook.ignore_last or len(loader) <= hook.interval)
        )
        for hook in _loggers(runner)
    )


def _take_out(hub: MessageHub, key: str) -> None:
    del hub.log_scalars[key]
    hub._resumed_keys.pop(key, None)  # or a resumed run would warn that it is missing
