"""What the processes of a distributed run hand each other; in a single process, nothing.

Whatever a collective's size depends on is known to every host beforehand, so none waits for its
device to learn it, and no process can be left alone in one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of processes; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, in [0, world_size)."""
    return dist.get_rank() if world_size() > 1 else 0


def all_values(values: tuple[int, ...], device: torch.device) -> list[tuple[int, ...]]:
    """The values of every process, by rank. The host waits for them: not for every iteration."""
    mine = torch.tensor([values], device=device)
    return [tuple(row) for row in Gather(mine).wait().tolist()]


class Gather:
    """(K, ...) rows of this process on their way to all; K is the same in every process."""

    def __init__(self, rows: Tensor) -> None:
        # Kept until they have arrived: the collective reads them meanwhile.
        self._sent = rows.contiguous()
        self._received, self._work = self._sent, None
        if world_size() > 1:
            self._received = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
            parts = list(self._received.chunk(world_size()))
            self._work = dist.all_gather(parts, self._sent, async_op=True)

    def wait(self) -> Tensor:
        """(world_size * K, ...), by rank, the same in every process. Only the device waits."""
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
        kept: (W * K,) int64, ascending positions; the same in every process.
        batch_size: images per process. One with fewer repeats them to fill up; such a repetition
            is trained on only if it is among the kept.
    """

    def __init__(self, kept: Tensor, batch_size: int) -> None:
        self.kept = kept
        self.batch_size = batch_size
        ranks = torch.arange(world_size(), device=kept.device)
        self._slots = -(-batch_size // world_size())
        origin = kept // batch_size
        first = torch.searchsorted(origin, ranks)  # the turn of each rank's first kept image
        mine = first[rank()]
        # What leaves: in slot s for rank d lies the image whose turn is d's, for the s-th time.
        slots = torch.arange(self._slots, device=kept.device)
        turns = mine + slots * world_size() + ((ranks - mine) % world_size())[:, None]
        leaving = kept[turns.clamp(max=len(kept) - 1)] - rank() * batch_size
        self._leaving = leaving.clamp(0, batch_size - 1).flatten()  # a slot left over: any image
        # What arrives: this rank's turns, and where their images lie.
        turns = torch.arange(rank(), len(kept), world_size(), device=kept.device)
        origin = origin[turns]
        self._arriving = origin * self._slots + (turns - first[origin]) // world_size()

    @property
    def share(self) -> Tensor:
        """(K,) int64, ascending positions in the whole batch of the images that come here."""
        return self.kept[rank() :: world_size()]

    def own(self, num: int) -> Tensor:
        """(num,) bool: which of this process's images are kept, in whichever process."""
        mask = torch.zeros(
            world_size() * self.batch_size, dtype=torch.bool, device=self.kept.device
        ).index_fill_(0, self.kept, True)
        return mask[rank() * self.batch_size :][:num]

    @torch.no_grad()
    def move(self, rows: Tensor) -> Tensor:
        """(N, ...) of this process's images -> (K, ...) of those that come here, bit for bit.

        All but the first dimension are the same in every process.
        """
        sent = rows.index_select(0, self._leaving % len(rows))
        received = torch.empty_like(sent, memory_format=torch.contiguous_format)
        # As bytes, since not every backend knows every type.
        dist.all_to_all_single(_as_bytes(received), _as_bytes(sent.contiguous()))
        return received.index_select(0, self._arriving)


def _as_bytes(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1).view(torch.uint8)
