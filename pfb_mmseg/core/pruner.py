"""BatchPruner: a batch in, the images that stay out. Algorithm 1 of the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .candidates import Candidates, FeatureCandidates
from .checks import check_choice, check_integer, check_keys
from .criterion import CRITERIA, Criterion
from .draws import generator_of
from .estimator import AdaptiveDensityEstimator
from .quota import KeepQuota
from .ranks import Exchange, Gather, ProcessGroupOption, Ranks
from .rows import take_rows
from .selection import Selection, keep_highest

SELECTION_SCOPES = ('rank', 'global')


class BatchPruner(nn.Module):
    """Decides which images of a batch are worth the rest of the step.

    Usable from any training loop, with the features at the blocking point::

        selection = pruner(features)
        features = selection.take(features)

    or, where the criterion wants to know more or the ranks choose together, in two halves::

        with pruner.select(candidates) as decision:
            images = decision.take(images)
            ...  # the forward pass, during which the ranks tell each other what they kept

    Until the criterion is ready (``'rare'``: all centroids are seeded) every image stays.

    In a distributed run every process must call it in every iteration. The criterion then learns
    from all of them and is the same everywhere, and each keeps the same number of images. A batch
    may be short, as the last one of an epoch often is, on all processes or on some: of it as many
    are kept as of a full one, as far as there are.

    Args:
        prune_ratio: p, in [0, 1): share of the candidates that is not trained on.
        estimator: the density estimate of ``'rare'`` and ``'common'``; a new one with its defaults
            if None. Other criteria have no part in it.
        criterion: what stays: a name in :data:`CRITERIA`, ``dict(type=NAME, ...)`` with options of
            its own, or a :class:`Criterion`. ``'rare'`` is the paper's.
        min_keep: the least number of images that stay, per process.
        seed: the draws of iteration t are a function of (seed, t) alone.
        selection_scope: ``'rank'``: each process keeps those of its own images that matter most.
            ``'global'``: those of all processes' images, shared out evenly; ``decision.take`` then
            fetches them from where they are.
        process_group: of the processes that train together; None: all there are. Or a function
            that returns it, its dotted path, or all these as :class:`Ranks`.
        **options: further options of the criterion, for those that know them, such as
            ``exploration`` of ``'rare'``.

    Raises:
        TypeError, ValueError: an argument is outside its range.

    Attributes:
        full_size (int | None): images per process in a full batch; None until the processes have
            agreed on it, in their first iteration. A single process asks every batch for its own.
        num_proposed (int | None): how many images the batch to come had before some were left out
            by others, who did not load them; as many stay as of all of these. None: all are there.
    """

    def __init__(
        self,
        prune_ratio: float = 0.3,
        estimator: AdaptiveDensityEstimator | None = None,
        criterion: str | dict | Criterion = 'rare',
        min_keep: int = 1,
        seed: int = 0,
        selection_scope: str = 'rank',
        process_group: ProcessGroupOption | Ranks = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_choice('selection_scope', selection_scope, SELECTION_SCOPES)
        check_integer('seed', seed, low=0)
        check_keys('BatchPruner', options, CRITERIA.options)
        self.quota = KeepQuota(prune_ratio, min_keep)
        self.criterion = CRITERIA.build(criterion, estimator=estimator, **options)
        self.seed = seed
        self.selection_scope = selection_scope
        self.ranks = process_group if isinstance(process_group, Ranks) else Ranks(process_group)
        self.full_size: int | None = None
        self.num_proposed: int | None = None
        self._step = 0
        self._open: Decision | None = None

    @property
    def estimator(self) -> AdaptiveDensityEstimator | None:
        """Of the density that decides; None if none does."""
        return getattr(self.criterion, 'estimator', None)

    @property
    def step(self) -> int:
        """Iterations that were decided so far."""
        return self._step

    @property
    def ready(self) -> bool:
        """Whether a decision can be made."""
        return self.criterion.ready or self.quota.prune_ratio == 0

    def num_keep(self, batch_size: int) -> int:
        """Number of images that stay of a full batch in the next iteration."""
        return self.quota.keep(self._step, batch_size) if self.ready else batch_size

    def forward(self, batch: Tensor | Candidates) -> Selection:
        """Score a batch, choose, and learn from what was chosen (Algorithm 1, lines 6–10).

        Args:
            batch: its features (N, C, H, W), or (N, C) if already averaged over space; or what
                tells them and more when it is asked, see :meth:`BlockingPoint.candidates`.

        Returns:
            The selection; ``score`` is None for a criterion that has none, and before it is ready.

        Raises:
            ValueError: in a distributed run, the batch is larger than a full one; or the ranks
                choose together, and the images that stay would have to travel: see :meth:`select`.
        """
        if self.selection_scope == 'global' and self.ranks.size > 1:
            raise ValueError(
                "selection_scope='global' hands images from rank to rank: call "
                'select(FeatureCandidates(features)), decision.take(...) and decision.commit()'
            )
        candidates = batch if isinstance(batch, Candidates) else FeatureCandidates(batch)
        with self.select(candidates) as decision:
            return decision.selection

    @torch.compiler.disable  # driven by the host's counters, which change in every step
    @torch.no_grad()
    def select(self, candidates: Candidates) -> Decision:
        """Choose among the images of a batch.

        Returns:
            A decision that must be committed before the next batch, when the images that stay have
            gone through their forward pass: what was kept travels between the processes meanwhile.

        Raises:
            RuntimeError: the last decision was not committed.
            ValueError: in a distributed run, the batch is larger than a full one.
        """
        if self._open is not None:
            raise RuntimeError(
                f'the decision of iteration {self._step} was never committed: call '
                'decision.commit() after the forward pass of the images that stay, or '
                'discard() if there was none'
            )
        num, size = candidates.num, self._agree_on_full_size(candidates.num, candidates.device)
        if self.ready and self.num_keep(size) == size:
            decision = Decision(self, _all(candidates), looked=False)
        else:
            observation = self.criterion.observe(candidates)
            if self.ready and self.selection_scope == 'global' and self.ranks.size > 1:
                decision = self._select_among_all(observation, num, size)
            else:
                decision = self._select_own(observation, candidates, size)
        self._open = decision
        return decision

    def discard(self) -> None:
        """Forget a decision that was not committed, because its step failed."""
        self._open = None

    def _select_own(self, observation: Tensor, candidates: Candidates, size: int) -> Decision:
        num, num_kept = candidates.num, min(self.num_keep(size), candidates.num)
        selection = _all(candidates)
        if self.ready:
            indices, score = self._choose(observation, num_kept)
            selection = Selection(
                num, num_kept, indices=indices, score=score, score_name=self._score_name
            )
        lesson = None
        if self.criterion.learns:
            kept = observation.index_select(0, selection.indices)
            lesson = self.ranks.gather(_fill_up(kept, self.num_keep(size)))
        return Decision(self, selection, lesson=lesson)

    def _select_among_all(self, observation: Tensor, num: int, size: int) -> Decision:
        """The same choice in every process, from the candidates of all."""
        ranks, num_kept = self.ranks, self.num_keep(size)
        observation = ranks.gather(_fill_up(observation, size)).wait()
        kept, score = self._choose(observation, ranks.size * num_kept)
        # One differing bit in one process would lose images or train on them twice.
        exchange = Exchange(ranks, ranks.agree(kept), size)
        selection = Selection(
            num,
            num_kept,
            kept=exchange.own(num),
            score=None if score is None else score[ranks.rank * size :][:num],
            score_name=self._score_name,
        )
        lesson = observation.index_select(0, kept) if self.criterion.learns else None
        return Decision(self, selection, lesson=lesson, exchange=exchange)

    def _choose(self, observation: Tensor, num_keep: int) -> tuple[Tensor, Tensor | None]:
        """(num_keep,) ascending positions, and (N,) scores if the criterion has a name for them."""
        generator = generator_of(self.seed, self._step, observation.device)
        with torch.inference_mode():  # the many small calls cost less
            score = self.criterion.score(observation, generator)
            kept = keep_highest(self.criterion.importance(score, generator), num_keep)
        # Autograd takes no tensor that was made in there.
        return kept.clone(), score.clone() if self._score_name else None

    @property
    def _score_name(self) -> str | None:
        return self.criterion.score_name

    def _commit(self, decision: Decision) -> None:
        if decision is not self._open:
            raise RuntimeError('this decision was committed or discarded before')
        lesson = decision.lesson
        if lesson is not None:
            with torch.no_grad():
                self.criterion.learn(lesson.wait() if isinstance(lesson, Gather) else lesson)
        self._open = None
        self._step += 1

    def _agree_on_full_size(self, batch_size: int, device: torch.device) -> int:
        """N of a full batch, on whichever process. If nobody said it, the first call asks all."""
        if self.ranks.size == 1:
            return max(batch_size, self.num_proposed or 0)
        if self.full_size is None:
            self.full_size = max(n for (n,) in self.ranks.all_values((batch_size,), device))
        if batch_size > self.full_size:
            raise ValueError(
                f'a batch of {batch_size} images on rank {self.ranks.rank}, where a full one has '
                f'{self.full_size}: batches may become smaller, not larger; let the first one be '
                'as large as any, or set full_size'
            )
        return self.full_size

    def get_extra_state(self) -> Tensor:
        """What an averaged or half-precision copy of the model must not touch: whole numbers."""
        return torch.tensor([self._step, self.full_size or 0])

    def set_extra_state(self, state: Tensor) -> None:
        step, full_size = state.tolist()
        self._step = step
        self.full_size = full_size or None

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors
    ) -> None:
        # Version 0.1 kept its iteration in a buffer, and the estimator beside it.
        if (step := state_dict.pop(f'{prefix}step', None)) is not None:
            state_dict[f'{prefix}_extra_state'] = torch.tensor([int(step), 0])
        state_dict.setdefault(f'{prefix}_extra_state', self.get_extra_state())
        old = f'{prefix}estimator.'
        for key in [key for key in state_dict if key.startswith(old)]:
            value = state_dict.pop(key)
            if self.estimator is not None:
                state_dict[f'{prefix}criterion.estimator.{key.removeprefix(old)}'] = value
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors
        )

    def extra_repr(self) -> str:
        return (
            f'prune_ratio={self.quota.prune_ratio}, min_keep={self.quota.min_keep}, '
            f'seed={self.seed}, selection_scope={self.selection_scope!r}'
        )


class Decision:
    """What becomes of one batch. As a context manager it commits itself unless the step failed.

    Args:
        pruner: whose decision it is.
        selection: of this process's images.
        looked: False if every image stays and none was looked at.
        lesson: what the criterion learns from, or what is on its way.
        exchange: what fetches the images to go on with from other processes; None if they are here.
    """

    def __init__(
        self,
        pruner: BatchPruner,
        selection: Selection,
        looked: bool = True,
        lesson: Gather | Tensor | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self._pruner = pruner
        self.selection = selection
        self.looked = looked
        self.lesson = lesson
        self.exchange = exchange

    @property
    def unchanged(self) -> bool:
        """Whether this process goes on with the batch that it had. Known to the host."""
        selection = self.selection
        return self.exchange is None and selection.num_kept == selection.num_candidates

    def take(self, rows: Tensor) -> Tensor:
        """(N, ...) of this process's batch -> (K, ...) of the images that it goes on with.

        Where there is an ``exchange`` this is a collective: every process must call it, in the same
        order, with rows of one shape.
        """
        if self.exchange is not None:
            return self.exchange.take(rows)
        return rows if self.unchanged else take_rows(rows, self.selection.indices)

    @torch.compiler.disable
    def commit(self) -> None:
        """Let the criterion learn from what all processes kept, and end the iteration.

        Raises:
            RuntimeError: it was committed before.
        """
        self._pruner._commit(self)

    def __enter__(self) -> Decision:
        return self

    def __exit__(self, error: type[BaseException] | None, *details: Any) -> None:
        if error is None:
            self.commit()
        else:
            self._pruner.discard()


def _all(candidates: Candidates) -> Selection:
    indices = torch.arange(candidates.num, device=candidates.device)
    return Selection(candidates.num, candidates.num, indices=indices)


def _fill_up(x: Tensor, num: int) -> Tensor:
    """Rows that are no image up to ``num``: collectives want the same number from every process."""
    missing = num - len(x)
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing), value=torch.nan) if missing else x
