"""What makes an image worth the rest of the step: the interface, and the names it goes by."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from torch import Generator, Tensor, nn

from .candidates import Candidates
from .checks import check_choice, check_keys


class Criterion(nn.Module, ABC):
    """Gives every image of a batch an importance; those of the highest stay.

    In each step the data pass through in this order, and nothing else is called::

        candidates -> observe -> (N, D) -> score -> (N,) -> importance -> (N,), the highest stay
                                   └──── the rows that stayed ────> learn

    In a distributed run it is the observation that travels between the processes, so it should be
    small. State that is not a parameter belongs into ``get_extra_state``.

    Attributes:
        score_name (str | None): what :meth:`score` measures, for the log, the record and the
            report, as ``'exit_loss'``; None where it tells nothing about the image itself.
        sought (int): 1 where images of a high score stay, -1 where those of a low one do.
        learns (bool): whether :meth:`learn` wants the observations of the images that stayed.
        exit_options (dict | None): options of the exit that :meth:`Candidates.exit_losses` takes;
            None where it is not asked.
        scoring_pass (str): how far every image goes through the network to be compared: ``'none'``,
            ``'shallow'``, up to the blocking point, or ``'whole'``, so that nothing is left to be
            cut in a single pass.
    """

    score_name: str | None = None
    sought = 1
    learns = False
    exit_options: dict | None = None
    scoring_pass = 'shallow'

    def prepare(self, num_channels: int) -> None:
        """Look, before training, at how many channels there are at the blocking point.

        Raises:
            ValueError: the criterion's options do not fit.
        """

    def bind(self, exit_is_trained: bool) -> None:
        """Learn what kind of exit the host has built."""

    @property
    def ready(self) -> bool:
        """Whether it can decide; until then every image stays. Known to the host."""
        return True

    @abstractmethod
    def observe(self, candidates: Candidates) -> Tensor:
        """(N, D) or (N,) floats: what the decision needs to know of the images, NaN where it is
        unknown. No random number is drawn here."""

    def score(self, observation: Tensor, generator: Generator) -> Tensor:
        """(N,) float32: the observation as one number, by default itself.

        Args:
            observation: of :meth:`observe`, maybe with the rows of other processes, and with rows
                of NaN where a process had fewer images.
            generator: for random draws, on the device of the observation.
        """
        return observation

    def importance(self, score: Tensor, generator: Generator) -> Tensor:
        """(N,): the highest stay, of equal ones the first; NaN goes first. By default the score."""
        return score

    def learn(self, observation: Tensor) -> None:
        """Account for the images that stayed.

        Args:
            observation: (K, D) or (K,), of all processes' images, the same in each of them; rows of
                NaN where one had fewer.
        """

    def describe(self) -> str:
        """What stays, for the first line of the log: ``'the rarest'``."""
        return f'those of highest importance by {type(self).__name__}'


class CriterionRegistry:
    """Criteria by name, as OpenMMLab's registries have it.

    ``@CRITERIA.register_module()`` above a subclass of :class:`Criterion` registers it under the
    name of its class, ``register_module('mine')`` under another.

    Args:
        location: dotted path of what registers the criteria that are there from the start, imported
            when the first is asked for.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._classes: dict[str, type[Criterion]] = {}

    def __iter__(self) -> Iterator[str]:
        import_module(self._location)
        return iter(self._classes)

    @property
    def options(self) -> list[str]:
        """Names of the options that one of the criteria knows, each once."""
        names = (option for name in self for option in _parameters(self._classes[name]))
        return list(dict.fromkeys(names))

    def register_module(self, name: str | None = None) -> Callable[[type], type]:
        """A decorator.

        Raises:
            TypeError: the class is no Criterion.
            KeyError: another class has the name.
        """

        def register(criterion: type) -> type:
            if not (isinstance(criterion, type) and issubclass(criterion, Criterion)):
                raise TypeError(f'{criterion!r}: expected a subclass of Criterion')
            import_module(self._location)  # whose names are taken; unless it is being imported now
            known = self._classes.setdefault(name or criterion.__name__, criterion)
            if known is not criterion:
                raise KeyError(f'{name or criterion.__name__!r} is {known} already')
            return criterion

        return register

    def get(self, name: str) -> type[Criterion]:
        """The class of that name.

        Raises:
            ValueError: there is none.
        """
        check_choice('criterion', name, self)
        return self._classes[name]

    def build(self, criterion: str | dict | Criterion, **shared: Any) -> Criterion:
        """A criterion from its name, from ``dict(type=NAME, ...)`` or as it is.

        Args:
            criterion: what the user gave.
            **shared: options that stand beside the criterion; it gets those that it knows and is
                not given itself, the others are for other criteria.

        Raises:
            TypeError, ValueError: no such name, an option that it does not know, or a bad value.
        """
        if isinstance(criterion, Criterion):
            return criterion
        options = dict(criterion) if isinstance(criterion, dict) else {'type': criterion}
        name = options.pop('type', None)
        check_choice('criterion', name, self)
        allowed = _parameters(self._classes[name])
        check_keys(f'criterion {name!r}', options, allowed)
        known = {key: value for key, value in shared.items() if key in allowed}
        return self._classes[name](**{**known, **options})


def _parameters(criterion: type[Criterion]) -> list[str]:
    parameters = inspect.signature(criterion).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


CRITERIA = CriterionRegistry('pfb_mmseg.core.criteria')
