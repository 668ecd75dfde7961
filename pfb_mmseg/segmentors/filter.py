"""BatchFilter: what chooses images in front of a model's ``loss``, as PFBHook sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from ..core import AdaptiveDensityEstimator, KeepQuota, Selection


class BatchFilter(nn.Module, ABC):
    """The state of a filter, and what it tells of itself. Subclasses decide who stays.

    Attributes:
        quota (KeepQuota): how many images stay; set by the subclass.
        estimator (AdaptiveDensityEstimator | None): of the density that decides; None if none does.
        pruning (bool): whether steps are blocked; PFBHook switches it. True without the hook.
        selection (Selection | None): of the last training step; None if nothing was scored.
    """

    quota: KeepQuota
    estimator: AdaptiveDensityEstimator | None = None

    def __init__(self) -> None:
        super().__init__()
        self.pruning = True
        self.selection: Selection | None = None

    def prepare(self) -> None:  # noqa: B027  most have nothing to look at
        """Look at the host before it is trained, and refuse what cannot work."""

    @abstractmethod
    def describe(self, model: nn.Module) -> str:
        """What it does to ``model``, its host, for the log."""
