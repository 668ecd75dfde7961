"""What makes an image worth the rest of the step: the interface, and the names it goes by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from torch import Generator, Tensor, nn

from .candidates import Candidates
from .checks import check_choice, check_keys


class Criterion(nn.Module):
    """Gives every image of a batch an importance; those of the highest stay.

    In each step the data pass through in this order, and nothing else is called::

        candidates -> observe -> (N, D) -> score -> (N,) -> importance -> (N,), the highest stay
                                   └──── the rows that stayed ────> learn

    A criterion of your own overrides ``observe``, and what else it needs. State that is not a
    buffer belongs into ``get_extra_state``.

    Attributes:
        score_name (str | None): what :meth:`score` measures, for the log, the record and the
            report, as ``'exit_loss'``; None where it measures nothing.
        keeps (str): what stays, for the first line of the log: ``'those of lowest density'``.
        sought (int): 1 where images of a high score stay, -1 where those of a low one do.
        scoring_pass (str): how far every image goes through the network to be compared: ``'none'``;
            ``'shallow'``, up to the blocking point; ``'exit'``, through the early exit there, too;
            or ``'whole'``, so that nothing is left to be cut in a single pass.
        ready (bool): whether it can decide; until then every image stays. Known to the host.
        exit_loss_weight (float): by which the early exit's loss over all images trains the shallow
            part, where the user says nothing.
    """

    score_name: str | None = None
    keeps = 'those of highest importance'
    sought = 1
    scoring_pass = 'shallow'
    ready = True
    exit_loss_weight = 0.0

    def prepare(self, num_channels: int) -> None:
        """Raise ValueError, before training, if options do not fit the channels at the blocking
        point."""

    def check_ratio(self, prune_ratio: float) -> None:
        """Raise ValueError if options do not fit the share of images that is to be pruned."""

    def observe(self, candidates: Candidates) -> Tensor:
        """(N, D) or (N,) floats: what the decision needs to know of the images, NaN where it is
        unknown. No random number is drawn here."""
        raise TypeError(f'{type(self).__name__} must override observe(candidates)')

    def score(self, observation: Tensor) -> Tensor:
        """(N,) float32: the observation as one number, by default itself."""
        return observation

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """(N,) scores -> (N,): the highest stay, of equal ones the first; NaN goes first. By
        default the score, with the sign of ``sought``. Random draws are made by the generator,
        which is on the same device."""
        return score * self.sought

    # What learns from the images that stayed overrides this by ``learn(observation)``: (K, D) or
    # (K,) of all processes' images, the same in each of them; rows of NaN where one had fewer.
    learn: Callable[[Tensor], None] | None = None


class FunctionCriterion(Criterion):
    """The images stay to which a function of :class:`Candidates` gives the highest of (N,)
    values."""

    score_name = 'score'

    def __init__(self, function: Callable[[Candidates], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.keeps = f'those of highest {getattr(function, "__name__", "score")}'

    def observe(self, candidates: Candidates) -> Tensor:
        return self.function(candidates)


CriterionOption: TypeAlias = 'str | dict | Criterion | Callable[[Candidates], Tensor]'


class CriterionRegistry:
    """Criteria by name, as OpenMMLab's registries have it.

    ``@CRITERIA.register_module()`` above a subclass of :class:`Criterion`, or above a function of
    :class:`Candidates`, registers it under its own name, ``register_module('mine')`` under another.
    """

    def __init__(self) -> None:
        self._known: dict[str, Callable[..., Any]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def register_module(self, name: str | None = None) -> Callable[[Callable], Callable]:
        """A decorator.

        Raises:
            TypeError: what is decorated is neither a Criterion nor a function.
            KeyError: another one has the name.
        """

        def register(criterion: Callable) -> Callable:
            is_class = isinstance(criterion, type)
            if not callable(criterion) or (is_class and not issubclass(criterion, Criterion)):
                raise TypeError(f'{criterion!r}: expected a subclass of Criterion or a function')
            known = self._known.setdefault(name or criterion.__name__, criterion)
            if known is not criterion:
                raise KeyError(f'{name or criterion.__name__!r} is {known} already')
            return criterion

        return register

    def build(self, criterion: CriterionOption) -> Criterion:
        """A criterion from its name, from ``dict(type=NAME, ...)``, from a function or as it is.

        Raises:
            TypeError, ValueError: no such name, an option that it does not know, or a bad value.
        """
        if isinstance(criterion, Criterion):
            return criterion
        options = dict(criterion) if isinstance(criterion, dict) else {'type': criterion}
        named = kind = options.pop('type', None)
        if not callable(kind):
            check_choice('criterion', kind, self)
            kind = self._known[kind]
        if not isinstance(kind, type):
            check_keys(f'criterion {named!r}', options, ())
            return FunctionCriterion(kind)
        parameters = inspect.signature(kind).parameters.values()
        check_keys(
            f'criterion {named!r}',
            options,
            [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)],
        )
        return kind(**options)


CRITERIA = CriterionRegistry()
