"""A blocked step on the first samples before training, so that what cannot work is refused then."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext

import numpy as np
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper

from ..blocking import RunsTwice
from ..models import PartialForwardBlocking
from .model import unwrapped

# Enough that some stay and some stop, also where two must stay.
_SAMPLES = 4


def try_blocked_step(runner, pfb: PartialForwardBlocking) -> None:
    """Block one step without gradient; neither the model nor a random generator notices.

    Raises:
        ValueError: the model, its heads or the labels do not allow a blocked step.
    """
    dataset, model = runner.train_dataloader.dataset, unwrapped(runner.model)
    if type(model).train_step is not BaseModel.train_step:
        return  # it makes batches and calls loss in a way of its own
    if not isinstance(dataset, Sized) or not hasattr(dataset, '__getitem__'):
        return  # a stream: what was taken from it would be missing in training
    with _python_random_state_kept(), pfb.trying():
        num = min(_SAMPLES, len(dataset))
        batch = runner.train_dataloader.collate_fn([dataset[index] for index in range(num)])
        wrapper = getattr(runner, 'optim_wrapper', None)
        precision = isinstance(wrapper, OptimWrapper)
        with wrapper.optim_context(model) if precision else nullcontext():
            data = model.data_preprocessor(batch, True)
            try:
                _run(model, pfb, data)
            except RunsTwice as error:
                pfb.give_up_single_pass(error)
                print_log('PFB: the encoder runs more than once in a step.', logger='current')
                _run(model, pfb, data)


def _run(model: BaseModel, pfb: PartialForwardBlocking, data: object) -> None:
    try:
        model._run_forward(data, mode='loss')
    except (TypeError, ValueError):
        raise
    except Exception as error:  # whatever it is that model and criterion stumble over
        criterion = type(pfb.pruner.criterion).__name__
        raise ValueError(
            f'a blocked step of {type(model).__name__} by {criterion} on the first samples failed: '
            f'{type(error).__name__}: {error}. If the model trains without PFB, try another '
            "criterion, such as 'rare' or 'random' with exit_loss_weight=0"
        ) from error


@contextmanager
def _python_random_state_kept() -> Iterator[None]:
    """For transforms, which draw from Python's and NumPy's generators."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
