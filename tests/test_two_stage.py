"""PFBBatchSampler: what is left out before it is loaded, in streams, in runs, on two processes."""

import copy
import math
from collections import deque

import numpy as np
import processes
import pytest
import torch
import two_stage_rank
from demo_runs import read_diaries, train
from mmengine.dataset import DefaultSampler, InfiniteSampler
from test_baselines import budget_of, method_config
from torch.utils.data import DataLoader

from pfb_mmseg import apply_pfb
from pfb_mmseg.compare.methods import apply_method
from pfb_mmseg.convert.apply import remove_pfb
from pfb_mmseg.core import Selection
from pfb_mmseg.data import PFBBatchSampler, batch_sampler
from pfb_mmseg.data.batch_sampler import SKIPPED, Standings
from pfb_mmseg.data.loading import standings
from pfb_mmseg.report import SelectionRecord, read_scalars

NAN = float('nan')


def fixed(number_of_images):
    """The same images in the same order for ever."""
    while True:
        yield from range(number_of_images)


class Proposals:
    """A sampler that proposes all images again and again."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return fixed(self.size)

    def __len__(self):
        return self.size


def sampler_of(size, batch_size, skip, *, begin=0, known=None, ahead=0, **options):
    sampler = PFBBatchSampler(Proposals(size), batch_size, skip, **options)
    sampler.start(np.arange(size), begin, 10**9, ahead)
    if known is not None:
        state = sampler.state_dict() | dict(standing=torch.tensor(known))
        sampler.load_state_dict(state)
    return sampler


class TestChoice:
    @pytest.mark.parametrize('contrast', [0.0, 1.0, 4.0])
    def test_of_two_images_one_is_loaded_as_often_as_the_exponentials_say(self, contrast):
        found = 0
        for seed in range(2000):
            sampler = sampler_of(2, 2, 0.5, known=[0.8, 0.3], seed=seed, contrast=contrast)
            found += next(iter(sampler)) == [0]
        expected = 1 / (1 + math.exp(-contrast * 0.5))
        assert found / 2000 == pytest.approx(expected, abs=0.055)  # five standard errors

    def test_each_time_that_an_image_is_left_out_multiplies_its_chance_by_e(self):
        found = 0
        for seed in range(2000):
            sampler = sampler_of(2, 2, 0.5, known=[0.5, 0.5], seed=seed)
            state = sampler.state_dict() | dict(missed=torch.tensor([2, 0], dtype=torch.int16))
            sampler.load_state_dict(state)
            found += next(iter(sampler)) == [0]
        assert found / 2000 == pytest.approx(1 / (1 + math.exp(-2)), abs=0.055)

    def test_what_was_never_scored_is_always_loaded(self):
        for seed in range(50):
            sampler = sampler_of(4, 4, 0.5, known=[0.99, NAN, 0.99, NAN], seed=seed)
            assert next(iter(sampler)) == [1, 3]
            sampler = sampler_of(4, 4, 0.75, known=[0.99, NAN, NAN, NAN], seed=seed)
            assert next(iter(sampler)) == [1, 2, 3]

    @pytest.mark.parametrize(('skip', 'size'), [(0.3, 16), (0.3, 4), (0.5, 3), (0.293, 16)])
    def test_the_share_that_is_loaded_is_exact_over_time(self, skip, size):
        batches = iter(sampler_of(size, size, skip, seed=0, known=[0.5] * size))
        lengths = [len(next(batches)) for _ in range(1000)]
        assert sum(lengths) == pytest.approx((1 - skip) * size * 1000, abs=1)
        assert max(lengths) - min(lengths) <= 1

    def test_only_between_begin_and_end_anything_is_left_out(self):
        sampler = PFBBatchSampler(Proposals(4), 4, 0.5, seed=0)
        sampler.start(np.arange(4), begin=3, end=5, ahead=0)
        state = sampler.state_dict() | dict(standing=torch.full((4,), 0.5))
        sampler.load_state_dict(state)
        batches = iter(sampler)
        assert [len(next(batches)) for _ in range(8)] == [4, 4, 4, 2, 2, 4, 4, 4]

    def test_without_the_hook_all_images_are_loaded_and_no_queue_grows(self, monkeypatch):
        said = []
        monkeypatch.setattr(batch_sampler, 'print_log', lambda words, **_: said.append(words))
        sampler = PFBBatchSampler(Proposals(6), 4, 0.5)
        batches = iter(sampler)
        assert [next(batches) for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
        assert all(len(next(batches)) == 4 for _ in range(5000))
        assert len(sampler._handed_out) == 1024
        (sentence,) = said
        assert 'Add dict(type="PFBHook") to custom_hooks' in sentence

    def test_a_step_that_got_no_batch_of_it_says_so(self):
        with pytest.raises(RuntimeError, match='iteration 0 got no batch of PFBBatchSampler'):
            sampler_of(4, 4, 0.5).take()

    def test_indices_of_one_sample_share_what_is_known(self):
        sampler = PFBBatchSampler(Proposals(6), 6, 0.5, contrast=0.0, seed=0)
        sampler.start(np.array([0, 1, 2, 0, 1, 2]), 0, 10**9, 0)
        batches = iter(sampler)
        assert len(next(batches)) == 6
        proposed, _ = sampler.take()
        sampler.update(proposed[:3], np.array([0.1, 0.5, 0.9], np.float32))
        assert len(next(batches)) == 3
        assert len(sampler.state_dict()['standing']) == 3

    def test_easy_images_are_seldom_loaded_but_never_forgotten(self):
        """Image i of 20 is always of standing i/20; half of each batch of ten is loaded."""
        sampler = sampler_of(20, 10, 0.5, contrast=10.0, seed=3)
        batches = iter(sampler)
        loads, gaps, last = np.zeros(20), np.zeros(20), np.zeros(20)
        for step in range(2000):
            loaded = next(batches)
            proposed, mask = sampler.take()
            assert proposed[mask].tolist() == loaded
            loads[loaded] += 1
            gaps[loaded] = np.maximum(gaps[loaded], step - last[loaded])
            last[loaded] = step
            standing = np.where(mask, proposed / 20, SKIPPED).astype(np.float32)
            sampler.update(proposed, standing)
        shares = loads / 1000
        assert max(shares[[0, 10]]) < 0.3 and min(shares[[9, 19]]) > 0.7  # the ends of either half
        assert gaps.max() < 40  # iterations, of which each second one proposes it


class TestStandings:
    def test_a_batch_is_put_in_order_by_what_the_criterion_seeks(self):
        kept = torch.tensor([0, 2])
        score = torch.tensor([3.0, -1.0, NAN, 8.0])
        selection = Selection(4, indices=kept, score=score, score_name='x')
        expected = [0.5, 0.5 / 3, NAN, 2.5 / 3]
        assert standings(selection, 1) == pytest.approx(expected, nan_ok=True)
        assert standings(selection, -1) == pytest.approx([0.5, 2.5 / 3, NAN, 0.5 / 3], nan_ok=True)

    @pytest.mark.parametrize('delay', [1, 3, 9])
    def test_what_was_known_before_an_iteration_is_what_the_log_says(self, delay):
        """Against a whole copy of everything behind each iteration."""
        rng = np.random.default_rng(delay)
        size, known, copies = 12, Standings(12), deque()
        standing, missed = np.full(size, np.nan), np.zeros(size, int)
        for iteration in range(60):
            copies.append((standing.copy(), missed.copy()))  # as before this iteration
            for back in range(min(delay, len(copies))):
                asked = rng.permutation(size)[:5]
                found = known.before(iteration - back, asked)
                expected = copies[-1 - back]
                assert found[0] == pytest.approx(expected[0][asked], nan_ok=True, rel=1e-5)
                assert found[1].tolist() == expected[1][asked].tolist()
            indices = rng.permutation(size)[:4]
            seen = rng.choice([NAN, SKIPPED, 0.1, 0.6, 0.9], 4).astype(np.float32)
            known.note(iteration, indices, seen, iteration + 2 - delay)
            for i, value in zip(indices, seen, strict=True):
                missed[i] = missed[i] + 1 if value == SKIPPED else 0
                if value != SKIPPED and not math.isnan(value):
                    old = standing[i]
                    standing[i] = value if math.isnan(old) else (old + value) / 2
        assert len(known.state_dict()['log']) <= delay

    def test_another_data_set_is_refused(self):
        state = sampler_of(20, 4, 0.5).state_dict()
        with pytest.raises(ValueError, match='knows 20 samples, the data set has 21'):
            sampler_of(21, 4, 0.5).load_state_dict(state)

    def test_the_state_of_a_large_data_set_is_small(self):
        sampler = sampler_of(1_300_000, 256, 0.5, ahead=16)
        batches = iter(sampler)
        for _ in range(40):
            next(batches)
            proposed, mask = sampler.take()
            sampler.update(proposed, np.where(mask, 0.5, SKIPPED).astype(np.float32))
        state = sampler.state_dict()
        held = sum(state[name].untyped_storage().nbytes() for name in ('standing', 'missed'))
        assert held == 6 * 1_300_000
        assert len(state['log']) <= 17


def stream(sampler, loader, steps):
    """Batches as a loop gets them, with what it tells the sampler of each."""
    batches = iter(loader)  # of an iterator, itself
    for _ in range(steps):
        batch = next(batches)
        proposed, mask = sampler.take()
        assert proposed[mask].tolist() == batch.tolist()
        standing = (proposed * 31 % 97 / 97).astype(np.float32)
        sampler.update(proposed, np.where(mask, standing, np.float32(SKIPPED)))
        yield batch.tolist()


def endless(iteration=0, num_discarded=0, num_workers=0, eager=False):
    """``eager``: the loader begins to read before anything is known of the run, as in OpenMMLab's
    mmengine."""
    sampler = PFBBatchSampler(InfiniteSampler(range(23), seed=1), 8, 0.4, seed=5)
    loader = DataLoader(range(23), batch_sampler=sampler, num_workers=num_workers)
    batches = iter(loader) if eager else loader
    sampler.start(np.arange(23), 4, 10**9, 2 * num_workers, iteration, num_discarded)
    return sampler, batches


class TestStream:
    @pytest.mark.parametrize('eager', [False, True])
    @pytest.mark.parametrize('num_workers', [0, 2])
    @pytest.mark.parametrize('at', [1, 3, 17])
    def test_a_resumed_stream_is_the_one_that_was_not_interrupted(self, num_workers, at, eager):
        sampler, loader = endless(num_workers=num_workers, eager=eager)
        states, whole = [], []
        for batch in stream(sampler, loader, 40):
            whole.append(batch)
            states.append(copy.deepcopy(sampler.state_dict()))
        assert [len(batch) for batch in whole[:4]] == [8] * 4
        assert {len(batch) for batch in whole[15:]} == {5, 4}

        resumed, loader = endless(at, at, num_workers, eager)
        resumed.load_state_dict(states[at - 1])
        batches = iter(loader)
        for _ in range(at):  # as a loop does to get there
            next(batches)
        again = stream(resumed, batches, 40 - at)
        assert list(again) == whole[at:]
        assert resumed.candidates == sampler.candidates == 40 * 8

    def test_a_loop_that_gets_there_without_the_loader_has_nothing_thrown_away(self):
        sampler, loader = endless()
        expected = [len(batch) for batch in stream(sampler, loader, 12)]
        resumed, loader = endless(iteration=7)
        resumed.load_state_dict(sampler.state_dict())
        assert [len(batch) for batch in stream(resumed, loader, 5)] == expected[7:]

    @pytest.mark.parametrize('num_workers', [0, 2])
    def test_epochs_end_where_the_sampler_ends(self, num_workers):
        sampler = PFBBatchSampler(DefaultSampler(range(23), seed=1), 8, 0.4, seed=5)
        sampler.start(np.arange(23), 3, 10**9, 2 * num_workers)
        loader = DataLoader(
            range(23),
            batch_sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        assert len(loader) == 3
        seen = []
        for epoch in range(6):
            sampler.sampler.set_epoch(epoch)
            batches = list(stream(sampler, loader, 3))
            seen.append([len(batch) for batch in batches])
            assert len({i for batch in batches for i in batch}) == sum(seen[-1])
        assert seen[0] == [8, 8, 7]
        assert sum(map(sum, seen[2:])) == pytest.approx(4 * 23 * 0.6, abs=3)

    def test_a_last_batch_that_is_not_full_may_be_left_out(self):
        sampler = PFBBatchSampler(DefaultSampler(range(23)), 8, 0.4, drop_last=True)
        assert len(sampler) == len(list(sampler)) == 2

    @pytest.mark.parametrize(
        ('options', 'complaint'),
        [
            (dict(skip_loading=1), 'skip_loading=1: expected a number in [0, 1)'),
            (dict(contrast=-1), 'contrast=-1: expected'),
            (dict(seed=-1), 'seed=-1: expected'),
            (dict(drop_last=1), 'drop_last=1'),
            (dict(skip=0.3), "unexpected keyword argument 'skip'"),
        ],
    )
    def test_a_bad_option_is_refused(self, options, complaint):
        with pytest.raises((TypeError, ValueError)) as error:
            PFBBatchSampler(Proposals(3), 2, **options)
        assert complaint in str(error.value)


def epoch_config(tmp_path):
    """Five epochs of twelve images in batches of four."""
    config = method_config(tmp_path, 'full')
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=100)
    config.param_scheduler = [dict(type='PolyLR', end=5, by_epoch=True)]
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.default_hooks.checkpoint.update(by_epoch=True, interval=1)
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    apply_method(config, 'two_stage', 0.75)
    return config


def without_budget(config):
    """BudgetHook measures whole runs only."""
    config.custom_hooks = [hook for hook in config.custom_hooks if hook['type'] != 'BudgetHook']
    return config


class TestRuns:
    """Twelve images in batches of four, of which half are trained on."""

    def test_both_stages_are_counted(self, tmp_path, capfd):
        runner = train(method_config(tmp_path, 'two_stage', 0.75, log_level='INFO'))
        # Pruned in the first 16 of 18 iterations. Behind an epoch all images are scored.
        budget = budget_of(tmp_path)
        assert budget['iterations'] == 18 and budget['candidates'] == 72
        assert budget['loaded'] == 3 * 4 + 13 * 2 + 2 * 4
        assert budget['backward'] == 16 * 1 + 2 * 4
        assert budget['shallow'] == budget['loaded']  # in one pass
        entries, _ = read_scalars(tmp_path)
        assert sum(entry['pfb/proposed'] for entry in entries) == 72
        assert sum(entry['pfb/candidates'] for entry in entries) == budget['loaded']
        assert sum(entry['pfb/kept'] for entry in entries) == budget['backward']
        log = capfd.readouterr()
        assert 'from iteration 0 on and once each was scored: of 100 images 50 are loaded' in (
            log.out + log.err
        )
        known = runner.train_dataloader.batch_sampler.state_dict()['standing']
        assert known.isfinite().all()

    @pytest.mark.parametrize('num_workers', [0, 2])
    def test_a_run_resumes_bit_for_bit(self, tmp_path, num_workers):
        # No checkpoint is where the log has an entry.
        options = {'default_hooks.checkpoint.interval': 5, 'max_iters': 24}
        options['default_hooks.logger.interval'] = 4
        options['train_dataloader.num_workers'] = num_workers
        options['train_dataloader.persistent_workers'] = num_workers > 0
        whole, config = (
            without_budget(method_config(tmp_path / name, 'two_stage', 0.75, **options))
            for name in ('whole', 'cut')
        )
        whole = train(whole)
        config.resume, config.load_from = True, str(tmp_path / 'whole/iter_10.pth')
        self.check_resumed(train(config), whole, tmp_path)
        (cut, _), (uncut, _) = (read_scalars(tmp_path / name) for name in ('cut', 'whole'))
        proposed = {e['step']: e['pfb/proposed'] for e in uncut if 'pfb/proposed' in e}
        assert proposed[12] == 4 * 4
        assert [e['pfb/proposed'] for e in cut if e['step'] == 12] == [proposed[12]]

    def test_a_run_of_epochs_resumes_bit_for_bit(self, tmp_path):
        whole = train(without_budget(epoch_config(tmp_path / 'whole')))
        config = without_budget(epoch_config(tmp_path / 'cut'))
        config.resume, config.load_from = True, str(tmp_path / 'whole/epoch_3.pth')
        self.check_resumed(train(config), whole, tmp_path)

    def check_resumed(self, resumed, whole, tmp_path):
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name
        records = [
            SelectionRecord.load(tmp_path / name / 'pfb_record.npz') for name in ('cut', 'whole')
        ]
        for counts in ('candidates', 'kept'):
            assert np.array_equal(*(getattr(record, counts) for record in records))
        assert sum(records[1].candidates) < 0.8 * 4 * whole.iter

    @pytest.mark.parametrize(
        ('changes', 'complaint'),
        [
            ({'train_dataloader.batch_sampler.skip_loading': 0.75}, 'skip_loading < prune_ratio'),
            ({'model.pfb.criterion': 'random'}, "use criterion='hard' or 'rare'"),
        ],
    )
    def test_what_leaves_nothing_to_choose_by_is_refused(self, tmp_path, changes, complaint):
        config = method_config(tmp_path, 'two_stage', 0.75)
        config.merge_from_dict(changes)
        with pytest.raises(ValueError, match=complaint):
            train(config)

    def test_the_config_is_turned_on_and_off(self, tmp_path):
        config = method_config(tmp_path, 'full')
        config.train_dataloader.drop_last = True
        before = config.to_dict()
        changes = apply_pfb(config, 0.5, skip_loading=0.3)
        expected = dict(type='PFBBatchSampler', skip_loading=0.3, drop_last=True)
        assert config.train_dataloader.batch_sampler == expected
        assert 'drop_last' not in config.train_dataloader
        assert any('batch_sampler' in change for change in changes)
        again = apply_pfb(config, 0.5, skip_loading=0.2)
        assert config.train_dataloader.batch_sampler.drop_last and len(again) == 1
        remove_pfb(config)
        assert config.to_dict() | before == config.to_dict()

    def test_another_batch_sampler_is_not_thrown_away(self, tmp_path):
        config = method_config(tmp_path, 'full')
        config.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
        with pytest.raises(ValueError, match='AspectRatioBatchSampler'):
            apply_pfb(config, 0.5, skip_loading=0.3)


def test_two_processes_know_the_same_and_load_as_much(tmp_path):
    processes.run(two_stage_rank.run, tmp_path, num_ranks=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    for key in ('standing', 'missed'):
        assert torch.equal(first['state'][key], second['state'][key])
    assert first['state']['standing'].isfinite().all()  # of the other process's images, too
    for name, weight in first['weights'].items():
        assert torch.equal(weight, second['weights'][name]), name
    for diary in read_diaries(tmp_path):
        lengths = [len(diary[t]['images']) for t in range(12)]
        # One image of the second batch was in the first one of the other process.
        assert lengths[0] == 4 and lengths[2:] == [2] * 9 + [4]
        assert [sum(image['kept'] for image in diary[t]['images']) for t in range(11)] == [1] * 11
    assert budget_of(tmp_path)['candidates'] == 2 * 12 * 4
