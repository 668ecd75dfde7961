"""The demo configuration cut down to runs of a few seconds, for the tests that need a Runner."""

import os
import re
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import pfb_mmseg  # noqa: F401  registers its types
from pfb_mmseg.compat import find_distributions, why_no_resume

ROOT = Path(__file__).parents[1]
DEMO_CONFIG = ROOT / 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'


def demo_config(work_dir: Path, max_iters: int = 12, **options) -> Config:
    """The demo configuration cut down to seconds, without chance; ``options`` as --cfg-options."""
    config = Config.fromfile(DEMO_CONFIG)
    config.work_dir = str(work_dir)
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
            'model.pfb.estimator': dict(num_centroids=8, dim=16),
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
    return config


def train(config: Config) -> Runner:
    """A whole run, from its config alone.

    Where MMEngine cannot resume, the run is seen to be refused, and then takes the way out that
    the refusal names.
    """
    reason = why_no_resume(find_distributions(), torch.__version__)
    if config.get('resume') and reason:
        with pytest.raises(RuntimeError, match=re.escape(reason)):
            _train(config)
        assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1' in reason
        with mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'):
            return _train(config)
    return _train(config)


def _train(config: Config) -> Runner:
    # MMEngine shares what has a name between all runs of a process.
    config.experiment_name = config.visualizer.name = f'test-{time.perf_counter_ns()}'
    runner = Runner.from_cfg(config)
    runner.train()
    return runner
