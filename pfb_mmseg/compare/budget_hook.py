"""BudgetHook: what a run really cost, whatever method it trained with."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..blocking.devices import forget_peak_memory, peak_memory
from ..hooks.model import unwrapped
from ..models.segmentation.heads import last_head

BUDGET_NAME = 'budget.json'
CLOCKS = {'seconds': time.perf_counter, 'cpu_seconds': time.process_time}
_COUNTS = ('loaded', 'shallow', 'deep', 'backward')  # images


@HOOKS.register_module()
class BudgetHook(Hook):
    """Measures a run and writes ``<work_dir>/budget.json``.

    - ``iterations``: optimizer steps.
    - ``candidates``: images that those loaded were chosen from, with those that InfoBatchSampler
      or PFBBatchSampler left out.
    - ``loaded``: images that the data loader handed out.
    - ``shallow``: images that entered the backbone in training steps, those only scored included;
      an image that is scored and trained on counts twice.
    - ``deep``: images that came through to the layer that gives the scores, ``conv_seg`` of a
      decode head or the last linear layer of a classifier's head, or to the ``pixel_decoder`` of a
      head that predicts masks; again a scored one counts.
    - ``backward``: of these, images that a gradient was computed for.
    - ``seconds``: wall clock of training, with loading, but without validation.
    - ``cpu_seconds``: time that the processors spent on the first process meanwhile, all of its
      threads together. Other programs hardly change it. What workers of the data loader do is not
      part of it: with ``num_workers=0`` all is counted.
    - ``startup_seconds``, ``startup_cpu_seconds``: of these, what the first iteration took more
      than the others on average.
    - ``peak_memory_mib``: most memory allocated on the model's device, see :func:`peak_memory`.

    Images are counted in the first process and multiplied by the number of processes, which all do
    the same work.

    Raises:
        ValueError: before the first iteration, if the model has no backbone or no such layer, or
            if the run is resumed.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._spent = {**dict.fromkeys(_COUNTS, 0), **dict.fromkeys(CLOCKS, 0.0)}
        self._spent['peak_memory_mib'] = 0.0
        self._first: dict[str, float] = {}  # what the first iteration took
        self._training_step = False

    def before_train(self, runner) -> None:
        if runner.iter:
            raise ValueError(
                'BudgetHook measures whole runs, and this one is resumed at iteration '
                f'{runner.iter}; train from the beginning, or remove the hook'
            )
        model = unwrapped(runner.model)
        last = _last_layer(model)
        if not hasattr(model, 'backbone') or last is None:
            raise ValueError(
                'BudgetHook counts images that enter backbone, and decode_head.conv_seg, '
                'decode_head.pixel_decoder or a linear layer in head, which '
                f'{type(model).__name__} lacks; remove the hook'
            )
        self._handles = [
            model.backbone.register_forward_pre_hook(self._count_shallow),
            last.register_forward_pre_hook(self._count_deep),
        ]
        self._device = next(model.parameters()).device
        self._start_clocks()

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._training_step = True
        self._spent['loaded'] += len(data_batch['inputs'])

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._training_step = False
        for name, clock in CLOCKS.items():
            now = clock()
            self._spent[name] += now - self._since[name]
            self._since[name] = now
            self._first.setdefault(name, self._spent[name])
        peak = peak_memory(self._device) / 2**20
        self._spent['peak_memory_mib'] = max(self._spent['peak_memory_mib'], peak)

    def after_val_epoch(self, runner, metrics: Any = None) -> None:
        self._start_clocks()

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
        if not is_main_process():
            return
        budget = {'iterations': runner.iter, **self._spent}
        for name in CLOCKS:
            first = self._first[name]
            others = (self._spent[name] - first) / (runner.iter - 1) if runner.iter > 1 else first
            budget[f'startup_{name}'] = max(0.0, first - others)
        for name in _COUNTS:
            budget[name] *= get_world_size()
        budget['candidates'] = budget['loaded']
        loader = runner.train_dataloader
        if hasattr(loader.sampler, 'candidates'):  # of all processes
            budget['candidates'] = round(loader.sampler.candidates)
        elif hasattr(loader.batch_sampler, 'candidates'):
            budget['candidates'] = loader.batch_sampler.candidates * get_world_size()
        (Path(runner.work_dir) / BUDGET_NAME).write_text(json.dumps(budget, indent=1) + '\n')

    def _start_clocks(self) -> None:
        forget_peak_memory(self._device)
        self._since = {name: clock() for name, clock in CLOCKS.items()}

    def _count_shallow(self, module: nn.Module, args: tuple) -> None:
        if self._training_step:
            self._spent['shallow'] += len(args[0])

    def _count_deep(self, module: nn.Module, args: tuple) -> None:
        if self._training_step:
            features = args[0]
            images = len(features if isinstance(features, Tensor) else features[0])
            self._spent['deep'] += images
            self._spent['backward'] += images * torch.is_grad_enabled()


def _last_layer(model: nn.Module) -> nn.Module | None:
    """What gives the scores, of a segmentor or of a classifier; of a head that predicts masks, its
    pixel decoder, since the layers that give its scores are called many times in a pass."""
    if hasattr(model, 'decode_head'):
        head = last_head(model)
        return getattr(head, 'conv_seg', None) or getattr(head, 'pixel_decoder', None)
    head = getattr(model, 'head', None)
    parts = head.modules() if isinstance(head, nn.Module) else ()
    return next((part for part in reversed([*parts]) if isinstance(part, nn.Linear)), None)
