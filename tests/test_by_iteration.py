"""Runs that count epochs, as runs of the same length that count iterations."""

import copy
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import MultiStepLR, OneCycleLR
from PIL import Image

from pfb_mmseg.compare.lengths import count_iterations, set_iters

ROOT = Path(__file__).parents[1]
EPOCHS, LENGTH = 8, 3  # 20 images in batches of 8


@pytest.fixture
def config(tmp_path):
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        for i in range(20):
            file = io.BytesIO()
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, 'png')
            member = tarfile.TarInfo(f'cat/{i}.png')
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    path = ROOT / 'benchmarks/configs/cifar10/resnet18-small_pfb-p50_1xb128-8e_cifar10-jpeg.py'
    config = Config.fromfile(path)
    config.default_scope = 'mmengine'
    config.train_dataloader.batch_size = 8
    config.train_dataloader.dataset.update(data_root=str(tmp_path), pipeline=[])
    return config


def test_the_run_is_as_long_and_its_hooks_come_at_the_same_moments(config):
    count_iterations(config)
    assert config.train_cfg == dict(
        type='IterBasedTrainLoop', max_iters=EPOCHS * LENGTH, val_interval=4 * LENGTH
    )
    assert config.train_dataloader.sampler == dict(type='InfiniteSampler', shuffle=True)
    assert config.custom_hooks[-1] == dict(type='PFBHook', begin=LENGTH, end=7 * LENGTH)
    checkpoint = config.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.interval) == (False, EPOCHS * LENGTH)
    assert not config.log_processor.by_epoch
    assert not config.default_hooks.logger.log_metric_by_epoch


def test_several_processes_share_an_epoch(config):
    count_iterations(config, num_processes=2)
    assert config.train_cfg.max_iters == EPOCHS * 2  # 10 images for each of them


def curve(scheduler, optimizer):
    rates = []
    for _ in range(EPOCHS * LENGTH):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step()
    return rates


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_the_learning_rate_is_the_same_in_every_iteration(config):
    options = copy.deepcopy(config.param_scheduler.to_dict())
    assert options.pop('type') == 'OneCycleLR' and options.pop('convert_to_iter_based')
    ours = optimizer()
    expected = curve(OneCycleLR.build_iter_from_epoch(ours, **options, epoch_length=LENGTH), ours)
    count_iterations(config)
    options = config.param_scheduler.to_dict()
    assert options.pop('type') == 'OneCycleLR'
    ours = optimizer()
    assert curve(OneCycleLR(ours, **options), ours) == pytest.approx(expected)
    assert len(set(expected)) > EPOCHS


def test_milestones_and_the_begins_and_ends_of_several_schedulers_move(config):
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=2),
        dict(type='MultiStepLR', milestones=[4, 6], begin=0, end=8),
        dict(type='ConstantLR', factor=1.0, by_epoch=False, end=5),
    ]
    count_iterations(config)
    linear, steps, constant = config.param_scheduler
    assert (linear.by_epoch, linear.begin, linear.end) == (False, 0, 2 * LENGTH)
    assert (steps.by_epoch, steps.begin, steps.end) == (False, 0, 8 * LENGTH)
    assert steps.milestones == [4 * LENGTH, 6 * LENGTH]
    assert constant == dict(type='ConstantLR', factor=1.0, by_epoch=False, end=5)
    options = {key: value for key, value in steps.items() if key != 'type'}
    ours = optimizer()
    rates = curve(MultiStepLR(ours, **options), ours)
    assert rates[4 * LENGTH - 1] == 0.1 and rates[4 * LENGTH] == pytest.approx(0.01)


def test_what_became_of_it_can_be_shortened(config):
    count_iterations(config)
    set_iters(config, EPOCHS * LENGTH // 2)
    assert config.param_scheduler.total_steps == config.train_cfg.max_iters == 12
    assert (config.custom_hooks[-1].begin, config.custom_hooks[-1].end) == (2, 10)


def test_a_run_that_counts_iterations_stays_as_it_is():
    path = ROOT / 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'
    config = Config.fromfile(path)
    count_iterations(config)
    assert config.to_dict() == Config.fromfile(path).to_dict()


def test_what_cannot_be_counted_in_iterations_is_refused(config):
    other = copy.deepcopy(config)
    other.train_dataloader.sampler = dict(type='RepeatAugSampler', shuffle=True)
    with pytest.raises(ValueError, match='RepeatAugSampler.*DefaultSampler'):
        count_iterations(other)
    config.param_scheduler = dict(type='ExponentialLR', gamma=0.9)
    with pytest.raises(ValueError, match='ExponentialLR counts epochs'):
        count_iterations(config)
