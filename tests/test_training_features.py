"""Blocked steps together with what MMEngine and torch offer for training."""

import os
import shutil

import pytest
import tiny
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.testing import assert_close

from pfb_mmseg.blocking import scoring_mode
from pfb_mmseg.core.estimator import read_estimate
from pfb_mmseg.reporting import read_scalars

STRATEGIES = pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
PIPELINE = [dict(type='LoadDemoScene'), dict(type='LoadDemoLabels'), dict(type='PackSegInputs')]


def loader(batch_size, sampler, **dataset):
    classes = ('sky', 'grass', 'tree', 'road', 'building')
    dataset = dict(
        type='PFBDemoDataset', metainfo=dict(classes=classes), pipeline=PIPELINE, **dataset
    )
    return dict(batch_size=batch_size, num_workers=0, sampler=sampler, dataset=dataset)


def train(tmp_path, strategy='two_pass', hooks=(), backbone=None, **settings):
    """Six iterations on demo scenes, the last four blocked at a half. Returns the runner."""
    cfg = dict(
        model=tiny.model_cfg(pfb={'strategy': strategy}, **(backbone or {})),
        work_dir=str(tmp_path),
        experiment_name=tmp_path.name,
        default_scope='mmseg',
        train_dataloader=loader(4, dict(type='InfiniteSampler'), length=8),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        custom_hooks=[dict(type='PFBHook', begin=2, end=1.0), *hooks],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=6),
        ),
        log_processor=dict(by_epoch=False, window_size=1),
        randomness=dict(seed=0),
    )
    runner = Runner.from_cfg(Config(cfg | settings))
    # Seeded beforehand: the pruner has nothing to learn before the first blocked step.
    runner.model.pfb.pruner.load_state_dict(tiny.build().pfb.pruner.state_dict())
    runner.stem_before = stem(runner).clone()
    runner.train()
    return runner


def find_cpp_compiler():
    return os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')


def stem(runner):
    return runner.model.backbone.stem[0].weight.detach().cpu()


def check(runner):
    """The blocked steps happened, and finite losses reached the stem."""
    train, _ = read_scalars(runner.work_dir)
    assert [entry['pfb/kept'] for entry in train] == [4, 4, 2, 2, 2, 2]
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    assert len(losses) == 6 and torch.as_tensor(losses).isfinite().all()
    assert stem(runner).isfinite().all() and not torch.equal(stem(runner), runner.stem_before)


def blocked_gradients(model, images=None, seed=7):
    """Gradients and losses of a blocked step, and which images it kept."""
    images = tiny.images() if images is None else images
    torch.manual_seed(seed)
    losses = model.loss(images, tiny.samples())
    tiny.total(losses).backward()
    assert len(model.pfb.selection.indices) == 4
    return tiny.gradients(model), losses, model.pfb.selection.indices.tolist()


class TestMixedPrecision:
    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
    def test_kept_images_train_as_in_a_plain_step(self, dtype):
        model = tiny.build()
        twin = tiny.plain_twin(model)
        with torch.autocast('cpu', dtype):
            gradients, losses, kept = blocked_gradients(model)
            torch.manual_seed(7)
            expected = twin.loss(tiny.images()[kept], [tiny.samples()[i] for i in kept])
            tiny.total(expected).backward()
        assert_close(losses, expected)
        assert_close(gradients, tiny.gradients(twin))
        assert all(gradient.any() for gradient in gradients.values())

    def test_scoring_leaves_no_cast_weights_behind(self):
        """Cast without gradient, they robbed the training pass of its own in older torch."""
        encoder = nn.Conv2d(3, 4, 3)
        with torch.autocast('cpu', torch.bfloat16):
            with scoring_mode(encoder):
                assert not torch.is_autocast_cache_enabled()
                encoder(tiny.images())
            assert torch.is_autocast_cache_enabled()
            encoder(tiny.images()).sum().backward()
        assert encoder.weight.grad is not None

    def test_single_pass_selects_and_trains(self):
        model = tiny.build({'strategy': 'single_pass'})
        with torch.autocast('cpu', torch.bfloat16):
            gradients, losses, _ = blocked_gradients(model)
        assert tiny.total(losses).isfinite()
        assert all(g.isfinite().all() and g.any() for g in gradients.values())

    @STRATEGIES
    @pytest.mark.filterwarnings('ignore:.*CUDA is not available:UserWarning')
    def test_amp_optim_wrapper_drives_a_run(self, tmp_path, monkeypatch, strategy):
        # It refuses to be built without a GPU, but its bfloat16 works on a CPU.
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
        wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=optimizer)
        runner = train(tmp_path, strategy, optim_wrapper=wrapper)
        assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
        check(runner)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
    @STRATEGIES
    def test_loss_scaling_drives_a_run(self, tmp_path, strategy):
        optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
        scale = dict(init_scale=512.0)
        wrapper = dict(type='AmpOptimWrapper', loss_scale=scale, optimizer=optimizer)
        runner = train(tmp_path, strategy, optim_wrapper=wrapper)
        check(runner)
        assert runner.optim_wrapper.loss_scaler.get_scale() == 512


@STRATEGIES
class TestGradientAccumulation:
    def test_two_blocked_steps_make_one_update(self, strategy):
        model = tiny.build({'strategy': strategy})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = OptimWrapper(optimizer, accumulative_counts=2)
        wrapper.initialize_count_status(model, 0, 4)
        weights = [model.backbone.stem[0].weight.detach().clone()]
        for seed in range(4):
            batch = dict(inputs=list(tiny.images(seed=seed)), data_samples=tiny.samples(seed=seed))
            model.train_step(batch, wrapper)
            assert len(model.pfb.selection.indices) == 4
            weights.append(model.backbone.stem[0].weight.detach().clone())
        moved = [not torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False)]
        assert moved == [False, True, False, True]


@STRATEGIES
class TestActivationCheckpointing:
    def test_changes_neither_selection_nor_gradients(self, strategy):
        stored, recomputed = (
            tiny.build({'strategy': strategy}, with_cp=with_cp) for with_cp in (False, True)
        )
        gradients, losses, kept = blocked_gradients(stored)
        same_gradients, same_losses, same_kept = blocked_gradients(recomputed)
        assert same_kept == kept
        assert_close(same_losses, losses)
        assert_close(same_gradients, gradients)


@STRATEGIES
class TestChannelsLast:
    def test_changes_neither_selection_nor_gradients(self, strategy):
        model, channels_last = (
            tiny.build({'strategy': strategy}),
            tiny.build({'strategy': strategy}),
        )
        channels_last.to(memory_format=torch.channels_last)
        images = tiny.images().contiguous(memory_format=torch.channels_last)
        seen = []
        channels_last.backbone.layer3.register_forward_pre_hook(
            lambda module, args: seen.append(
                args[0].is_contiguous(memory_format=torch.channels_last)
            )
        )
        gradients, _, kept = blocked_gradients(model)
        same_gradients, _, same_kept = blocked_gradients(channels_last, images)
        assert same_kept == kept
        assert seen and all(seen)
        assert_close(same_gradients, gradients, rtol=1e-3, atol=1e-5)


class TestExponentialMovingAverage:
    def train(self, tmp_path, strategy='two_pass', load_from=None, **options):
        ema = dict(type='EMAHook', momentum=0.1, **options)
        runner = train(
            tmp_path,
            strategy,
            [ema],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3),
            val_cfg=dict(),
            val_dataloader=loader(1, dict(type='DefaultSampler'), length=2, split='val'),
            val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
            load_from=load_from,
        )
        [hook] = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        return runner, hook.ema_model.module

    @STRATEGIES
    @pytest.mark.parametrize('update_buffers', [False, True], ids=['parameters', 'buffers too'])
    def test_averages_a_blocked_run(self, tmp_path, strategy, update_buffers):
        runner, average = self.train(tmp_path, strategy, update_buffers=update_buffers)
        check(runner)
        assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
        averaged = average.backbone.stem[0].weight.cpu()
        assert averaged.isfinite().all()
        # Between where the run began and where it ended.
        assert (averaged - stem(runner)).norm() < (runner.stem_before - stem(runner)).norm()

    @pytest.mark.parametrize('begin_iter', [0, 4])
    @pytest.mark.parametrize('update_buffers', [False, True], ids=['parameters', 'buffers too'])
    def test_checkpoint_holds_the_live_estimate(self, tmp_path, update_buffers, begin_iter):
        options = dict(update_buffers=update_buffers, begin_iter=begin_iter)
        first, _ = self.train(tmp_path / 'first', **options)
        path = str(tmp_path / 'first' / 'iter_6.pth')
        runner, _ = self.train(tmp_path, load_from=path, **options)
        for seen, folder in ((first, tmp_path / 'first'), (runner, tmp_path)):
            checkpoint = torch.load(folder / 'iter_6.pth', map_location='cpu', weights_only=False)
            live = seen.model.pfb.pruner.estimator
            assert live.ready
            for name, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
                found = read_estimate(checkpoint[name], f'{prefix}pfb.pruner.criterion.estimator.')
                assert torch.equal(found['centroids'], live.centroids.cpu()), name
                assert torch.equal(found['counts'], live.counts.cpu()), name
        before, after = (r.model.pfb.pruner.estimator.counts.sum() for r in (first, runner))
        assert after > before > 0

    def test_average_is_a_model_of_its_own(self, tmp_path):
        runner, average = self.train(tmp_path)
        assert average.pfb.point.encoder is average.backbone
        assert average.pfb.point.module is average.backbone.layer3
        assert average.backbone is not runner.model.backbone

    def test_checkpoint_with_the_average_loads_into_the_plain_model(self, tmp_path):
        _, average = self.train(tmp_path)
        path = tmp_path / 'iter_6.pth'
        state = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
        twin = tiny.plain_twin(tiny.build())
        missing, unexpected = twin.load_state_dict(state, strict=False)
        assert not missing and all(key.startswith('pfb.') for key in unexpected)
        assert_close(twin.backbone.stem[0].weight, average.backbone.stem[0].weight.cpu())


class TestCompile:
    @pytest.fixture(autouse=True)
    def _from_scratch(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @STRATEGIES
    def test_run_goes_through(self, tmp_path, strategy):
        check(train(tmp_path, strategy, compile=dict(backend='eager')))

    @pytest.mark.slow
    @STRATEGIES
    @pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
    def test_run_goes_through_with_a_backend_that_optimises(self, tmp_path, strategy, backend):
        if backend == 'inductor' and get_device() == 'cpu' and not find_cpp_compiler():
            pytest.skip('inductor makes C++ on a CPU, and no compiler for it was found')
        check(train(tmp_path, strategy, compile=dict(backend=backend)))

    @pytest.mark.slow
    @STRATEGIES
    def test_changes_neither_selection_nor_gradients(self, strategy):
        head = {'dropout_ratio': 0}
        model, compiled = (tiny.build({'strategy': strategy}, head) for _ in range(2))
        gradients, losses, kept = blocked_gradients(model)
        compiled.loss = torch.compile(compiled.loss, backend='eager')
        same_gradients, same_losses, same_kept = blocked_gradients(compiled)
        assert same_kept == kept
        assert_close(same_losses, losses)
        assert_close(same_gradients, gradients)


def test_all_at_once(tmp_path, monkeypatch):
    """bfloat16, accumulation, checkpointing and EMA in one run."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    wrapper = dict(
        type='AmpOptimWrapper',
        dtype='bfloat16',
        accumulative_counts=2,
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
    )
    runner = train(
        tmp_path,
        hooks=[dict(type='EMAHook')],
        backbone=dict(with_cp=True),
        optim_wrapper=wrapper,
    )
    check(runner)
