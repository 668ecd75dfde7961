"""BatchPruner: a batch in, the images that stay out. Algorithm 1 of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .candidates import Candidates, FeatureCandidates
from .checks import check_integer
from .criterion import CRITERIA, CriterionOption
from .draws import generator_of
from .estimator import AdaptiveDensityEstimator
from .quota import KeepQuota
from .ranks import Pending, ProcessGroupOption, Ranks
from .selection import Selection, keep_highest, take_rows


class BatchPruner(nn.Module):
    """Decides which images of a batch are worth the rest of the step.

    Usable from any training loop, with the features at the blocking point::

        selection = pruner(features)
        features = selection.take(features)

    or, where the criterion wants to know more, in two halves::

        with pruner.select(candidates) as decision:
            images = decision.take(images)
            ...  # the forward pass, during which the ranks tell each other what they kept

    Until the criterion is ready (``'rare'``: all centroids are seeded) every image stays.

    In a distributed run every process must call it in every iteration. Each chooses among its own
    images; the criterion learns from all of them and is the same everywhere, and each keeps the
    same number of images. A batch may be short, as the last one of an epoch often is, on all
    processes or on some: of it as many are kept as of a full one, as far as there are.

    Args:
        prune_ratio: p, in [0, 1): share of the candidates that is not trained on.
        criterion: what stays: a name in :data:`CRITERIA`, ``dict(type=NAME, ...)`` with options of
            its own, a function of :class:`Candidates`, or a :class:`Criterion`. ``'rare'`` is the
            paper's.
        min_keep: the least number of images that stay, per process.
        seed: the draws of iteration t are a function of (seed, t) alone.
        process_group: of the processes that train together; None: all there are. Or a function
            that returns it, its dotted path, or all these as :class:`Ranks`.

    Raises:
        TypeError, ValueError: an argument is outside its range.

    Attributes:
        full_size (int | None): images per process in a full batch; None until the processes have
            agreed on it, in their first iteration. A single process asks every batch for its own.
        num_proposed (int | None): batch size before PFBBatchSampler left images out; as many stay
            as of all of these. None: none are left out.
        step (int): iterations that were decided so far.
    """

    def __init__(
        self,
        prune_ratio: float = 0.3,
        criterion: CriterionOption = 'rare',
        min_keep: int = 1,
        seed: int = 0,
        process_group: ProcessGroupOption | Ranks = None,
    ) -> None:
        super().__init__()
        check_integer('seed', seed, low=0)
        self.quota = KeepQuota(prune_ratio, min_keep)
        self.criterion = CRITERIA.build(criterion)
        self.criterion.check_ratio(prune_ratio)
        self.seed = seed
        self.ranks = process_group if isinstance(process_group, Ranks) else Ranks(process_group)
        self.full_size: int | None = None
        self.num_proposed: int | None = None
        self.step = 0
        self._open: Decision | None = None

    @property
    def estimator(self) -> AdaptiveDensityEstimator | None:
        """Of the density that decides; None if none does."""
        return getattr(self.criterion, 'estimator', None)

    @property
    def ready(self) -> bool:
        """Whether the criterion can decide."""
        return self.criterion.ready or self.quota.prune_ratio == 0

    def num_keep(self, batch_size: int) -> int:
        """Number of images that stay of a full batch in the next iteration."""
        return self.quota.keep(self.step, batch_size) if self.ready else batch_size

    def keeps_all(self, candidates: Candidates) -> bool:
        """Whether the share to keep comes to every image in the next iteration."""
        size = self._agree_on_full_size(candidates)
        ready = self.ready and candidates.ready
        return self.quota.prune_ratio == 0 or (ready and self.num_keep(size) == size)

    def forward(self, batch: Tensor | Candidates) -> Selection:
        """Score a batch, choose, and learn from what was chosen (Algorithm 1, lines 6–10).

        Args:
            batch: its features (N, C, H, W), or (N, C) if already averaged over space; or what
                tells them and more when it is asked, see :meth:`BlockingPoint.candidates`.

        Raises:
            ValueError: in a distributed run, the batch is larger than a full one.
        """
        candidates = batch if isinstance(batch, Candidates) else FeatureCandidates(batch)
        with self.select(candidates) as decision:
            return decision.selection

    @torch.compiler.disable  # driven by the host's counters, which change in every step
    @torch.no_grad()
    def select(self, candidates: Candidates, trial: bool = False) -> Decision:
        """Choose among the images of a batch.

        Args:
            candidates: the images.
            trial: look at the images as ever, but keep the first of them, whatever they are: for a
                step that is tried before training.

        Returns:
            A decision that must be committed before the next batch, when the images that stay have
            gone through their forward pass: what was kept travels between the processes meanwhile.

        Raises:
            RuntimeError: the last decision was not committed.
            ValueError: in a distributed run, the batch is larger than a full one.
        """
        if self._open is not None:
            raise RuntimeError(
                f'the decision of iteration {self.step} was never committed: call '
                'decision.commit() after the forward pass of the images that stay, or '
                'discard() if there was none'
            )
        if trial:
            return self._try(candidates)
        if self.keeps_all(candidates):
            self._open = Decision(self, _all(candidates), looked=False)
            return self._open
        size = self._agree_on_full_size(candidates)
        ready = self.ready and candidates.ready
        num_keep = self.num_keep(size) if ready else size
        observation = self.criterion.observe(candidates)
        selection = _all(candidates)
        if ready:
            selection = self._choose(candidates, observation, min(num_keep, candidates.num))
        lesson = None
        if self.criterion.learn is not None:
            kept = observation.index_select(0, selection.indices)
            lesson = self.ranks.gather(_fill_up(kept, num_keep))
        self._open = Decision(self, selection, lesson=lesson)
        return self._open

    def discard(self) -> None:
        """Forget a decision that was not committed, because its step failed."""
        self._open = None

    def _try(self, candidates: Candidates) -> Decision:
        observation = self.criterion.observe(candidates)
        if len(observation) != candidates.num:
            raise ValueError(
                f'{type(self.criterion).__name__} observed {len(observation)} rows of '
                f'{candidates.num} images: expected one for each'
            )
        num_kept = max(1, candidates.num // 2, min(self.quota.min_keep, candidates.num))
        indices = torch.arange(num_kept, device=candidates.device)
        return Decision(self, Selection(candidates.num, indices))

    def _choose(self, candidates: Candidates, observation: Tensor, num_keep: int) -> Selection:
        generator = generator_of(self.seed, self.step, observation.device)
        with torch.inference_mode():  # the many small calls cost less
            score = self.criterion.score(observation)
            kept = keep_highest(self.criterion.importance(score, generator), num_keep)
        name = self.criterion.score_name
        return Selection(
            candidates.num,
            kept.clone(),  # autograd takes no tensor that was made in there
            score=score.clone() if name else None,
            score_name=name,
            samples=candidates.samples,
        )

    def _commit(self, decision: Decision) -> None:
        if decision is not self._open:
            raise RuntimeError('this decision was committed or discarded before')
        if decision.lesson is not None:
            with torch.no_grad():
                self.criterion.learn(decision.lesson.wait())
        self._open = None
        self.step += 1

    def _agree_on_full_size(self, candidates: Candidates) -> int:
        """N of a full batch, on whichever process. If nobody said it, the first call asks all."""
        num = candidates.num
        if self.ranks.size == 1:
            return max(num, self.num_proposed or 0)
        if self.full_size is None:
            sizes = self.ranks.gather(torch.tensor([num], device=candidates.device))
            self.full_size = int(sizes.wait().max())
        if num > self.full_size:
            raise ValueError(
                f'a batch of {num} images on rank {self.ranks.rank}, where a full one has '
                f'{self.full_size}: batches may become smaller, not larger; let the first one be '
                'as large as any, or set full_size'
            )
        return self.full_size

    def get_extra_state(self) -> Tensor:
        """What an averaged or half-precision copy of the model must not touch: whole numbers."""
        return torch.tensor([self.step, self.full_size or 0])

    def set_extra_state(self, state: Tensor) -> None:
        self.step, full_size = state.tolist()
        self.full_size = full_size or None

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # The checkpoint of a model without PFB has none.
        state_dict.setdefault(f'{prefix}_extra_state', self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass(eq=False)
class Decision:
    """What becomes of one batch. As a context manager it commits itself unless the step failed.

    Attributes:
        selection: of this process's images.
        looked: False if every image stays and none was looked at.
        lesson: what the criterion learns from, on its way from all processes.
    """

    _pruner: BatchPruner
    selection: Selection
    looked: bool = True
    lesson: Pending | None = None

    @property
    def unchanged(self) -> bool:
        """Whether every image stays. Known to the host."""
        return self.selection.num_kept == self.selection.num_candidates

    def take(self, rows: Tensor) -> Tensor:
        """(N, ...) of the batch -> (K, ...) of the images that stay."""
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

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is None:
            self.commit()
        else:
            self._pruner.discard()


def _all(candidates: Candidates) -> Selection:
    indices = torch.arange(candidates.num, device=candidates.device)
    return Selection(candidates.num, indices, samples=candidates.samples)


def _fill_up(x: Tensor, num: int) -> Tensor:
    """Rows that are no image up to ``num``: collectives want the same number from every process."""
    missing = num - len(x)
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing), value=torch.nan) if missing else x
