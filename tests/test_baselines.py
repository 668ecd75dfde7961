"""The methods that PFB is compared with, as changes to a config and in whole runs."""

import copy
import json
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from demo_runs import DEMO_CONFIG, demo_config, distributed, train
from mmengine.config import Config
from mmengine.dist import get_rank

from pfb_mmseg.compare import InfoBatchHook, InfoBatchSampler
from pfb_mmseg.compare.infobatch import shortened_iters
from pfb_mmseg.compare.lengths import set_iters
from pfb_mmseg.compare.methods import CRITERIA, INFOBATCH, METHODS, apply_method
from pfb_mmseg.report import read_scalars

ROOT = Path(__file__).parents[1]


class TestShortenedIters:
    def test_counts_epoch_by_epoch(self):
        # 10 epochs of 100: the first and the last, after 8.75, are full, 1 to 8 lose 0.5 * 0.95.
        kept = 100 + 8 * 52.5 + 100
        assert shortened_iters(100, 10, 100, 0.5, 95) == pytest.approx(kept / 10, abs=1)
        kept = 100 + 8 * 75 + 100
        assert shortened_iters(100, 10, 100, 0.5, None) == kept / 10

    def test_an_epoch_that_does_not_end_counts_in_part(self):
        # Of 2.5 epochs the second loses half of its 99 easiest, and the last half epoch as well.
        kept = 100 + (100 - 0.5 * 99) * 1.5
        assert shortened_iters(25, 10, 100, 0.5, 100) == round(kept / 10)

    def test_a_run_of_less_than_an_epoch_is_not_shortened(self):
        assert shortened_iters(9, 10, 100, 0.7, 95) == 9

    @pytest.mark.parametrize('percentile', [95, None])
    def test_foretells_the_candidates_of_a_run(self, percentile):
        sampler = InfoBatchSampler(range(120), 0.5, percentile, seed=0)
        iters = shortened_iters(150, 8, 120, 0.5, percentile)
        sampler.num_epochs = 150 * 8 / 120
        rng = np.random.default_rng(0)
        for _ in range(iters):
            losses = torch.from_numpy(rng.random(8))
            sampler.update(sampler.take(8)[0].flatten(), losses)
        assert iters < 125
        assert sampler.candidates == pytest.approx(150 * 8, rel=0.03)


def method_config(tmp_path, method, ratio=0.5, max_iters=18, **options):
    """Six epochs of twelve images in batches of four."""
    config = demo_config(
        tmp_path,
        max_iters,
        **{'train_dataloader.dataset.length': 12, 'custom_hooks.0.begin': 0.0, **options},
    )
    config.param_scheduler[0].end = max_iters
    config.model.pfb.criterion = dict(type='rare', estimator=dict(num_centroids=4, dim=16))
    apply_method(config, method, ratio)
    config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type='BudgetHook')]
    return config


def budget_of(tmp_path):
    return json.loads((tmp_path / 'budget.json').read_text())


class TestRuns:
    # 'short' differs from 'full' in its length only, 'common' from 'rare' in the sign.
    @pytest.mark.parametrize('method', [m for m in METHODS if m not in ('short', 'common')])
    def test_budget_is_the_one_of_the_method(self, tmp_path, method):
        # Neither the end of the run nor that of an epoch is one of an interval.
        runner = train(method_config(tmp_path, method, **{'default_hooks.logger.interval': 4}))
        budget = budget_of(tmp_path)
        entries, _ = read_scalars(tmp_path)
        losses = [entry['loss'] for entry in entries if 'loss' in entry]
        assert len(losses) >= 2 and np.isfinite(losses).all()
        iterations = budget['iterations']
        images = budget['shallow'], budget['deep'], budget['backward']
        blocked = round(0.9 * 18)
        kept = blocked * 2 + (18 - blocked) * 4
        if method == 'full':
            assert images == (72, 72, 72)
        elif method == 'small':
            assert images == (36, 36, 36)
        elif method == 'random':
            assert images == (kept, kept, kept)
        elif method in (*CRITERIA, 'pfb', 'two_stage') and method not in ('loss_topk', 'divbs'):
            loaded = 4 * blocked
            if method == 'two_stage':  # after an epoch, of each batch 4 / sqrt(2) are loaded
                loaded = 3 * 4 + 37
            if method in ('pfb', 'rare', 'rare_taught'):  # the first step seeds
                kept += 2
            once = runner.model.pfb.strategy == 'single_pass'
            scored = loaded + (18 - blocked) * 4 if once else kept + loaded
            assert images == (scored, kept, kept)
            assert budget['loaded'] == loaded + (18 - blocked) * 4
            assert budget['candidates'] == 72
        elif method in ('loss_topk', 'divbs'):
            assert images == (kept + 4 * blocked, kept + 4 * blocked, kept)
        else:
            assert iterations == runner.max_iters < 18
            assert images == (4 * iterations,) * 3
            # Of the mean threshold only half the samples were expected to lie below it.
            near = 16 if method == 'infobatch_mean' else 5
            assert budget['candidates'] == pytest.approx(72, abs=near)
            assert runner.train_dataloader.sampler.losses.isfinite().all()
        if method not in INFOBATCH:
            assert iterations == 18
        if method != 'two_stage':
            assert budget['loaded'] == (2 if method == 'small' else 4) * iterations
            assert (budget['candidates'] == budget['loaded']) == (method not in INFOBATCH)
        assert budget['seconds'] > 0 < budget['cpu_seconds'] and budget['peak_memory_mib'] > 1

    def test_a_resumed_run_is_refused(self, tmp_path):
        config = method_config(tmp_path, 'infobatch')
        config.default_hooks.checkpoint.interval = 5
        train(config)
        config.resume, config.load_from = True, str(tmp_path / 'iter_5.pth')
        with pytest.raises(ValueError, match='InfoBatch cannot be resumed at iteration 5'):
            train(config)
        config.custom_hooks = [dict(type='BudgetHook')]
        with pytest.raises(ValueError, match='BudgetHook measures whole runs'):
            train(config)

    def test_workers_do_not_mix_up_samples_and_losses(self, tmp_path):
        config = method_config(tmp_path, 'infobatch_mean')
        config.train_dataloader.update(num_workers=2, persistent_workers=True)
        named = []

        class Watch(InfoBatchHook):
            def before_train_iter(self, runner, batch_idx, data_batch=None):
                super().before_train_iter(runner, batch_idx, data_batch)
                dataset = runner.train_dataloader.dataset
                paths = [sample.img_path for sample in data_batch['data_samples']]
                of = [dataset.get_data_info(i)['img_path'] for i in self._indices[:, 0].tolist()]
                named.append((paths, of))

        config.custom_hooks[0] = dict(type=Watch, full_iters=18)
        train(config)
        assert named and all(paths == of for paths, of in named)

    def test_another_sampler_or_loop_is_refused(self, tmp_path):
        config = method_config(tmp_path, 'infobatch')
        config.train_dataloader.sampler = dict(type='InfiniteSampler')
        with pytest.raises(ValueError, match='drives InfoBatchSampler, got InfiniteSampler'):
            train(config)
        config = method_config(tmp_path, 'infobatch')
        config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
        with pytest.raises(ValueError, match='is for IterBasedTrainLoop, got EpochBasedTrainLoop'):
            train(config)


def train_on_a_rank(folder):
    runner = train(distributed(method_config(folder, 'infobatch', max_iters=9)))
    weight = runner.model.module.state_dict()['backbone.stem.0.weight']
    seen = dict(weight=weight, losses=runner.train_dataloader.sampler.losses)
    torch.save(seen, Path(folder, f'{get_rank()}.pt'))


def test_two_ranks_train_with_what_chooses_before_loading(tmp_path):
    processes.run(train_on_a_rank, tmp_path, num_ranks=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    assert torch.equal(first['weight'], second['weight'])
    assert torch.equal(first['losses'], second['losses'])
    assert (first['losses'] >= 0).all()  # of all samples, whichever rank had them
    assert budget_of(tmp_path)['backward'] % 2 == 0


class TestMethods:
    def plain(self):
        return Config.fromfile(ROOT / 'configs/demo/fcn_r18-d8_1xb16-300i_demo-64x64.py')

    @pytest.mark.parametrize('method', METHODS)
    def test_methods_differ_in_model_type_sampler_hooks_and_schedule_only(self, method):
        config, plain = Config.fromfile(DEMO_CONFIG), self.plain()
        apply_method(config, method, 0.5)
        if method == 'full':
            assert not config.custom_hooks
        for one in (config, plain):
            one.pop('custom_hooks', None)
            if method in (*CRITERIA, 'pfb', 'two_stage'):
                one.model.pop('type')
                one.model.pop('pfb', None)
            if method == 'small':
                one.train_dataloader.pop('batch_size')
            if method in INFOBATCH:
                one.train_dataloader.pop('sampler')
                set_iters(one, 300)
            if method == 'two_stage':
                one.train_dataloader.pop('batch_sampler', None)
        assert config.to_dict() == plain.to_dict()

    def test_pfb_options_and_schedule_of_the_config_are_kept(self):
        config = Config.fromfile(DEMO_CONFIG)
        config.custom_hooks[0].begin = 0.1
        config.model.pfb.min_keep = 3
        random, divbs = copy.deepcopy(config), copy.deepcopy(config)
        apply_method(random, 'random', 0.7)
        apply_method(divbs, 'divbs', 0.7)
        for one, name in ((random, 'random'), (divbs, 'divbs')):
            chosen = dict(prune_ratio=0.7, criterion=dict(type=name), exit_loss_weight=0.0)
            assert one.model.pfb == {**config.model.pfb, **chosen}
        assert random.custom_hooks == divbs.custom_hooks == config.custom_hooks

    @pytest.mark.parametrize(
        ('method', 'criterion', 'weight'),
        [
            ('hard', dict(type='hard'), None),
            ('hard_only', dict(type='hard'), 0.0),
            ('rare', dict(type='rare', exploration=0.1), 0.0),
            ('rare_taught', dict(type='rare', exploration=0.1), 1.0),
            ('common', dict(type='common', exploration=0.1), 0.0),
            ('pfb', dict(type='rare', exploration=0.1), 0.4),
        ],
    )
    def test_criterion_and_teaching_are_those_of_the_method(self, method, criterion, weight):
        config = Config.fromfile(DEMO_CONFIG)
        config.model.pfb = dict(
            criterion=dict(type='rare', exploration=0.1), exit_loss_weight=0.4, min_keep=3
        )
        apply_method(config, method, 0.7)
        expected = dict(criterion=criterion, min_keep=3, prune_ratio=0.7)
        expected |= {} if weight is None else dict(exit_loss_weight=weight)
        assert config.model.pfb == expected

    def test_what_a_config_says_of_hard_is_kept_by_hard(self):
        config = Config.fromfile(DEMO_CONFIG)
        config.model.pfb = dict(criterion='hard', exit_loss_weight=0.4)
        apply_method(config, 'hard', 0.7)
        assert config.model.pfb.exit_loss_weight == 0.4

    def test_set_iters_scales_all_of_the_schedule(self):
        config = Config(
            dict(
                train_cfg=dict(max_iters=1000, val_interval=500),
                param_scheduler=[
                    dict(type='LinearLR', begin=0, end=100, by_epoch=False),
                    dict(type='MultiStepLR', milestones=[400, 800], by_epoch=False),
                ],
                custom_hooks=[
                    dict(type='PFBHook', begin=40, end=0.9),
                    dict(type='InfoBatchHook', full_iters=2000),
                ],
            )
        )
        set_iters(config, 250)
        assert config.train_cfg == dict(max_iters=250, val_interval=125)
        assert config.param_scheduler[0].begin == 0 and config.param_scheduler[0].end == 25
        assert config.param_scheduler[1].milestones == [100, 200]
        assert config.custom_hooks[0] == dict(type='PFBHook', begin=10, end=0.9)
        assert config.custom_hooks[1].full_iters == 500

    def test_what_chooses_before_loading_has_a_shorter_schedule(self, tmp_path):
        options = {'train_dataloader.dataset.length': 100}
        config = method_config(tmp_path, 'infobatch', 0.5, 400, **options)
        sampler = dict(type='InfoBatchSampler', prune_ratio=0.5, percentile=95)
        assert config.train_dataloader.sampler == sampler
        # Of 16 epochs 13 lose nearly a half.
        assert config.train_cfg.max_iters == pytest.approx(400 - 13 * 0.475 * 25, abs=4)
        assert config.train_cfg.max_iters == config.param_scheduler[0].end
        assert config.custom_hooks[0] == dict(type='InfoBatchHook', full_iters=400)

    @pytest.mark.parametrize(
        ('ratio', 'min_keep', 'kept'), [(0.7, None, 5), (0.5, None, 8), (0.9, None, 2), (0.7, 6, 6)]
    )
    def test_small_has_batches_of_the_size_that_is_kept(self, ratio, min_keep, kept):
        config = Config.fromfile(DEMO_CONFIG)
        config.model.pfb.min_keep = min_keep
        apply_method(config, 'small', ratio)
        assert config.train_dataloader.batch_size == kept

    def test_small_is_at_least_what_the_model_can_be_trained_on(self):
        config = Config.fromfile(
            ROOT / 'benchmarks/configs/camvid/deeplabv3_r18-d8_1xb8-300i_camvid-176x240.py'
        )
        apply_method(config, 'small', 0.9)
        assert config.train_dataloader.batch_size == 2  # BatchNorm on DeepLabV3's pooled image

    @pytest.mark.parametrize(
        ('options', 'complaint'),
        [
            (dict(method='infobath', prune_ratio=0.5), "did you mean 'infobatch'"),
            (dict(method='pfb', prune_ratio=1.0), 'prune_ratio=1.0'),
            (dict(method='divbs'), 'prune_ratio=None'),
        ],
    )
    def test_a_mistake_is_told(self, options, complaint):
        with pytest.raises((TypeError, ValueError), match=complaint):
            apply_method(self.plain(), **options)

    def test_a_schedule_in_epochs_is_refused(self):
        config = self.plain()
        config.param_scheduler[0].by_epoch = True
        with pytest.raises(ValueError, match='PolyLR counts epochs'):
            set_iters(config, 100)
        config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
        with pytest.raises(ValueError, match='train_cfg has no max_iters'):
            apply_method(config, 'infobatch', 0.5)
