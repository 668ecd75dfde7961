"""What the processes of a distributed run hand each other; in a single process, nothing.

Whatever a collective's size depends on is known to every host beforehand, so none waits for its
device to learn it, and no process can be left alone in one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor
from torch import distributed as dist

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
        return {'_option': self._option}  # without the group itself, which cannot be pickled

    @cached_property
    def group(self) -> dist.ProcessGroup | None:
        """What the option stands for; ValueError if its dotted path leads nowhere, TypeError if it
        stands for no process group that this process is in."""
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

    def gather(self, rows: Tensor) -> Pending:
        """Send rows (K, ...), K the same in every process, on their way to all, where they arrive
        as (size * K, ...), by rank."""
        sent = rows.contiguous()
        if self.size == 1:
            return Pending(sent)
        received = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        # Its name in newer versions of torch, where the other one warns.
        gather = getattr(dist, 'all_gather_single', dist.all_gather_into_tensor)
        return Pending(received, gather(received, sent, group=self.group, async_op=True), sent)

    def mean(self, tensor: Tensor) -> Pending:
        """Send a tensor, of one shape in every process, on its way into the mean over all."""
        tensor = tensor.contiguous()
        if self.size == 1:
            return Pending(tensor)
        work = dist.all_reduce(tensor, group=self.group, async_op=True)
        return Pending(tensor, work, divisor=self.size)

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


class Pending:
    """A tensor on its way between the processes, see :meth:`Ranks.gather` and :meth:`Ranks.mean`.

    Args:
        tensor: in which it arrives.
        work: of the collective; None if it is there already.
        sent: what the collective reads meanwhile, and is kept for that.
        divisor: of what arrives.
    """

    def __init__(
        self,
        tensor: Tensor,
        work: dist.Work | None = None,
        sent: Tensor | None = None,
        divisor: int = 1,
    ) -> None:
        self._tensor, self._work, self._sent, self._divisor = tensor, work, sent, divisor

    def wait(self) -> Tensor:
        """The tensor, bit for bit the same in every process. Only the device waits."""
        if self._work is not None:
            self._work.wait()
        return self._tensor if self._divisor == 1 else self._tensor / self._divisor


def _check_group(group: object, option: object) -> None:
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        stands_for = '' if group is option else f' stands for {group!r}'
        raise TypeError(
            f'process_group={option!r}{stands_for}: expected a torch.distributed.ProcessGroup that '
            'this process is in, a function that returns one or its dotted path, or None for all '
            'processes'
        )
