"""The methods that PFB is compared with: their arithmetic against oracles, and whole runs."""

import copy
import json
from pathlib import Path

import numpy as np
import processes
import pytest
import tiny
import torch
from demo_runs import DEMO_CONFIG, demo_config, distributed, train
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch.utils.data import DataLoader

from pfb_mmseg.compare import InfoBatchHook, InfoBatchSampler
from pfb_mmseg.compare.infobatch import expected_share, prune_epoch
from pfb_mmseg.compare.lengths import shortened_iters
from pfb_mmseg.compare.methods import CRITERIA, METHODS, apply_method, set_iters
from pfb_mmseg.demo.scenes import PFBDemoDataset
from pfb_mmseg.report import read_scalars

ROOT = Path(__file__).parents[1]
# They choose what is loaded.
SAMPLED = ('random_once', 'infobatch', 'infobatch_mean', 'orderdp', 'seta')
NAN = float('nan')


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(model_type, head=None, **options):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(tiny.model_cfg(model_type, head=head) | options).train()


def twin_of(model, head=None):
    """The plain segmentor with the same weights."""
    plain = MODELS.build(tiny.model_cfg('EncoderDecoder', head=head))
    plain.load_state_dict(model.state_dict(), strict=False)
    return plain


class TestPruneEpoch:
    def test_without_scores_everybody_stays(self):
        indices, weights = prune_epoch(torch.full((9,), NAN), 0.7, None, generator())
        assert sorted(indices.tolist()) == list(range(9)) and weights.tolist() == [1] * 9

    def test_prunes_below_the_mean_only_and_weighs_those_who_stay(self):
        scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0, 6.0, NAN])  # mean 2
        indices, weights = prune_epoch(scores, 0.5, None, generator())
        weight_of = dict(zip(indices.tolist(), weights.tolist(), strict=True))
        assert len(indices) == 5
        assert {i: w for i, w in weight_of.items() if i >= 4} == {4: 1, 5: 1, 6: 1}
        assert [w for i, w in weight_of.items() if i < 4] == [2, 2]

    def test_percentile_makes_nearly_all_candidates(self):
        indices, weights = prune_epoch(torch.rand(1000), 0.3, 95, generator())
        assert len(indices) == pytest.approx(1000 - 0.3 * 950, abs=1)
        assert (weights == 1).sum() == 50

    def test_expected_weighted_gradient_is_that_of_all_samples(self):
        """Seven candidates, a third of them pruned: not a whole number, unbiased all the same."""
        scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 8.0])
        gradients = torch.randn(8, 3, generator=generator(1)).double()
        draws, total = 5000, torch.zeros(8).double()
        source = generator(2)
        for _ in range(draws):
            indices, weights = prune_epoch(scores, 1 / 3, None, source)
            total.index_add_(0, indices, weights)
        # Standard error of a mean weight: at most 0.71 / sqrt(5000) = 0.01.
        torch.testing.assert_close(total / draws, torch.ones(8).double(), atol=0.05, rtol=0)
        expected = gradients.sum(0)
        found = (total[:, None] / draws * gradients).sum(0)
        torch.testing.assert_close(found, expected, atol=0.3, rtol=0)

    def test_order_is_random_and_repeats_with_the_generator(self):
        scores = torch.rand(50)
        one, two, other = (prune_epoch(scores, 0.5, None, generator(s))[0] for s in (1, 1, 2))
        assert torch.equal(one, two) and one.tolist() != other.tolist()
        assert one.tolist() != sorted(one.tolist())


class TestShortenedIters:
    def test_counts_epoch_by_epoch(self):
        # 10 epochs of 100: the first and those from 8.75 on are full, 1 to 8 lose 0.5 * 0.95.
        kept = 100 + 8 * 52.5 + 100
        assert shortened_iters(100, 10, 100, expected_share(0.5, 0.95)) == round(kept / 10)

    def test_an_epoch_that_does_not_end_counts_in_part(self):
        assert shortened_iters(15, 10, 100, expected_share(0.5, 1.0, delta=1.0)) == 12.5 // 1

    def test_a_run_of_less_than_an_epoch_is_not_shortened(self):
        assert shortened_iters(9, 10, 100, expected_share(0.7, 0.95)) == 9

    def test_foretells_the_candidates_of_a_run(self):
        sampler = InfoBatchSampler(range(120), 0.5, 95, seed=0)
        iters = shortened_iters(150, 8, 120, expected_share(0.5, 0.95))
        sampler.num_pruned_epochs = 0.875 * 150 * 8 / 120
        rng = np.random.default_rng(0)
        for _ in range(iters):
            losses = torch.from_numpy(rng.random(8))
            sampler.update(sampler.take(8).indices.flatten(), losses)
        assert iters < 100
        assert sampler.candidates == pytest.approx(150 * 8, rel=0.02)


class TestSampler:
    def ranks(self, monkeypatch, world_size=2, size=11, **options):
        samplers = []
        for rank in range(world_size):
            monkeypatch.setattr(
                'pfb_mmseg.compare.score_sampler.get_dist_info',
                lambda rank=rank: (rank, world_size),
            )
            samplers.append(InfoBatchSampler(range(size), seed=3, **options))
        return samplers

    def test_hook_and_loader_see_the_same_samples_ahead_of_time_too(self):
        sampler = InfoBatchSampler(range(7), 0.5, seed=0)
        stream = iter(sampler)
        asked = [next(stream) for _ in range(12)]  # the loader is three batches of four ahead
        named = []
        for _ in range(10):
            indices = sampler.take(4).indices[:, 0]
            named += indices.tolist()
            sampler.update(indices, indices.float())
            asked += [next(stream) for _ in range(4)]
        assert named == asked[: len(named)]
        assert set(named[:7]) == set(range(7))

    def test_ranks_share_an_epoch_and_agree_whatever_its_length(self, monkeypatch):
        samplers = self.ranks(monkeypatch, prune_ratio=0.5)
        streams = [iter(sampler) for sampler in samplers]
        for step in range(30):
            drawn = [[next(stream) for _ in range(3)] for stream in streams]
            taken = [sampler.take(3) for sampler in samplers]
            assert all(map(torch.equal, *taken))
            for rank in range(2):
                assert taken[0].indices[:, rank].tolist() == drawn[rank]
            for sampler in samplers:  # as after a gather: every sample of the step, on every rank
                indices = taken[0].indices.flatten()
                sampler.update(indices, (indices + step) % 7 + 1.0)
        assert torch.equal(samplers[0].scores, samplers[1].scores)

    def test_scores_of_pruned_samples_are_carried_over(self):
        sampler = InfoBatchSampler(range(20), 0.5, 95, seed=0)
        first = sampler.take(20).indices.flatten()
        sampler.update(first, first + 1.0)
        second = sampler.take(11).indices  # 20 - 0.5 * 19, up or down
        trained = second.flatten()[:10]
        sampler.update(trained, torch.full((10,), 0.5))
        pruned = sorted(set(range(20)) - set(trained.tolist()))
        assert torch.equal(sampler.scores[pruned], torch.tensor(pruned) + 1.0)
        assert (sampler.scores[trained] == 0.5).all()

    def test_a_loss_that_is_not_finite_is_no_score(self):
        sampler = InfoBatchSampler(range(4), seed=0)
        sampler.update(torch.arange(3), torch.tensor([NAN, float('inf'), 2.0]))
        assert sampler.scores.isnan().tolist() == [True, True, False, True]

    @pytest.mark.parametrize('ahead', [0, 3])
    @pytest.mark.parametrize('discards', [True, False])
    def test_resumed_stream_is_the_one_that_was_left(self, ahead, discards):
        def steps(sampler, stream, number, asked):
            for _ in range(number):
                while len(asked) < 4 * (1 + ahead):
                    asked.append(next(stream))
                indices, weights = (column[:, 0] for column in sampler.take(4))
                assert indices.tolist() == [asked.pop(0) for _ in range(4)]
                sampler.update(indices, indices.float() % 5)
                yield indices.tolist(), weights.tolist()

        sampler = InfoBatchSampler(range(13), 0.6, seed=5)
        source, asked = iter(sampler), []
        list(steps(sampler, source, 9, asked))
        state = copy.deepcopy(sampler.state_dict())
        expected = list(steps(sampler, source, 6, asked))

        resumed = InfoBatchSampler(range(13), 0.6, seed=5)
        stream = iter(resumed)
        if discards:  # a loop that loads and throws away the nine batches before, after a restart
            early = [next(stream) for _ in range(4 * ahead)]
            resumed.load_state_dict(state, 9 * 4)
            for _ in range(36 - len(early)):
                next(stream)
        else:
            resumed.load_state_dict(state)
            resumed.skip(36)
            stream = iter(resumed)
        assert list(steps(resumed, stream, 6, [])) == expected

    def test_a_state_of_other_data_is_refused(self):
        state = InfoBatchSampler(range(4), seed=0).state_dict()
        with pytest.raises(ValueError, match='scores of 4 samples, the data set has 5'):
            InfoBatchSampler(range(5), seed=0).load_state_dict(state)

    @pytest.mark.parametrize(
        ('options', 'complaint'),
        [(dict(prune_ratio=1.0), 'prune_ratio=1.0'), (dict(percentile=101), 'percentile=101')],
    )
    def test_a_wrong_argument_is_refused(self, options, complaint):
        with pytest.raises(ValueError, match=complaint):
            InfoBatchSampler(range(4), seed=0, **options)

    def test_workers_are_asked_for_what_the_hook_names(self):
        sampler = InfoBatchSampler(range(10), 0.5, seed=0)
        batches = iter(DataLoader(range(10), 4, sampler=sampler, num_workers=2))
        for _ in range(8):
            batch = next(batches)
            assert torch.equal(batch, sampler.take(4).indices[:, 0])
            sampler.update(batch, batch.float())


class TestInfoBatchSegmentor:
    def test_loss_and_gradients_are_the_weighted_mean_over_the_images(self):
        head = dict(dropout_ratio=0)
        model = build('ImageLossEncoderDecoder', head)
        twin = twin_of(model, head).train()
        images, samples = tiny.images(4), tiny.samples(4)
        weights = torch.tensor([2.0, 1, 1, 3.5], dtype=torch.float64)
        model.weigh_images(weights)
        losses = model.loss(images, samples)
        # One forward pass of the batch (BatchNorm), then each image's logits by themselves.
        features = twin.extract_feat(images)
        expected = {}
        for name, part in (('decode', twin.decode_head), ('aux', twin.auxiliary_head)):
            logits = part(features)
            alone = [
                part.loss_by_feat(logits[i : i + 1], [samples[i]])['loss_ce'] for i in range(4)
            ]
            expected[name] = torch.stack(alone)
            torch.testing.assert_close(
                losses[f'{name}.loss_ce'], (expected[name] * weights).mean().float()
            )
        torch.testing.assert_close(model.image_losses, expected['decode'].detach())
        tiny.total(losses).backward()
        sum((one * weights).mean() for one in expected.values()).backward()
        gradients = tiny.gradients(model)
        for name, gradient in tiny.gradients(twin).items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize('over_labelled', [False, True])
    def test_a_partly_labelled_image_has_the_loss_that_is_trained(self, over_labelled):
        loss = dict(type='CrossEntropyLoss', avg_non_ignore=over_labelled)
        head = dict(dropout_ratio=0, loss_decode=loss)
        model = build('ImageLossEncoderDecoder', head)
        images, samples = tiny.images(4), tiny.samples(4)
        samples[0].gt_sem_seg.data[:, ::3] = 255
        model.weigh_images(torch.ones(4))
        model.loss(images, samples)
        twin = twin_of(model, head).train()
        logits = twin.decode_head(twin.extract_feat(images))
        alone = [
            twin.decode_head.loss_by_feat(logits[i : i + 1], [samples[i]])['loss_ce']
            for i in range(4)
        ]
        torch.testing.assert_close(model.image_losses, torch.stack(alone).detach())

    def test_without_weights_it_is_the_host(self):
        head = dict(dropout_ratio=0)
        model = build('ImageLossEncoderDecoder', head)
        twin = twin_of(model, head).train()
        torch.testing.assert_close(
            model.loss(tiny.images(), tiny.samples()),
            twin.loss(tiny.images(), tiny.samples()),
            rtol=0,
            atol=0,
        )

    def test_a_head_with_a_pixel_sampler_is_refused(self):
        head = dict(sampler=dict(type='OHEMPixelSampler'))
        with pytest.raises(ValueError, match='ASPPHead weighs its pixels with OHEMPixelSampler'):
            build('ImageLossEncoderDecoder', head)

    def test_weights_of_another_batch_are_refused(self):
        model = build('ImageLossEncoderDecoder')
        model.weigh_images(torch.ones(3))
        with pytest.raises(ValueError, match='3 weights for 4 images'):
            model.loss(tiny.images(4), tiny.samples(4))


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
    if method == 'rcs':
        config.train_dataloader.sampler.counts = str(tmp_path / 'counts.npz')
    config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type='BudgetHook')]
    return config


def budget_of(tmp_path):
    return json.loads((tmp_path / 'budget.json').read_text())


class TestRuns:
    @pytest.fixture(autouse=True)
    def _plain_config_text(self, monkeypatch):
        """The Runner logs and dumps its config; beautifying that takes longer than the run."""
        monkeypatch.setattr(Config, 'pretty_text', property(repr))

    # 'short' differs from 'full' in its length only, 'common' from 'rare' in the sign.
    @pytest.mark.parametrize('method', [m for m in METHODS if m not in ('short', 'common')])
    def test_budget_is_the_one_of_the_method(self, tmp_path, method):
        # Neither the end of the run nor that of an epoch is one of an interval.
        runner = train(method_config(tmp_path, method, **{'default_hooks.logger.interval': 4}))
        budget = budget_of(tmp_path)
        entries, _ = read_scalars(tmp_path)
        losses = [entry['loss'] for entry in entries if 'loss' in entry]
        assert len(losses) >= 3 and np.isfinite(losses).all()
        iterations = budget['iterations']
        images = budget['shallow'], budget['deep'], budget['backward']
        blocked = round(0.9 * 18)
        kept = blocked * 2 + (18 - blocked) * 4
        if method in ('full', 'rcs', 'ohem'):
            assert images == (72, 72, 72)
        elif method == 'small':
            assert images == (36, 36, 36)
        elif method == 'random':
            assert images == (kept, kept, kept)
        elif method in (*CRITERIA, 'pfb', 'two_stage') and method not in ('loss_topk', 'divbs'):
            loaded = 4 * blocked
            if method == 'two_stage':  # after an epoch, of each batch 4 / sqrt(2) are loaded
                loaded = 3 * 4 + 36
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
            name = 'infobatch' if method.startswith('infobatch') else 'sampling'
            candidates = sum(entry.get(f'{name}/candidates', 0) for entry in entries)
            assert round(candidates) == budget['candidates']
            # Of the mean threshold only half the samples were expected to lie below it, of SeTa's
            # groups all to be of one size; OrderDP's length is whole iterations of 2.4 * 4.
            near = {'infobatch_mean': 16, 'seta': 40}.get(method, 5)
            assert candidates == pytest.approx(72, abs=near)
            assert sum(entry.get(f'{name}/kept', 0) for entry in entries) == 4 * iterations
            assert runner.model.decode_head.sampler.weights is None
            seen = runner.train_dataloader.sampler.scores.isfinite()
            assert seen.all() if name == 'infobatch' else seen.sum() >= 6
        if method not in SAMPLED:
            assert iterations == 18
        if method != 'two_stage':
            assert budget['loaded'] == (2 if method == 'small' else 4) * iterations
            assert (budget['candidates'] == budget['loaded']) == (method not in SAMPLED)
        assert budget['seconds'] > 0 < budget['cpu_seconds'] and budget['peak_memory_mib'] > 1

    def test_pruned_samples_are_not_loaded(self, tmp_path, monkeypatch):
        loaded = []
        load = PFBDemoDataset.prepare_data

        def count(self, index):
            loaded.append(index)
            return load(self, index)

        monkeypatch.setattr(PFBDemoDataset, 'prepare_data', count)
        runner = train(
            method_config(
                tmp_path, 'infobatch', val_dataloader=None, val_cfg=None, val_evaluator=None
            )
        )
        assert len(loaded) == 4 * runner.max_iters
        counts = np.bincount(loaded, minlength=12)
        assert counts.min() < counts.max()

    def test_schedule_is_shortened_with_the_run(self, tmp_path):
        config = method_config(tmp_path, 'infobatch', max_iters=36)
        assert config.train_cfg.max_iters == config.param_scheduler[0].end < 36
        assert config.custom_hooks[0] == dict(type='InfoBatchHook', full_iters=36)

    def test_infobatch_resumes_with_its_scores(self, tmp_path):
        options = {'default_hooks.checkpoint.interval': 5}
        whole = train(method_config(tmp_path / 'whole', 'infobatch', **options))
        train(method_config(tmp_path / 'cut', 'infobatch', **options))
        config = method_config(tmp_path / 'cut', 'infobatch', **options)
        config.resume = True
        config.load_from = str(tmp_path / 'cut' / 'iter_5.pth')
        resumed = train(config)
        assert torch.equal(
            resumed.train_dataloader.sampler.scores, whole.train_dataloader.sampler.scores
        )
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name
        for key in ('iterations', 'shallow', 'deep', 'backward'):
            assert budget_of(tmp_path / 'cut')[key] == budget_of(tmp_path / 'whole')[key]

    def test_workers_do_not_mix_up_samples_and_losses(self, tmp_path):
        options = dict(num_workers=2, persistent_workers=True)
        config = method_config(tmp_path, 'infobatch_mean')
        config.train_dataloader.update(options)
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

    @pytest.mark.parametrize(
        ('options', 'complaint'),
        [
            ({'model.type': 'EncoderDecoder'}, 'needs ImageLossMixin, got EncoderDecoder'),
            (
                {'train_dataloader.sampler': dict(type='InfiniteSampler')},
                'needs InfoBatchSampler, got InfiniteSampler',
            ),
        ],
    )
    def test_half_an_infobatch_is_refused(self, tmp_path, options, complaint):
        config = method_config(tmp_path, 'infobatch')
        config.merge_from_dict(options)
        if 'train_dataloader.sampler' in options:
            config.train_dataloader.sampler = dict(type='InfiniteSampler')
        with pytest.raises(ValueError, match=complaint):
            train(config)


def train_on_a_rank(folder, *methods):
    Config.pretty_text = property(repr)  # beautifying takes longer than the runs
    for method in methods:
        work_dir = Path(folder, method)
        runner = train(distributed(method_config(work_dir, method, max_iters=9)))
        seen = dict(weight=runner.model.module.state_dict()['backbone.stem.0.weight'])
        if method in SAMPLED:
            seen['scores'] = runner.train_dataloader.sampler.scores.nan_to_num(-1)
        torch.save(seen, work_dir / f'{get_rank()}.pt')


def test_two_ranks_train_with_every_method(tmp_path):
    methods = [m for m in METHODS if m != 'short']  # 'full' with fewer steps
    processes.run(train_on_a_rank, tmp_path, *methods, num_ranks=2)
    for method in methods:
        first, second = (torch.load(tmp_path / method / f'{rank}.pt') for rank in range(2))
        for key, value in first.items():
            assert torch.equal(value, second[key]), (method, key)
        if method.startswith('infobatch'):
            assert (first['scores'] >= 0).all()  # of all samples, whichever rank had them
        assert budget_of(tmp_path / method)['backward'] % 2 == 0


class TestMethods:
    def plain(self):
        return Config.fromfile(ROOT / 'configs/demo/fcn_r18-d8_1xb16-300i_demo-64x64.py')

    def test_full_of_a_pfb_config_is_its_plain_twin(self):
        config = Config.fromfile(DEMO_CONFIG)
        apply_method(config, 'full')
        assert not config.pop('custom_hooks')
        assert config.to_dict() == self.plain().to_dict()

    @pytest.mark.parametrize('method', METHODS)
    def test_methods_differ_in_model_type_sampler_hooks_and_schedule_only(self, method):
        config, plain = Config.fromfile(DEMO_CONFIG), self.plain()
        apply_method(config, method, 0.5)
        for one in (config, plain):
            one.pop('custom_hooks', None)
            for key in ('type', 'pfb'):
                one.model.pop(key, None)
            if method == 'small':
                one.train_dataloader.pop('batch_size')
            if method in (*SAMPLED, 'rcs'):
                one.train_dataloader.pop('sampler')
                set_iters(one, 300)
            if method == 'ohem':
                one.model.decode_head.pop('sampler', None)
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
            )
        )
        set_iters(config, 250)
        assert config.train_cfg == dict(max_iters=250, val_interval=125)
        assert config.param_scheduler[0].end == 25
        assert config.param_scheduler[1].milestones == [100, 200]

    def test_set_iters_scales_the_moments_of_the_hooks(self):
        config = Config.fromfile(DEMO_CONFIG)
        config.custom_hooks[0].update(begin=30, end=0.9)
        infobatch = copy.deepcopy(config)
        apply_method(infobatch, 'infobatch', 0.5)
        set_iters(config, 600)
        assert config.custom_hooks == [dict(type='PFBHook', begin=60, end=0.9)]
        iters = infobatch.train_cfg.max_iters
        set_iters(infobatch, 2 * iters)
        assert infobatch.custom_hooks == [dict(type='InfoBatchHook', full_iters=600)]

    @pytest.mark.parametrize(
        ('ratio', 'min_keep', 'kept'), [(0.7, None, 5), (0.5, None, 8), (0.9, None, 2), (0.7, 6, 6)]
    )
    def test_small_has_batches_of_the_size_that_is_kept(self, ratio, min_keep, kept):
        config = Config.fromfile(DEMO_CONFIG)
        config.model.pfb.min_keep = min_keep
        apply_method(config, 'small', ratio)
        plain = self.plain()
        plain.train_dataloader.batch_size = kept
        assert not config.pop('custom_hooks')
        assert config.to_dict() == plain.to_dict()

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
            set_iters(config, 100)
