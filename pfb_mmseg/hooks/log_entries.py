"""When MMEngine's log gets an entry, and how PFB's scalars come into it.

They go into ``runner.message_hub`` as ``'train/pfb/...'``, where any hook can read them. LoggerHook
takes them from there into its line of the log and to the Visualizer's backends. It comes after
hooks of NORMAL priority, so what these add is in the entry of the same iteration. Windows of
``log_processor`` are over so many entries, not iterations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmengine.hooks import LoggerHook
from mmengine.logging import HistoryBuffer

# LogProcessor reads what begins so, and cuts it off.
_TRAIN = 'train/'


def entry_is_due(runner, batch_idx: int) -> bool:
    """Whether this iteration makes an entry: as LoggerHook does, and at the end of the run."""
    return _is_logged(runner, batch_idx) or runner.iter + 1 == runner.max_iters


def add_entry(runner, batch_idx: int, scalars: Mapping[str, int | float]) -> None:
    """Make an entry; ``scalars`` by their names, ``'pfb/...'``."""
    hub = runner.message_hub
    for key in [key for key in hub.log_scalars if key.startswith(f'{_TRAIN}pfb/')]:
        if key.removeprefix(_TRAIN) not in scalars:  # LoggerHook would repeat the last value
            del hub.log_scalars[key]
            hub._resumed_keys.pop(key, None)  # or a resumed run would warn that it is missing
    averaged = getattr(runner.log_processor, 'mean_pattern', None)
    for name, value in scalars.items():
        # LogProcessor averages what is called a loss or a time. These values are of a whole
        # interval already: of a history of one value, any average is the same number.
        if averaged is not None and re.search(averaged, name):
            hub.log_scalars.setdefault(_TRAIN + name, HistoryBuffer(max_length=1))
        hub.update_scalar(_TRAIN + name, value)
    if not _is_logged(runner, batch_idx):  # nobody else hands it on
        runner.visualizer.add_scalars(dict(scalars), step=runner.iter + 1)


def _is_logged(runner, batch_idx: int) -> bool:
    """LoggerHook's own condition over again, since it comes later and does not tell beforehand."""
    loader = runner.train_dataloader
    return any(
        hook.every_n_inner_iters(batch_idx, hook.interval)
        or (
            hook.end_of_epoch(loader, batch_idx)
            and (not hook.ignore_last or len(loader) <= hook.interval)
        )
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
    )
