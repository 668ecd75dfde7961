"""Mask2Former and MaskFormer, whose heads predict masks, train as any other segmentor."""

import copy
import json
import time
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.testing import assert_close

from pfb_mmseg.models.description import describe

from .small import ALL, MASK2FORMER, MASK2FORMER_SWIN, build, small_config

RARE = dict(type='rare', estimator=dict(num_centroids=6, dim=8))
CONFIGS = Path(__file__).parents[2] / 'configs' / 'mask2former'
DEMO = CONFIGS / 'mask2former_r18_pfb-hard-p50_1xb16-300i_demo-64x64.py'


def name(path):
    return path.split('_8xb2')[0].rpartition('/')[2]


def ready(model_cfg, **pfb):
    """A model with PFB that has looked at as many images as it needs to choose."""
    model = build(model_cfg, pfb)
    model.pfb.prepare()
    with torch.no_grad():
        for seed in range(20):
            if model.pfb.ready:
                return model
            model.loss(tiny.images(seed=seed), tiny.samples(seed=seed))
    raise AssertionError('it never gets ready')


def twin_of(model, model_cfg):
    """The same model without PFB, with its weights."""
    twin = build(model_cfg)
    state = model.state_dict()
    twin.load_state_dict({k: v for k, v in state.items() if not k.startswith('pfb.')})
    return twin


def step(model, images, samples, seed=7):
    """Losses and gradients of a step in which the heads draw the same points of the masks."""
    torch.manual_seed(seed)
    losses = model.loss(images, samples)
    model.zero_grad()
    tiny.total(losses).backward()
    return losses, tiny.gradients(model)


@pytest.mark.parametrize('path', ALL, ids=name)
@pytest.mark.parametrize('criterion', [RARE, 'hard'], ids=['rare', 'hard'])
@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_a_blocked_step_without_teaching_is_a_plain_step_on_the_images_that_stay(
    path, criterion, strategy
):
    cfg = small_config(path).model
    if cfg.backbone.type == 'ResNet':  # in a single pass it normalises over all images
        cfg.backbone.norm_eval = strategy == 'single_pass'
    model = ready(cfg, criterion=criterion, strategy=strategy, exit_loss_weight=0)
    twin = twin_of(model, cfg)
    images, samples = tiny.images(), tiny.samples()
    losses, gradients = step(model, images, samples)
    kept = model.pfb.selection.indices.tolist()
    assert len(kept) == 4
    assert_close((losses, gradients), step(twin, images[kept], [samples[i] for i in kept]))


@pytest.mark.parametrize('path', ALL, ids=name)
@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_its_early_exit_teaches_the_shallow_part_by_all_images(path, strategy):
    model = ready(small_config(path).model, criterion='hard', strategy=strategy)
    losses, gradients = step(model, tiny.images(), tiny.samples())
    assert model.pfb.selection.num_kept == 4
    assert losses['exit.loss_ce'] > 0
    silent = copy.deepcopy(model)
    silent.pfb.exit_loss_weight = 0.0
    _, plain = step(silent, tiny.images(), tiny.samples())
    first = next(n for n, p in model.backbone.named_parameters() if p.requires_grad)
    assert not torch.allclose(gradients[f'backbone.{first}'], plain[f'backbone.{first}'])


@pytest.mark.parametrize('path', ALL, ids=name)
def test_the_cost_of_a_step_is_known_before_training(path):
    model = build(small_config(path).model, dict(criterion=RARE))
    model.pfb.prepare()
    assert 'of a step is saved' in describe(model.pfb)


@pytest.mark.parametrize('path', [MASK2FORMER, MASK2FORMER_SWIN], ids=name)
def test_the_early_exit_does_not_disturb_the_gradients_that_are_clipped(path):
    config = small_config(path)
    assert config.optim_wrapper.clip_grad.max_norm == 0.01
    model = ready(config.model, criterion='hard', exit_loss_weight=0, strategy='two_pass')
    twin = twin_of(model, config.model)
    own = {id(weight) for weight in model.pfb.exit.layers.parameters()}
    images, samples = tiny.images(), tiny.samples()
    for one in (model, twin):
        wrapper = build_optim_wrapper(one, config.optim_wrapper)
        groups = wrapper.optimizer.param_groups
        assert not own & {id(weight) for group in groups for weight in group['params']}
        torch.manual_seed(7)
        loss, _ = one.parse_losses(one.loss(images, samples))
        wrapper.update_params(loss)
        if one is model:
            kept = model.pfb.selection.indices.tolist()
            assert len(kept) == 4
            images, samples = images[kept], [samples[i] for i in kept]
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith('pfb.')}
    assert_close(weights, dict(twin.state_dict()))


@HOOKS.register_module()
class PointsHook(Hook):
    """Lets heads draw the points at which masks are compared anew, but the same, in an iteration
    that is repeated: MMEngine's checkpoints hold no state of random generators."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        torch.manual_seed(runner.iter)


def demo_config(work_dir, max_iters, **options):
    """Runs of seconds on the demo scenes."""
    config = Config.fromfile(DEMO)
    config.work_dir = str(work_dir)
    config.experiment_name = config.visualizer.name = f'test-{time.perf_counter_ns()}'
    config.merge_from_dict(
        {
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.decode_head.in_channels': [8, 16, 32, 64],
            'train_dataloader.batch_size': 4,
            'train_dataloader.dataset.length': 24,
            'val_dataloader.dataset.length': 4,
            'train_cfg.max_iters': max_iters,
            'train_cfg.val_interval': 1000,
            'param_scheduler': [dict(type='ConstantLR', factor=1, by_epoch=False)],
            'custom_hooks': [dict(type='PFBHook', begin=0.0, end=1.0), dict(type='PointsHook')],
            'default_hooks.checkpoint.interval': 12,
            'randomness.seed': 0,
            'log_level': 'WARNING',
            **options,
        }
    )
    (flip,) = [s for s in config.train_dataloader.dataset.pipeline if s.type == 'RandomFlip']
    flip.prob = 0.0
    return config


def train(config):
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_a_run_that_goes_on_ends_where_the_one_does_that_was_not_interrupted(tmp_path):
    whole = train(demo_config(tmp_path / 'whole', 16))
    train(demo_config(tmp_path / 'first', 12))
    config = demo_config(tmp_path / 'second', 16)
    config.load_from, config.resume = str(tmp_path / 'first' / 'iter_12.pth'), True
    resumed = train(config)
    assert resumed.model.pfb.exit.ready
    assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)


def test_images_are_counted_where_the_masks_are_decoded(tmp_path):
    config = demo_config(tmp_path, 3, **{'model.pfb.criterion': 'random'})
    config.custom_hooks.append(dict(type='BudgetHook'))
    train(config)
    budget = json.loads((tmp_path / 'budget.json').read_text())
    counted = {key: budget[key] for key in ('loaded', 'shallow', 'deep', 'backward')}
    assert counted == dict(loaded=12, shallow=6, deep=6, backward=6)


@pytest.mark.parametrize('criterion', ['loss_topk', 'divbs'])
def test_criteria_that_need_a_loss_of_pixels_are_refused_before_training(tmp_path, criterion):
    runner = Runner.from_cfg(demo_config(tmp_path, 4, **{'model.pfb.criterion': criterion}))
    with pytest.raises(ValueError, match="Mask2FormerHead as decode_head.*such as 'hard'"):
        runner.train()
    assert runner.iter == 0


def test_an_auxiliary_exit_is_refused_where_there_is_no_auxiliary_head():
    with pytest.raises(ValueError, match="exit='auxiliary': no auxiliary head"):
        build(small_config(MASK2FORMER).model, dict(criterion='hard', exit='auxiliary'))


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_the_configs_build(path):
    config = Config.fromfile(path)
    model = build(config.model)
    assert type(model).__name__ == config.model.type
