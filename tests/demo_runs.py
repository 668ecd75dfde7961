"""The demo configuration cut down to runs of a few seconds, for the tests that need a Runner."""

import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint, loops

import pfb_mmseg  # noqa: F401  registers its types
from pfb_mmseg.compat import find_distributions, why_no_resume

ROOT = Path(__file__).parents[1]
_NUMBERS = itertools.count()
DEMO_CONFIG = ROOT / 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'


def read_config(path: Path) -> Config:
    """The config of a file, whose text is not beautified: the Runner writes it down several times,
    and each takes as long as the steps of a short run."""
    config = Config.fromfile(path)
    return Config(config.to_dict(), filename=config.filename, format_python_code=False)


def demo_config(work_dir: Path, max_iters: int = 12, **options) -> Config:
    """The demo configuration cut down to seconds, without chance; ``options`` as --cfg-options."""
    config = read_config(DEMO_CONFIG)
    config.work_dir = str(work_dir)
    config.model.pfb.criterion = dict(type='rare', estimator=dict(num_centroids=8, dim=16))
    config.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.decode_head.in_channels': 64,
            'model.decode_head.channels': 8,
            'model.decode_head.dropout_ratio': 0,
            'model.auxiliary_head.dropout_ratio': 0,
            'model.auxiliary_head.in_channels': 32,
            'model.auxiliary_head.channels': 8,
            'optim_wrapper.optimizer.lr': 0.05,
            'train_dataloader.batch_size': 4,
            'train_dataloader.dataset.length': 24,
            'val_dataloader.dataset.length': 4,
            'train_cfg.max_iters': max_iters,
            'train_cfg.val_interval': 1000,
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.interval': 1000,
            'randomness.seed': 0,
            'log_level': 'WARNING',
            **options,
        }
    )
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'RandomFlip':
            step.prob = 0.0
    # Runs that start in one second would share logger and scalars: MMEngine names them by the time.
    config.experiment_name = f'run-{next(_NUMBERS)}'
    return config


@contextmanager
def float64() -> Iterator[None]:
    """Models built in here are float64, and so are the images that they normalise.

    For runs that are compared although they do not add up in the same order (in other batches or
    layouts, with another number of threads). In float32 their rounding errors grow: a tie in a max
    pool or ReLU sends a gradient another way, and once two densities change places the runs part.
    In float64 nothing grows to where it could matter.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def distributed(config: Config) -> Config:
    """For a process on the CPU: one of the group that is there already, if it is."""
    if not torch.distributed.is_initialized():
        return config
    config.launcher = 'pytorch'
    config.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
    )
    return config


def train(config: Config) -> Runner:
    """A whole run, from its config alone.

    Where MMEngine cannot resume, the run is seen to be refused, and then takes the way out that
    the refusal names.
    """
    reason = why_no_resume(find_distributions(), torch.__version__)
    resumes = config.get('resume') and (
        config.get('load_from') or find_latest_checkpoint(config.work_dir)
    )
    if resumes and reason:
        hooked = any(hook['type'] == 'PFBHook' for hook in config.custom_hooks)
        kind, sentence = (RuntimeError, re.escape(reason)) if hooked else (UnpicklingError, '')
        with pytest.raises(kind, match=sentence):
            _train(config)
        assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in reason
        with mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'):
            return _train(config)
    return _train(config)


def _train(config: Config) -> Runner:
    # MMEngine shares what has a name between all runs of a process.
    config.experiment_name = config.visualizer.name = f'test-{time.perf_counter_ns()}'
    runner = Runner.from_cfg(config)
    # Where a sampler ends, MMEngine's iterations wait two seconds for workers that may hang.
    hurried = SimpleNamespace(**{**vars(time), 'sleep': lambda seconds: None})
    with mock.patch.object(loops, 'time', hurried):
        runner.train()
    return runner


@HOOKS.register_module()
class DiaryHook(Hook):
    """Writes down by itself, one line a step and one file a process, what became of each image.

    Args:
        fail_at: iteration, counted from 0, behind which the run breaks down.
    """

    def __init__(self, fail_at=None):
        self.fail_at = fail_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        selection = model.pfb.selection
        blocked = selection is not None and selection.num_kept < selection.num_candidates
        kept = selection.kept.tolist() if blocked else None
        density = None if selection is None else selection.score
        images = [
            dict(
                path=sample.img_path,
                kept=kept is None or kept[i],
                density=None if density is None else float(density[i]),
                pixels=sample.gt_sem_seg.data.flatten().bincount(minlength=256).tolist(),
            )
            for i, sample in enumerate(data_batch['data_samples'])
        ]
        entry = dict(iteration=runner.iter, blocked=blocked, images=images)
        with open(Path(runner.work_dir) / f'diary_{get_rank()}.jsonl', 'a') as file:
            file.write(json.dumps(entry) + '\n')
        if runner.iter == self.fail_at:
            raise RuntimeError('the machine went down')


def read_diaries(work_dir: Path) -> list[dict[int, dict]]:
    """What the hook wrote, a dict by iteration for each process.

    Of an iteration that a resumed run went through again, the last entry counts.
    """
    return [
        {entry['iteration']: entry for entry in map(json.loads, file.read_text().splitlines())}
        for file in sorted(work_dir.glob('diary_*.jsonl'))
    ]


def check_against_diaries(record, work_dir: Path, until: int | None = None) -> None:
    """A record must hold what the diaries of all processes say, up to an iteration (exclusive)."""
    candidates, kept, density = Counter(), Counter(), {}
    pixels = np.zeros((2, len(record.classes)), int)
    for entries in read_diaries(work_dir):
        for t, entry in entries.items():
            if not entry['blocked'] or (until is not None and t >= until):
                continue
            for image in entry['images']:
                path, stays = image['path'], image['kept']
                candidates[path] += 1
                kept[path] += stays
                if image['density'] is not None:
                    density.setdefault(path, []).append(image['density'])
                assert not any(image['pixels'][len(record.classes) : 255])
                pixels[int(stays)] += image['pixels'][: len(record.classes)]
    assert dict(zip(record.paths, record.candidates.tolist(), strict=True)) == candidates
    assert dict(zip(record.paths, record.kept.tolist(), strict=True)) == kept
    mean = {path: np.mean(density.get(path, [np.nan])) for path in record.paths}
    np.testing.assert_allclose(record.mean_score, list(mean.values()))
    np.testing.assert_array_equal(record.class_counts, pixels)
