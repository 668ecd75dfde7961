"""Blocked steps together with what MMEngine and torch offer for training."""

import copy
import os
import shutil
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import tiny
import torch
from demo_runs import float64
from following import Follow, exponential_average, network
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.testing import assert_close

from pfb_mmseg.blocking import scoring_mode
from pfb_mmseg.report import read_scalars

RARE = tiny.RARE | dict(exploration=0)
# Options of PFB: the paper's step, and those in which an early exit teaches.
PAPER = {
    strategy: dict(strategy=strategy, criterion=RARE) for strategy in ('two_pass', 'single_pass')
}
TAUGHT = {
    f'{strategy}, taught by {by}': dict(strategy=strategy, criterion='hard', exit=exit)
    for strategy in ('two_pass', 'single_pass')
    for by, exit in (('the auxiliary head', 'auxiliary'), ('an exit of its own', 'own'))
}
# The same by chance, so that rounding decides nothing.
BY_CHANCE = {
    name: pfb | dict(criterion='random', exit_loss_weight=1.0) for name, pfb in TAUGHT.items()
}


def ways(*kinds):
    options = {name: pfb for kind in kinds for name, pfb in kind.items()}
    return pytest.mark.parametrize('pfb', options.values(), ids=options)


PIPELINE = [dict(type='LoadDemoScene'), dict(type='LoadDemoLabels'), dict(type='PackSegInputs')]


def loader(batch_size, sampler, **dataset):
    classes = ('sky', 'grass', 'tree', 'road', 'building')
    dataset = dict(
        type='PFBDemoDataset', metainfo=dict(classes=classes), pipeline=PIPELINE, **dataset
    )
    return dict(batch_size=batch_size, num_workers=0, sampler=sampler, dataset=dataset)


def built(pfb, **backbone):
    """The small model, whose next step is blocked, without chance."""
    model = tiny.build(pfb, {'dropout_ratio': 0}, **backbone)
    return tiny.warm(model) if pfb.get('exit') == 'own' else model


def train(tmp_path, pfb=PAPER['two_pass'], hooks=(), backbone=None, **settings):
    """Six iterations on demo scenes, the last four blocked at a half, without chance.

    Returns the runner, with what its iterations left behind as ``follow``.
    """
    cfg = dict(
        model=tiny.model_cfg(pfb=pfb, head={'dropout_ratio': 0}, **(backbone or {})),
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
        randomness=dict(seed=3),
    )
    runner = Runner.from_cfg(Config(cfg | settings))
    # Seeded and warm: nothing is to be learnt before the first blocked step.
    runner.model.pfb.load_state_dict(built(pfb).pfb.state_dict())
    runner.follow = Follow()
    runner.register_hook(runner.follow)
    runner.before = network(runner.model)
    runner.train()
    return runner


def find_cpp_compiler():
    return os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')


def check(runner, expected, rtol=1e-6, atol=1e-9):
    """It kept the images that another run kept, and came to the same numbers with them."""
    train, _ = read_scalars(runner.work_dir)
    assert [entry['pfb/kept'] for entry in train] == [4, 4, 2, 2, 2, 2]
    assert runner.follow.kept == expected.follow.kept
    assert_close(runner.follow.losses, expected.follow.losses, rtol=rtol, atol=0)
    assert_close(runner.follow.states[-1], expected.follow.states[-1], rtol=rtol, atol=atol)


def check_roughly(runner, expected):
    """As :func:`check`, for bfloat16 beside float32, up to the second blocked step."""
    for selection in expected.follow.selections[2:4]:
        assert selection.score is None or gap(selection) > 2
    assert runner.follow.kept[:4] == expected.follow.kept[:4]
    assert_close(runner.follow.losses[:4], expected.follow.losses[:4], rtol=0.01, atol=0)
    ways = [
        [after - one.before[name] for name, after in one.follow.states[3].items()]
        for one in (runner, expected)
    ]
    assert same_direction(*ways) > 0.99


def gap(selection):
    """By how much the log density of the rarest dropped image exceeds the most common kept one's.

    bfloat16 moves those of the runs here by up to 0.1, of the single steps by up to 2.
    """
    last_kept, first_dropped = selection.score.sort().values[len(selection.indices) - 1 :][:2]
    return first_dropped - last_kept


def same_direction(tensors, others):
    """Cosine of the angle between two lists of tensors, each taken as one vector."""
    one, other = (torch.cat([t.flatten() for t in ts]) for ts in (tensors, others))
    return torch.cosine_similarity(one, other, dim=0)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """``plain(pfb)``: the run without any of it, made once; in float32 where asked."""
    runs = {}

    def run(pfb, dtype=torch.float64, **settings):
        key = str(pfb), dtype, str(settings)
        if key not in runs:
            with float64() if dtype is torch.float64 else nullcontext():
                runs[key] = train(tmp_path_factory.mktemp('plain'), pfb, **settings)
        return runs[key]

    return run


def blocked_gradients(model, images=None, seed=7):
    """Gradients and losses of a blocked step, and which images it kept."""
    images = tiny.images(dtype=next(model.parameters()).dtype) if images is None else images
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

    @ways(PAPER)
    def test_keeps_the_images_that_float32_keeps_and_goes_the_same_way(self, pfb):
        models = [built(pfb) for _ in range(2)]
        images = tiny.images(seed=4)
        gradients, losses, kept = blocked_gradients(models[0], images)
        with torch.autocast('cpu', torch.bfloat16):
            rough_gradients, rough_losses, rough_kept = blocked_gradients(models[1], images)
        assert gap(models[0].pfb.selection) > 10
        assert rough_kept == kept
        assert_close(tiny.total(rough_losses), tiny.total(losses), rtol=5e-3, atol=0)
        assert same_direction(gradients.values(), rough_gradients.values()) > 0.7

    @ways(BY_CHANCE)
    def test_the_exit_teaches_the_same_as_in_float32(self, pfb):
        models = [built(pfb) for _ in range(2)]
        gradients, losses, kept = blocked_gradients(models[0])
        with torch.autocast('cpu', torch.bfloat16):
            rough_gradients, rough_losses, rough_kept = blocked_gradients(models[1])
        assert rough_kept == kept
        assert_close(rough_losses['exit.loss_ce'], losses['exit.loss_ce'], rtol=5e-3, atol=0)
        shallow = [name for name in gradients if name.startswith(('backbone.layer1', 'backbone.s'))]
        same = ([one[name] for name in shallow] for one in (gradients, rough_gradients))
        assert same_direction(*same) > 0.7
        state = models[1].state_dict()['pfb._extra_state']
        assert state[1:].view(torch.float32).isfinite().all()

    @ways(PAPER, BY_CHANCE)
    @pytest.mark.filterwarnings('ignore:.*CUDA is not available:UserWarning')
    def test_amp_optim_wrapper_drives_a_run(self, tmp_path, monkeypatch, plain, pfb):
        # It refuses to be built without a GPU, but its bfloat16 works on a CPU.
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
        wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=optimizer)
        runner = train(tmp_path, pfb, optim_wrapper=wrapper)
        assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
        check_roughly(runner, plain(pfb, torch.float32))

    @pytest.mark.cuda
    @ways(PAPER, BY_CHANCE)
    def test_loss_scaling_drives_a_run(self, tmp_path, plain, pfb):
        optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
        scale = dict(init_scale=512.0)
        wrapper = dict(type='AmpOptimWrapper', loss_scale=scale, optimizer=optimizer)
        runner = train(tmp_path, pfb, optim_wrapper=wrapper)
        check_roughly(runner, plain(pfb, torch.float32))
        assert runner.optim_wrapper.loss_scaler.get_scale() == 512


class TestGradientAccumulation:
    @ways(PAPER)
    def test_two_blocked_steps_make_the_update_of_one_plain_step_on_what_both_kept(self, pfb):
        """Without statistics of the batch, which a large one has of its own."""
        norm = dict(norm_cfg=dict(type='GN', num_groups=2), dropout_ratio=0)
        model = tiny.build(pfb, norm, norm_eval=True).double()
        twin = tiny.plain_twin(model, norm, norm_eval=True)
        wrapper, plain_wrapper = (
            OptimWrapper(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), **options)
            for m, options in ((model, dict(accumulative_counts=2)), (twin, {}))
        )
        wrapper.initialize_count_status(model, 0, 4)
        for update in range(2):
            kept_images, kept_samples = [], []
            for seed in (2 * update, 2 * update + 1):
                assert_close(network(model), network(twin), rtol=1e-9, atol=1e-12)
                images = tiny.images(seed=seed, dtype=torch.float64)
                samples = tiny.samples(seed=seed)
                losses = model.loss(images, samples)
                wrapper.update_params(tiny.total(losses))
                kept = model.pfb.selection.indices.tolist()
                assert len(kept) == 4
                kept_images += [images[i] for i in kept]
                kept_samples += [samples[i] for i in kept]
            before = network(twin)
            plain_wrapper.update_params(
                tiny.total(twin.loss(torch.stack(kept_images), kept_samples))
            )
            assert not torch.equal(before['backbone.stem.0.weight'], twin.backbone.stem[0].weight)
        assert_close(network(model), network(twin), rtol=1e-9, atol=1e-12)

    @ways(TAUGHT)
    def test_what_the_exit_teaches_adds_up_too(self, pfb):
        model, twin = (built(pfb).double() for _ in range(2))
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
        wrapper.initialize_count_status(model, 0, 2)
        for seed in range(2):
            images, samples = tiny.images(seed=seed, dtype=torch.float64), tiny.samples(seed=seed)
            wrapper.update_params(tiny.total(model.loss(images, samples)))
            (tiny.total(twin.loss(images, samples)) / 2).backward()
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        assert_close(network(model), network(twin), rtol=1e-9, atol=1e-12)
        states = (one.state_dict()['pfb._extra_state'] for one in (model, twin))
        assert torch.equal(*states)


@ways(TAUGHT)
def test_an_exit_takes_nothing_of_the_gradient_norm_that_is_clipped(pfb):
    model = built(pfb)
    assert not any(name.startswith('pfb.') for name, _ in model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=0.01))
    twin = copy.deepcopy(model)
    tiny.total(twin.loss(tiny.images(), tiny.samples())).backward()
    expected = torch.cat([g.flatten() for g in tiny.gradients(twin).values()]).norm()
    losses = model.loss(tiny.images(), tiny.samples())
    with patch.object(optimizer, 'zero_grad'):
        wrapper.update_params(tiny.total(losses))
    clipped = torch.cat([g.flatten() for g in tiny.gradients(model).values()]).norm()
    assert expected > 0.01
    assert_close(clipped, torch.tensor(0.01), rtol=1e-3, atol=0)
    told = wrapper.message_hub.get_scalar('train/grad_norm').current()
    assert told == pytest.approx(float(expected), rel=1e-4)


class TestActivationCheckpointing:
    @ways(PAPER, TAUGHT)
    def test_changes_neither_selection_nor_gradients(self, pfb):
        stored, recomputed = (built(pfb, with_cp=with_cp).double() for with_cp in (False, True))
        gradients, losses, kept = blocked_gradients(stored)
        same_gradients, same_losses, same_kept = blocked_gradients(recomputed)
        assert same_kept == kept
        assert_close(same_losses, losses)
        assert_close(same_gradients, gradients)


class TestChannelsLast:
    @ways(PAPER)
    def test_changes_neither_selection_nor_gradients(self, pfb):
        model, channels_last = (tiny.build(pfb).double() for _ in range(2))
        channels_last.to(memory_format=torch.channels_last)
        images = tiny.images(dtype=torch.float64)
        images = images.contiguous(memory_format=torch.channels_last)
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
        assert_close(same_gradients, gradients, rtol=1e-6, atol=1e-9)


class TestExponentialMovingAverage:
    def train(self, tmp_path, pfb=PAPER['two_pass'], load_from=None, **options):
        ema = dict(type='EMAHook', momentum=0.1, **options)
        with float64():
            runner = train(
                tmp_path,
                pfb,
                [ema],
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=3),
                val_cfg=dict(),
                val_dataloader=loader(1, dict(type='DefaultSampler'), length=2, split='val'),
                val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
                load_from=load_from,
            )
        [hook] = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        return runner, hook.ema_model.module

    @pytest.mark.parametrize(
        ('pfb', 'update_buffers'),
        [
            (PAPER['two_pass'], False),
            (TAUGHT['two_pass, taught by an exit of its own'], True),
            (TAUGHT['single_pass, taught by the auxiliary head'], True),
        ],
        ids=['paper', 'own exit', 'auxiliary'],
    )
    def test_averages_a_blocked_run_and_leaves_it_alone(self, tmp_path, plain, pfb, update_buffers):
        runner, average = self.train(tmp_path, pfb, update_buffers=update_buffers)
        check(runner, plain(pfb))
        assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
        names = network(average) if update_buffers else dict(average.named_parameters())
        expected = exponential_average(runner.follow.states, 0.1, names)
        assert_close(network(average), expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize('update_buffers', [False, True], ids=['parameters', 'buffers too'])
    def test_the_estimate_is_not_averaged(self, tmp_path, update_buffers):
        """A density from centroids and counts of several moments is none of the network's."""
        runner, _ = self.train(tmp_path, update_buffers=update_buffers)
        saved = torch.load(tmp_path / 'iter_6.pth', map_location='cpu', weights_only=False)
        loaded = tiny.build().double()
        loaded.load_state_dict(saved['state_dict'])
        pruner, live = loaded.pfb.pruner, runner.model.pfb.pruner
        assert int(pruner.step) == int(live.step)
        for name in ('centroids', 'counts', 'idle'):
            expected = getattr(live.estimator, name).cpu()
            assert_close(getattr(pruner.estimator, name), expected, check_dtype=False)

    @pytest.mark.parametrize(('update_buffers', 'begin_iter'), [(False, 4), (True, 0)])
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
                found = f'{prefix}pfb.pruner.criterion.estimator._extra_state'
                assert torch.equal(checkpoint[name][found], live.get_extra_state().cpu()), name
        before, after = (r.model.pfb.pruner.estimator.counts.sum() for r in (first, runner))
        assert before > 0 and after > 0  # load_from alone starts with a new estimate

    @pytest.mark.parametrize('update_buffers', [False, True], ids=['parameters', 'buffers too'])
    def test_checkpoint_holds_the_live_exit(self, tmp_path, update_buffers):
        pfb = TAUGHT['two_pass, taught by an exit of its own']
        runner, _ = self.train(tmp_path, pfb, update_buffers=update_buffers)
        live = runner.model.state_dict()['pfb._extra_state']
        assert int(live[0]) == 10 + 4
        checkpoint = torch.load(tmp_path / 'iter_6.pth', map_location='cpu', weights_only=False)
        assert torch.equal(checkpoint['state_dict']['pfb._extra_state'], live.cpu())
        assert torch.equal(checkpoint['ema_state_dict']['module.pfb._extra_state'], live.cpu())

    def test_average_is_a_model_of_its_own(self, tmp_path):
        runner, average = self.train(tmp_path)
        assert average.pfb.point.encoder is average.backbone
        assert average.pfb.point.module is average.backbone.layer3
        assert average.backbone is not runner.model.backbone

    def test_checkpoint_with_the_average_loads_into_the_plain_model(self, tmp_path):
        _, average = self.train(tmp_path)
        path = tmp_path / 'iter_6.pth'
        state = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
        twin = tiny.plain_twin(tiny.build().double())
        missing, unexpected = twin.load_state_dict(state, strict=False)
        assert not missing and all(key.startswith('pfb.') for key in unexpected)
        assert_close(twin.backbone.stem[0].weight, average.backbone.stem[0].weight.cpu())


class TestCompile:
    @pytest.fixture(autouse=True)
    def _from_scratch(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @pytest.mark.slow
    @ways(PAPER, TAUGHT)
    def test_run_is_the_one_that_is_not_compiled(self, tmp_path, plain, pfb):
        with float64():
            compiled = train(tmp_path, pfb, compile=dict(backend='eager'))
        check(compiled, plain(pfb))

    @pytest.mark.slow
    @ways(PAPER)
    @pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
    def test_a_backend_that_optimises_changes_nothing_either(self, tmp_path, plain, pfb, backend):
        if backend == 'inductor' and get_device() == 'cpu' and not find_cpp_compiler():
            pytest.skip('inductor makes C++ on a CPU, and no compiler for it was found')
        with float64():
            compiled = train(tmp_path, pfb, compile=dict(backend=backend))
        check(compiled, plain(pfb))

    @pytest.mark.parametrize(
        'pfb',
        [
            PAPER['two_pass'],
            TAUGHT['two_pass, taught by an exit of its own'],
            TAUGHT['single_pass, taught by the auxiliary head'],
            pytest.param(PAPER['single_pass'], marks=pytest.mark.slow),
        ],
        ids=str,
    )
    def test_changes_neither_selection_nor_gradients(self, pfb):
        model, compiled = (built(pfb).double() for _ in range(2))
        gradients, losses, kept = blocked_gradients(model)
        compiled.loss = torch.compile(compiled.loss, backend='eager')
        same_gradients, same_losses, same_kept = blocked_gradients(compiled)
        assert same_kept == kept
        assert_close(same_losses, losses)
        assert_close(same_gradients, gradients)


def test_all_at_once(tmp_path, monkeypatch, plain):
    """bfloat16, accumulation, checkpointing and EMA in one run."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    optimizer = dict(type='SGD', lr=0.05, momentum=0.9)
    accumulated = dict(accumulative_counts=2, optimizer=optimizer)
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', **accumulated)
    runner = train(
        tmp_path,
        hooks=[dict(type='EMAHook')],
        backbone=dict(with_cp=True),
        optim_wrapper=wrapper,
    )
    check_roughly(runner, plain(PAPER['two_pass'], torch.float32, optim_wrapper=accumulated))
