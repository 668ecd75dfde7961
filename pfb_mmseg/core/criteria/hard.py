"""What the network gets wrong, as told by an exit behind its shallow part."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..candidates import Candidates
from ..checks import check_integer, check_number
from ..criterion import CRITERIA, Criterion


@CRITERIA.register_module('hard')
class Hard(Criterion):
    """The images of highest loss at an exit stay; the exit reads the stage that blocks them.

    Costs the shallow part of a forward pass, as ``'rare'`` does, and a small head behind it, where
    loss top-k pays for the whole network.

    Args:
        skip: share of each batch, in [0, 1), with the highest losses of all that is left out, since
            it may be labelled wrongly. Rounded down to whole images.
        exit: ``'auxiliary'`` reads the model's own auxiliary head, ``'own'`` a small one that is
            trained beside the model; None: the first where one is deep enough, see
            :func:`pfb_mmseg.models.segmentation.exits.build_exit`. Classifiers have ``'own'`` only.
        channels: of the hidden layer of a segmentor's own exit, 64 by default; that of a classifier
            has no hidden layer.
        in_channels: of an own exit; None finds out.
        pool: side of the squares of features that are averaged before a segmentor's exit reads
            them; None chooses the least at which it costs at most 1 % of a training step.
        class_balance: in [0, 1], of segmentors: 0 (the default) lets all pixels of an image count
            alike in its loss, 1 all classes in it; in between, a pixel of a class that covers n of
            them has the weight n^-class_balance. An own exit is trained by that loss, too.
        warmup: blocked iterations in which an own exit learns from all images before it decides.

    Raises:
        TypeError, ValueError: an argument is outside its range.
    """

    score_name = 'exit_loss'

    def __init__(
        self,
        skip: float = 0.0,
        exit: str | None = None,
        channels: int | None = None,
        in_channels: int | None = None,
        pool: int | None = None,
        class_balance: float | None = None,
        warmup: int = 10,
    ) -> None:
        super().__init__()
        check_number('skip', skip, 0, 1, open_high=True)
        check_integer('warmup', warmup, low=0)
        self.skip = skip
        self.warmup = warmup
        self.exit_options = dict(
            exit=exit,
            channels=channels,
            in_channels=in_channels,
            pool=pool,
            class_balance=class_balance,
        )
        self._exit_learns = False
        self._learnt = 0

    def bind(self, exit_is_trained: bool) -> None:
        self._exit_learns = exit_is_trained

    @property
    def learns(self) -> bool:
        """Until an own exit is warm: its steps are counted."""
        return not self.ready

    @property
    def ready(self) -> bool:
        """Whether the exit tells anything yet."""
        return not self._exit_learns or self._learnt >= self.warmup

    def observe(self, candidates: Candidates) -> Tensor:
        """(N,) loss of each image at the exit."""
        return candidates.exit_losses()

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """The loss; that of the very highest counts as the lowest."""
        skipped = int(self.skip * len(score))
        if not skipped:
            return score
        highest = score.nan_to_num(-torch.inf).topk(skipped).indices
        return score.index_fill(0, highest, -torch.inf)

    def learn(self, observation: Tensor) -> None:
        """Count a step of the exit."""
        self._learnt += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._learnt)

    def set_extra_state(self, state: Tensor) -> None:
        self._learnt = int(state)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Of a run by another criterion there is none.
        state_dict.setdefault(f'{prefix}_extra_state', self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def describe(self) -> str:
        return 'those of highest loss at the exit'

    def extra_repr(self) -> str:
        return f'skip={self.skip}, warmup={self.warmup}'
