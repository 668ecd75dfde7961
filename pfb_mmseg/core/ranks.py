"""What the processes of a distributed run hand each other; in a single process, nothing.

Whatever a collective's size depends on is known to every host beforehand, so none waits for its
device to learn it, and no process can be left alone in one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch import distributed as dist

from .rows import take_rows

# A process group, or what stands for one in a config. As a string: not every build of torch has
# the class.
ProcessGroupOption: TypeAlias = 'dist.ProcessGroup | Callable[[], dist.ProcessGroup] | str | None'


class Ranks:
    """The processes that train one model together.

    Args:
        process_group: a ``torch.distributed`` process group, of the data-parallel processes where
            there are others too; None: all there are. A config cannot hold one: it names a function
            without arguments that returns it, as such or by its dotted path. That is called once,
            when the group is first needed, at the same point in every process, so that it may make
            the group; never in a process that is alone.

    Raises:
        TypeError: ``process_group`` is something else.
    """

    def __init__(self, process_group: ProcessGroupOption = None) -> None:
        if not (isinstance(process_group, str) or callable(process_group)):
            _check_group(process_group, process_group)
        self._option = process_group

    def __deepcopy__(self, memo: dict) -> Ranks:
        return self  # a process group is no data: a copied model talks to the same processes

    def __getstate__(self) -> dict:
        # Nor can it be written down; the name of one can.
        return {'_option': self._option if isinstance(self._option, str) else None}

    @cached_property
    def group(self) -> dist.ProcessGroup | None:
        """What the option stands for.

        Raises:
            ValueError: its dotted path leads nowhere.
            TypeError: it stands for no process group that this process is in.
        """
        group = self._option
        if isinstance(group, str):
            try:
                group = pkgutil.resolve_name(group)
            except (ImportError, AttributeError, ValueError) as error:
                raise ValueError(
                    f'process_group={self._option!r} cannot be imported ({error}); give the dotted '
                    "path of a function that returns the group, 'my_package.parallel.data_group', "
                    'of a module that is on PYTHONPATH'
                ) from error
        if callable(group):
            group = group()
        _check_group(group, self._option)
        return group

    @property
    def size(self) -> int:
        """Number of processes; 1 where nothing is distributed."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Number of this process, in [0, size)."""
        return dist.get_rank(self.group) if self.size > 1 else 0

    def gather(self, rows: Tensor) -> Gather:
        """Send (K, ...) rows on their way to all; K is the same in every process."""
        return Gather(self, rows)

    def all_values(self, values: tuple[int, ...], device: torch.device) -> list[tuple[int, ...]]:
        """The values of every process, by rank. The host waits: not for every iteration."""
        mine = torch.tensor([values], device=device)
        return [tuple(row) for row in self.gather(mine).wait().tolist()]

    def agree(self, tensor: Tensor) -> Tensor:
        """What the first process has, in every process: their own may differ by rounding."""
        if self.size > 1:
            dist.broadcast(tensor, self._first, group=self.group)
        return tensor

    def collect(self, value: Any) -> list:
        """The picklable value of every process, by rank, in the first one; [] in the others.

        The host waits: not for every iteration.
        """
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, self._first, group=self.group)
        return values or []

    @property
    def _first(self) -> int:
        """Number of the group's first process among all."""
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)


class Gather:
    """Rows of every process on their way to all, see :meth:`Ranks.gather`."""

    def __init__(self, ranks: Ranks, rows: Tensor) -> None:
        # Kept until they have arrived: the collective reads them meanwhile.
        self._sent = rows.contiguous()
        self._received, self._work = self._sent, None
        if ranks.size > 1:
            self._received = rows.new_empty(ranks.size * len(rows), *rows.shape[1:])
            # Its name in newer versions of torch, where the other one warns.
            gather = getattr(dist, 'all_gather_single', dist.all_gather_into_tensor)
            self._work = gather(self._received, self._sent, group=ranks.group, async_op=True)

    def wait(self) -> Tensor:
        """(size * K, ...), by rank, the same in every process. Only the device waits."""
        if self._work is not None:
            self._work.wait()
        return self._received


class Exchange:
    """Hands the kept images of the whole batch to all processes in turns: an equal share to each.

    Image i of rank r has the position ``r * batch_size + i`` in the whole batch. In ascending
    order, the kept ones go to ranks 0, 1, ..., W - 1, 0, 1, ... So no rank has more than
    ``ceil(batch_size / W)`` images for another one, whichever are kept: that many travel between
    each two, used or not, and no host has to know the true number.

    Args:
        ranks: the W processes.
        kept: (W * K,) int64, ascending positions; the same in every process.
        batch_size: images per process. One with fewer repeats them to fill up; such a repetition
            is trained on only if it is among the kept.
    """

    def __init__(self, ranks: Ranks, kept: Tensor, batch_size: int) -> None:
        self._ranks = ranks
        self.kept = kept
        self.batch_size = batch_size
        size, rank = ranks.size, ranks.rank
        numbers = torch.arange(size, device=kept.device)
        self._slots = -(-batch_size // size)
        origin = kept // batch_size
        first = torch.searchsorted(origin, numbers)  # the turn of each rank's first kept image
        mine = first[rank]
        # What leaves: in slot s for rank d lies the image whose turn is d's, for the s-th time.
        slots = torch.arange(self._slots, device=kept.device)
        turns = mine + slots * size + ((numbers - mine) % size)[:, None]
        leaving = kept[turns.clamp(max=len(kept) - 1)] - rank * batch_size
        self._leaving = leaving.clamp(0, batch_size - 1).flatten()  # a slot left over: any image
        # What arrives: this rank's turns, and where their images lie.
        turns = torch.arange(rank, len(kept), size, device=kept.device)
        origin = origin[turns]
        self._arriving = origin * self._slots + (turns - first[origin]) // size

    @property
    def share(self) -> Tensor:
        """(K,) int64, ascending positions in the whole batch of the images that come here."""
        return self.kept[self._ranks.rank :: self._ranks.size]

    def own(self, num: int) -> Tensor:
        """(num,) bool: which of this process's images are kept, in whichever process."""
        mask = torch.zeros(
            self._ranks.size * self.batch_size, dtype=torch.bool, device=self.kept.device
        ).index_fill_(0, self.kept, True)
        return mask[self._ranks.rank * self.batch_size :][:num]

    @torch.no_grad()
    def take(self, rows: Tensor) -> Tensor:
        """(N, ...) of this process's images -> (K, ...) of those that come here, bit for bit.

        A collective: every process calls it, in the same order, and all but the first dimension
        are the same everywhere.
        """
        sent = rows.index_select(0, self._leaving % len(rows))
        received = torch.empty_like(sent, memory_format=torch.contiguous_format)
        # As bytes, since not every backend knows every type.
        dist.all_to_all_single(
            _as_bytes(received), _as_bytes(sent.contiguous()), group=self._ranks.group
        )
        return take_rows(received, self._arriving).to(memory_format=_memory_format(rows))


def _check_group(group: object, option: object) -> None:
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        stands_for = '' if group is option else f' stands for {group!r}'
        raise TypeError(
            f'process_group={option!r}{stands_for}: expected a torch.distributed.ProcessGroup that '
            'this process is in, a function that returns one or its dotted path, or None for all '
            'processes'
        )


def _memory_format(rows: Tensor) -> torch.memory_format:
    last = rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _as_bytes(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1).view(torch.uint8)
