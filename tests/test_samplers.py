"""Samplers that choose what is loaded: their draws against oracles, streams, ranks, whole runs."""

import copy
import itertools
import math

import numpy as np
import processes
import pytest
import sampler_rank
import torch
from demo_runs import train
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from test_baselines import budget_of, method_config
from torch.utils.data import DataLoader

from pfb_mmseg.compare import (
    FixedPartSampler,
    InfoBatchSampler,
    OrderDPSampler,
    RareClassSampler,
    ScoreSamplerHook,
    SeTaSampler,
)
from pfb_mmseg.compare import rare_class as rare
from pfb_mmseg.compare.lengths import mean_share
from pfb_mmseg.compare.methods import apply_method
from pfb_mmseg.compare.orderdp import hardest_of_a_pool, pool_and_share
from pfb_mmseg.compare.seta import (
    difficulty_groups,
    expected_share,
    ratio_and_window,
    window_of_groups,
)

NAN = float('nan')
SAMPLERS = {
    'infobatch': lambda data, **options: InfoBatchSampler(data, 0.6, seed=5, **options),
    'orderdp': lambda data, **options: OrderDPSampler(data, seed=5, **options),
    'seta': lambda data, **options: SeTaSampler(data, 0.2, seed=5, **options),
    'random_once': lambda data, **options: FixedPartSampler(data, 0.4, seed=5, **options),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss_of(indices, step=0):
    """Something that depends on both, distinct for all indices below 97."""
    return (indices * 31 % 97 + 1.0) / (1 + step % 3)


class TestOrderDP:
    def test_each_rank_is_chosen_as_often_as_the_hypergeometric_distribution_says(self):
        """The j-th hardest of n is trained on, if it is among the s of the pool, and fewer than q
        of the j - 1 harder ones are."""
        n, s, q, draws = 20, 15, 12, 4000
        scores = torch.randperm(n, generator=generator(1)).float()
        found, source = torch.zeros(n), generator(2)
        for _ in range(draws):
            chosen = hardest_of_a_pool(scores, s / n, q / s + 1e-9, source)
            assert len(chosen) == len(set(chosen.tolist())) == q
            found[chosen] += 1
        for j, index in enumerate(scores.argsort(descending=True).tolist()):
            fewer = sum(
                math.comb(j, m) * math.comb(n - 1 - j, s - 1 - m) for m in range(min(q, j + 1))
            )
            expected = s / n * fewer / math.comb(n - 1, s - 1)
            # Five standard errors.
            assert found[index] / draws == pytest.approx(expected, abs=0.04)

    def test_the_published_shares_leave_out_36_percent(self):
        chosen = hardest_of_a_pool(torch.rand(1000), 0.75, 0.85, generator())
        assert len(chosen) == int(0.85 * 750)
        sampler = OrderDPSampler(range(1000), seed=0)
        assert (sampler.pool, sampler.share) == (0.75, 0.85)

    def test_what_was_never_trained_on_is_hardest_and_equals_are_left_to_chance(self):
        scores = torch.rand(40, generator=generator(3)) + 100
        scores[::4] = NAN
        chosen = hardest_of_a_pool(scores, 1.0, 0.5, generator())
        order = sorted(range(40), key=lambda i: -math.inf if i % 4 == 0 else -scores[i].item())
        assert set(chosen.tolist()) == set(order[:20])
        found = torch.zeros(40)
        for seed in range(600):
            found[hardest_of_a_pool(torch.full((40,), NAN), 1.0, 0.25, generator(seed))] += 1
        assert found.min() > 90 and found.max() < 210  # 150, give or take 5.6 standard deviations

    def test_order_is_random(self):
        scores = torch.arange(50.0)
        orders = [hardest_of_a_pool(scores, 1.0, 1.0, generator(seed)) for seed in (0, 0, 1)]
        assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
        ranks = [hardest_of_a_pool(scores, 1.0, 0.5, generator(s)).argmax() for s in range(200)]
        assert np.mean(ranks) == pytest.approx(12, abs=3)  # the hardest is not the first

    @pytest.mark.parametrize('ratio', [0.0, 0.1, 0.3, 0.5, 0.7, 0.95])
    def test_a_ratio_is_split_as_the_published_one_is(self, ratio):
        pool, share = pool_and_share(ratio)
        assert pool * share == pytest.approx(1 - ratio) and pool <= share <= 1
        assert pool_and_share(1 - 0.75 * 0.85) == pytest.approx((0.75, 0.85))

    def test_epochs_of_a_whole_pool_follow_the_losses(self):
        """With the pool all of the data, who is trained on is known: first whoever was not yet,
        then the highest of the last-seen losses."""
        sampler = OrderDPSampler(range(12), pool=1.0, share=0.5, seed=0)
        seen, losses = {}, {}
        for epoch in range(8):
            chosen = sampler.take(6).indices.flatten()
            unseen = [i for i in range(12) if i not in losses]
            known = sorted(losses, key=losses.get, reverse=True)
            if epoch < 2:
                assert set(chosen.tolist()) <= set(unseen)
            else:
                assert set(chosen.tolist()) == set(known[:6])
            for i in chosen.tolist():
                seen[i] = seen.get(i, 0) + 1
                losses[i] = loss_of(i) / seen[i] ** 2
            sampler.update(chosen, torch.tensor([losses[i] for i in chosen.tolist()]))
            assert sampler.candidates == pytest.approx(12 * (epoch + 1))


class TestFixedPart:
    @pytest.mark.parametrize('seed', range(3))
    def test_every_epoch_is_the_same_part_in_another_order(self, seed):
        sampler = FixedPartSampler(range(20), 0.7, seed=seed)
        epochs = [sampler.take(6).indices.flatten().tolist() for _ in range(5)]
        assert len({frozenset(epoch) for epoch in epochs}) == 1 and len(set(epochs[0])) == 6
        assert len({tuple(epoch) for epoch in epochs}) == 5
        assert sampler.candidates == 100

    def test_every_sample_is_in_it_as_often_as_the_ratio_says(self):
        found = torch.zeros(10)
        for seed in range(1000):
            found[FixedPartSampler(range(10), 0.7, seed=seed).take(3).indices.flatten()] += 1
        assert found.sum() == 3000
        assert found.min() > 225 and found.max() < 375  # 300, give or take 5 standard deviations


class TestSeTa:
    def test_groups_are_those_of_least_spread(self):
        """Against all ways to cut a sorted row into three."""
        values = [0.1, 0.12, 0.15, 0.2, 1.0, 1.1, 1.15, 4.0, 4.2, 4.4, 4.5]

        def spread(cuts):
            edges = (0, *cuts, len(values))
            parts = [values[a:b] for a, b in itertools.pairwise(edges)]
            return sum(sum((v - np.mean(part)) ** 2 for v in part) for part in parts)

        best = min(itertools.combinations(range(1, len(values)), 2), key=spread)
        shuffled = torch.randperm(len(values), generator=generator())
        groups = difficulty_groups(torch.tensor(values)[shuffled], 3)
        found = [sorted(shuffled[group].tolist()) for group in groups]
        edges = (0, *best, len(values))
        assert found == [list(range(a, b)) for a, b in itertools.pairwise(edges)]

    @pytest.mark.parametrize('num_groups', [1, 2, 5, 10])
    def test_each_loss_is_nearest_to_the_mean_of_its_group(self, num_groups):
        losses = torch.randn(2000, generator=generator()).exp()
        groups = difficulty_groups(losses, num_groups)
        assert len(groups) == num_groups
        assert sorted(torch.cat(groups).tolist()) == list(range(2000))
        means = torch.stack([losses[group].double().mean() for group in groups])
        assert means.tolist() == sorted(means.tolist())
        for number, group in enumerate(groups):
            nearest = (losses[group].double()[:, None] - means).abs().argmin(dim=1)
            assert (nearest == number).all()

    @pytest.mark.parametrize('values', [[2.0] * 7, [1.0, 1.0, 3.0, 3.0, 3.0], [0.5]])
    def test_there_are_no_more_groups_than_losses(self, values):
        groups = difficulty_groups(torch.tensor(values), 5)
        assert len(groups) == len(set(values)) and all(len(group) for group in groups)

    def test_the_window_slides_from_easy_to_hard_and_begins_anew(self):
        sizes = [30, 25, 20, 15, 10]
        cluster = torch.arange(5).repeat_interleave(torch.tensor(sizes))
        scores = cluster * 10 + torch.rand(100, generator=generator())
        sampler = SeTaSampler(range(100), seed=0)  # three of five groups
        sampler.num_epochs = 16
        found = []
        for epoch in range(16):
            sampler.scores = scores.clone()
            chosen = sampler.draw(epoch, generator(epoch))[0]
            assert chosen.tolist() != sorted(chosen.tolist())
            found.append(sorted(set(cluster[chosen].tolist())))
            assert len(chosen) == sum(sizes[number] for number in found[-1])
        every = [0, 1, 2, 3, 4]
        windows = [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
        expected = [windows[epoch % 3] for epoch in range(16)]
        expected[0] = expected[14] = expected[15] = every  # 0.875 of 16 epochs end with the 14th
        assert found == expected

    def test_a_part_is_left_out_at_random(self):
        scores = torch.rand(1000, generator=generator())
        whole = window_of_groups(scores, 0, 0.3, 5, 0.6, False, generator())
        last = window_of_groups(scores, 9, 0.3, 5, 0.6, True, generator())
        part = window_of_groups(scores, 3, 0.3, 5, 0.6, False, generator())
        assert len(set(whole.tolist())) == len(set(last.tolist())) == 700
        assert 0 < len(set(part.tolist())) < 700
        assert scores[part].max() < scores.quantile(0.8)

    def test_what_was_never_trained_on_is_as_hard_as_the_hardest(self):
        scores = torch.tensor([1.0, 1.1, 2.0, 2.1, 3.0, 3.1, 9.0, NAN, 9.1, NAN])
        easy = window_of_groups(scores, 4, 0.0, 4, 0.5, False, generator())
        hard = window_of_groups(scores, 2, 0.0, 4, 0.5, False, generator())
        # 4 groups, of which 2 are seen: 3 places.
        assert set(easy.tolist()) == {2, 3, 4, 5}
        assert set(hard.tolist()) == {4, 5, 6, 7, 8, 9}

    @pytest.mark.parametrize('ratio', [0.05, 0.2, 0.3, 0.5, 0.7, 0.9])
    @pytest.mark.parametrize('num_epochs', [3, 10, 37.5, 200])
    def test_a_ratio_is_met_if_the_groups_are_of_one_size(self, ratio, num_epochs):
        random, window = ratio_and_window(ratio, num_epochs)
        assert 0 <= random < 1 and 0.6 <= window <= 1
        share = expected_share(random, 5, window)
        assert mean_share(num_epochs, share) == pytest.approx(1 - ratio)
        # Epoch by epoch, in so many equal groups: the first, and those that do not end by 0.875.
        whole = [e == 0 or e + 1 > 0.875 * num_epochs for e in range(math.ceil(num_epochs))]
        length = [min(1, num_epochs - e) for e in range(len(whole))]
        kept = sum(
            part * (1 - random) * (1 if w else window)
            for w, part in zip(whole, length, strict=True)
        )
        assert kept / num_epochs == pytest.approx(1 - ratio)


class TestStream:
    """What the samplers share, whoever draws."""

    @pytest.fixture(params=SAMPLERS)
    def make(self, request):
        return SAMPLERS[request.param]

    def step(self, sampler, size, number=0):
        taken = sampler.take(size)
        sampler.update(taken.indices.flatten(), loss_of(taken.indices.flatten(), number))
        return taken

    @pytest.mark.parametrize('ahead', [0, 3])
    @pytest.mark.parametrize('discards', [True, False])
    def test_a_resumed_stream_is_the_one_that_was_left(self, make, ahead, discards):
        def steps(sampler, stream, number, asked):
            for _ in range(number):
                while len(asked) < 4 * (1 + ahead):
                    asked.append(next(stream))
                taken = self.step(sampler, 4)
                assert taken.indices[:, 0].tolist() == [asked.pop(0) for _ in range(4)]
                yield taken.indices.tolist(), taken.weights.tolist(), sampler.candidates

        sampler = make(range(13))
        source, asked = iter(sampler), []
        list(steps(sampler, source, 9, asked))
        state = copy.deepcopy(sampler.state_dict())
        expected = list(steps(sampler, source, 9, asked))

        resumed = make(range(13))
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
        assert list(steps(resumed, stream, 9, [])) == expected

    @pytest.mark.parametrize('steps_done', [0, 1, 2, 'all'])
    def test_an_epoch_that_was_interrupted_is_finished_as_it_would_have_been(
        self, make, steps_done
    ):
        def epoch(sampler, number, first=None):
            """Batches of four, the last one smaller; after so many the state is kept."""
            sampler.set_epoch(number)
            state, batches = None, []
            for batch in DataLoader(range(23), 4, sampler=sampler):
                if len(batches) == first:
                    state = copy.deepcopy(sampler.state_dict())
                taken = self.step(sampler, len(batch), number)
                assert taken.indices[:, 0].tolist() == batch.tolist()
                batches.append(batch.tolist())
            return batches, state or copy.deepcopy(sampler.state_dict())

        sampler = make(range(23), by_epoch=True)
        for number in range(2):
            epoch(sampler, number)
        batches, state = epoch(sampler, 2, None if steps_done == 'all' else steps_done)
        later = [epoch(sampler, number)[0] for number in range(3, 6)]

        resumed = make(range(23), by_epoch=True)
        len(resumed)  # as a loop asks, before it loads
        resumed.load_state_dict(state)
        done = len(batches) if steps_done == 'all' else steps_done
        assert epoch(resumed, 2)[0] == batches[done:]
        assert [epoch(resumed, number)[0] for number in range(3, 6)] == later
        assert torch.equal(resumed.scores.nan_to_num(-1), sampler.scores.nan_to_num(-1))

    def test_an_epoch_is_drawn_from_all_losses_of_the_one_before(self):
        sampler = OrderDPSampler(range(12), pool=1.0, share=0.5, by_epoch=True, seed=0)
        loader = DataLoader(range(12), 4, sampler=sampler, num_workers=2, persistent_workers=True)
        assert len(loader) == 2
        losses = {}
        for epoch in range(5):
            sampler.set_epoch(epoch)
            expected = sorted(losses, key=losses.get, reverse=True)[:6]
            chosen = []
            for batch in loader:
                indices = sampler.take(len(batch)).indices.flatten()
                assert torch.equal(indices, batch)
                new = loss_of(indices, epoch)
                sampler.update(indices, new)
                losses |= dict(zip(indices.tolist(), new.tolist(), strict=True))
                chosen += indices.tolist()
            assert len(chosen) == 6
            if epoch > 1:
                assert set(chosen) == set(expected)

    def test_what_a_loader_drops_at_the_end_of_an_epoch_is_forgotten(self, make):
        sampler = make(range(23), by_epoch=True)
        loader = DataLoader(range(23), 4, sampler=sampler, drop_last=True)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            for batch in loader:
                assert self.step(sampler, 4).indices[:, 0].tolist() == batch.tolist()
            assert sampler.candidates <= 23 * (epoch + 1)

    def test_lengths_are_those_of_the_epoch(self):
        sampler = SeTaSampler(range(100), seed=0, by_epoch=True)
        assert len(sampler) == 100
        for epoch in range(4):
            sampler.set_epoch(epoch)
            drawn = list(sampler)
            assert len(sampler) == len(drawn) == len(set(drawn))
            assert (len(drawn) == 100) == (epoch == 0)
            while len(drawn):
                part, drawn = drawn[:10], drawn[10:]
                assert self.step(sampler, len(part)).indices.flatten().tolist() == part

    def test_of_a_sample_that_is_there_twice_the_last_loss_counts(self, make):
        sampler = make(range(5))
        sampler.update(torch.tensor([1, 3, 1, 0, 3, 1]), torch.arange(6.0))
        assert sampler.scores.nan_to_num(-1).tolist() == [3, 5, -1, 4, -1]

    @pytest.mark.parametrize('by_epoch', [False, True])
    def test_the_state_is_small(self, make, by_epoch):
        sampler = make(range(10_000), by_epoch=by_epoch)
        sampler.set_epoch(0)
        next(iter(sampler))
        sampler.take(100)
        state = sampler.state_dict()
        held = sum(v.untyped_storage().nbytes() for v in state.values() if torch.is_tensor(v))
        assert held <= 16 * 10_000

    @pytest.mark.parametrize(
        ('kind', 'options', 'complaint'),
        [
            (OrderDPSampler, dict(pool=0), 'pool=0: expected'),
            (OrderDPSampler, dict(share=1.1), 'share=1.1: expected'),
            (OrderDPSampler, dict(prune_ratio=0.5), "OrderDPSampler has no option 'prune_ratio'"),
            (FixedPartSampler, dict(prune_ratio=1), 'prune_ratio=1: expected'),
            (FixedPartSampler, dict(ratio=0.5), "FixedPartSampler has no option 'ratio'"),
            (SeTaSampler, dict(prune_ratio=1), 'prune_ratio=1: expected'),
            (SeTaSampler, dict(num_groups=0), 'num_groups=0: expected'),
            (SeTaSampler, dict(window=0), 'window=0: expected'),
            (SeTaSampler, dict(delta=2), 'delta=2: expected'),
            (SeTaSampler, dict(num_group=5), "did you mean 'num_groups'"),
            (SeTaSampler, dict(by_epoch=1), 'by_epoch=1: expected'),
            (SeTaSampler, dict(seed=-1), 'seed=-1: expected'),
            (RareClassSampler, dict(temperature=0), 'temperature=0: expected'),
            (RareClassSampler, dict(min_pixels=0), 'min_pixels=0: expected'),
            (RareClassSampler, dict(temprature=1), "did you mean 'temperature'"),
        ],
    )
    def test_a_wrong_argument_is_refused(self, kind, options, complaint):
        with pytest.raises((TypeError, ValueError), match=complaint):
            kind(range(4), **{'seed': 0, **options})

    @pytest.mark.parametrize(
        ('options', 'complaint'),
        [
            (dict(full_iters=0), 'full_iters=0: expected'),
            (dict(interval=1.5), 'interval=1.5: expected'),
            (dict(intervall=1), "did you mean 'interval'"),
        ],
    )
    def test_a_wrong_argument_of_the_hook_is_refused(self, options, complaint):
        with pytest.raises((TypeError, ValueError), match=complaint):
            ScoreSamplerHook(**options)


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    processes.run(sampler_rank.run, folder, num_ranks=2)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


class TestRanks:
    """Two processes with workers, see sampler_rank.py."""

    @pytest.mark.parametrize('by_epoch', [False, True])
    @pytest.mark.parametrize('name', SAMPLERS)
    def test_ranks_share_the_samples_and_agree_on_their_losses(self, two_ranks, name, by_epoch):
        first, second = (seen[name, by_epoch] for seen in two_ranks)
        for one, other in zip(first['steps'], second['steps'], strict=True):
            assert torch.equal(one['taken'], other['taken'])
            for rank, step in enumerate((one, other)):
                assert torch.equal(step['taken'][:, rank], step['loaded'])
        assert first['state']['epoch'] == second['state']['epoch']
        for key in ('indices', 'weights', 'stand_for'):  # the first process's goes into checkpoints
            assert torch.equal(first['state'][key], second['state'][key])
        losses = {}
        for number, step in enumerate(first['steps']):
            flat = step['taken'].flatten()
            losses |= dict(zip(flat.tolist(), loss_of(flat, number).tolist(), strict=True))
        for scores in (first['scores'], second['scores']):
            assert {i: s for i, s in enumerate(scores.tolist()) if s == s} == losses

    def test_an_epoch_is_shared_out_and_filled_up(self, two_ranks):
        """21 of 33 are trained on: 11 a process, one of them a second time."""
        lengths, epochs = two_ranks[0]['orderdp', True]['lengths'], []
        steps = iter(two_ranks[0]['orderdp', True]['steps'])
        assert lengths == [3] * sampler_rank.NUM_EPOCHS  # batches of 4, 4 and 3
        for _ in range(sampler_rank.NUM_EPOCHS):
            epochs.append(torch.cat([next(steps)['taken'] for _ in range(3)]).flatten().tolist())
        for epoch in epochs:
            assert len(epoch) == 22 and len(set(epoch[:21])) == 21 and epoch[21] == epoch[0]

    def test_only_the_first_process_reads_the_labels(self, two_ranks):
        counted = [seen['counted'] for seen in two_ranks]
        assert counted == [True, False]
        assert torch.equal(two_ranks[0]['probabilities'], two_ranks[1]['probabilities'])
        # Drawn in turns, the same as one process would alone.
        alone = RareClassSampler(sampler_rank.Labelled(6), seed=3)
        expected = list(itertools.islice(alone, 40))
        both = torch.stack([seen['rare'] for seen in two_ranks], dim=1).flatten().tolist()
        assert both == expected


def epoch_config(tmp_path, method, max_epochs=5, ratio=0.5, checkpoint=None, **options):
    config = method_config(tmp_path, 'full')
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=100)
    config.param_scheduler = [dict(type='PolyLR', end=max_epochs, by_epoch=True)]
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.default_hooks.checkpoint.update(checkpoint or dict(by_epoch=True, interval=1))
    apply_method(config, method, ratio)
    config.merge_from_dict(options)
    return config


class TestRuns:
    @pytest.fixture(autouse=True)
    def _plain_config_text(self, monkeypatch):
        monkeypatch.setattr(Config, 'pretty_text', property(repr))

    def check_resumed(self, resumed, whole, tmp_path):
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name
        scores = (run.train_dataloader.sampler.scores.nan_to_num(-1) for run in (resumed, whole))
        assert torch.equal(*scores)
        budgets = [budget_of(tmp_path / name) for name in ('cut', 'whole')]
        for key in ('candidates', 'loaded', 'backward'):
            assert budgets[0][key] == budgets[1][key]

    @pytest.mark.parametrize('method', ['orderdp', 'seta'])
    def test_a_run_resumes_bit_for_bit(self, tmp_path, method):
        options = {'default_hooks.checkpoint.interval': 5, 'train_dataloader.num_workers': 2}
        options['train_dataloader.persistent_workers'] = True
        whole = train(method_config(tmp_path / 'whole', method, max_iters=30, **options))
        config = method_config(tmp_path / 'cut', method, max_iters=30, **options)
        config.resume, config.load_from = True, str(tmp_path / 'whole/iter_10.pth')
        self.check_resumed(train(config), whole, tmp_path)

    @pytest.mark.parametrize('at', ['epoch_2', 'iter_3'])
    @pytest.mark.parametrize('method', ['orderdp', 'seta', 'infobatch'])
    def test_a_run_of_epochs_resumes_bit_for_bit(self, tmp_path, method, at):
        """At the end of an epoch and in the middle of one, where MMEngine begins it anew."""
        saved = dict(by_epoch=at.startswith('epoch'), interval=1)
        options = dict(checkpoint=saved)
        whole = train(epoch_config(tmp_path / 'whole', method, **options))
        config = epoch_config(tmp_path / 'cut', method, **options)
        config.resume, config.load_from = True, str(tmp_path / f'whole/{at}.pth')
        self.check_resumed(train(config), whole, tmp_path)

    @pytest.mark.parametrize('method', ['orderdp', 'seta', 'infobatch', 'rcs'])
    def test_a_run_of_epochs_keeps_its_epochs_and_they_are_shorter(self, tmp_path, method):
        options = {}
        if method == 'rcs':
            options['train_dataloader.sampler.counts'] = str(tmp_path / 'counts.npz')
        runner = train(epoch_config(tmp_path, method, **options))
        budget = budget_of(tmp_path)
        assert runner.epoch == 5 and budget['candidates'] == 60
        assert (budget['loaded'] == 60) == (method == 'rcs')
        assert budget['loaded'] == budget['backward']
        if method == 'orderdp':
            assert budget['loaded'] == 5 * 5 and runner.max_iters == runner.iter == 5 * 2

    @pytest.mark.parametrize(
        ('by_epoch', 'complaint'),
        [
            (True, 'by_epoch=True is for EpochBasedTrainLoop, got IterBasedTrainLoop'),
            (False, 'by_epoch=False is for IterBasedTrainLoop, got EpochBasedTrainLoop'),
        ],
    )
    def test_a_sampler_of_the_other_loop_is_refused(self, tmp_path, by_epoch, complaint):
        config = (method_config if by_epoch else epoch_config)(tmp_path, 'orderdp')
        config.train_dataloader.sampler.by_epoch = by_epoch
        with pytest.raises(ValueError, match=complaint):
            train(config)


class TestRareClasses:
    def counts(self, rows, num_images):
        image, label, pixels = np.array(rows).T
        return rare.ClassCounts(num_images, image, label, pixels)

    @pytest.fixture
    def sampler(self, monkeypatch):
        """Class 0 nearly everywhere, 1 in two images, 2 in one of these and in another."""
        rows = [(i, 0, 900) for i in range(8)]
        rows += [(1, 1, 60), (2, 1, 40), (2, 2, 5), (5, 2, 15)]
        counts = self.counts(sorted(rows), 9)
        monkeypatch.setattr(rare.ClassCounts, 'of', lambda dataset: counts)
        return lambda **options: RareClassSampler(range(9), seed=1, **options)

    def test_classes_are_drawn_by_the_formula(self):
        frequency, temperature = [0.7, 0.2, 0.09, 0.01], 0.1
        weights = [math.exp((1 - f) / temperature) for f in frequency]
        expected = [weight / sum(weights) for weight in weights]
        found = rare.class_probabilities(np.array(frequency), temperature)
        assert found == pytest.approx(expected)
        assert rare.class_probabilities(np.array(frequency), 1e-5)[3] == pytest.approx(1)

    @pytest.mark.parametrize(
        ('options', 'holders'),
        [
            (dict(temperature=0.5), {0: range(8), 1: [1, 2], 2: [2, 5]}),
            (dict(temperature=0.5, min_pixels=20), {0: range(8), 1: [1, 2]}),
            (dict(temperature=0.5, min_pixels=10), {0: range(8), 1: [1, 2], 2: [5]}),
        ],
    )
    def test_images_are_drawn_as_often_as_their_classes_say(self, sampler, options, holders):
        pixels = {0: 7200, 1: 100, 2: 20}
        weights = {c: math.exp((1 - pixels[c] / 7320) / 0.5) for c in holders}
        expected = np.zeros(9)
        for c, images in holders.items():
            for image in images:
                expected[image] += weights[c] / sum(weights.values()) / len(images)
        draws = 20_000
        found = np.bincount(list(itertools.islice(sampler(**options), draws)), minlength=9) / draws
        error = np.sqrt(expected * (1 - expected) / draws)
        assert (np.abs(found - expected) <= 5 * error).all()

    def test_skipping_leaves_the_rest_of_the_stream(self, sampler):
        stream = list(itertools.islice(sampler(), 50))
        for num_samples in (0, 4, 9, 23):
            resumed = sampler()
            resumed.skip(num_samples)
            assert list(itertools.islice(resumed, 20)) == stream[num_samples:][:20]

    def test_epochs_repeat_with_their_number_and_differ(self, sampler):
        one = sampler(by_epoch=True)
        assert len(one) == 9 and list(one) == list(one)
        first = list(one)
        one.set_epoch(1)
        assert len(list(one)) == 9 and list(one) != first

    def test_labels_are_counted_once_and_kept(self, tmp_path, monkeypatch):
        data = sampler_rank.Labelled(5)
        path = tmp_path / 'kept/counts.npz'
        RareClassSampler(data, counts=str(path), seed=0)
        found = rare.ClassCounts.load(path)
        expected = [
            (number, label, (data.labels(number) == label).sum())
            for number in range(5)
            for label in range(4)
            if (data.labels(number) == label).any()
        ]
        rows = zip(found.image, found.label, found.pixels, strict=True)
        assert [tuple(map(int, row)) for row in rows] == expected

        def fail(dataset):
            raise AssertionError('counted again')

        monkeypatch.setattr(rare.ClassCounts, 'of', fail)
        RareClassSampler(data, counts=str(path), seed=0)
        with pytest.raises(ValueError, match='is of 5 images, the data set has 6; delete the file'):
            RareClassSampler(sampler_rank.Labelled(6), counts=str(path), seed=0)

    def test_data_sets_made_of_others_are_counted_in_their_order(self):
        parts = [sampler_rank.Labelled(n, first) for n, first in ((3, 0), (2, 7))]
        joined = rare.ClassCounts.of(ConcatDataset(parts))
        assert joined.num_images == 5
        alone = [rare.ClassCounts.of(part) for part in parts]
        for name in ('label', 'pixels'):
            expected = np.concatenate([getattr(counts, name) for counts in alone])
            assert np.array_equal(getattr(joined, name), expected)
        offsets = np.repeat([0, 3], [len(counts.image) for counts in alone])
        images = np.concatenate([counts.image for counts in alone]) + offsets
        assert np.array_equal(joined.image, images)
        repeated = rare.ClassCounts.of(RepeatDataset(parts[1], 2))
        assert np.array_equal(repeated.image, np.concatenate([alone[1].image, alone[1].image + 2]))

    def test_the_demo_scenes_are_counted_as_they_are_trained_on(self, tmp_path):
        config = method_config(tmp_path, 'full')
        init_default_scope('mmseg')
        dataset = DATASETS.build(copy.deepcopy(config.train_dataloader.dataset))
        counts = rare.ClassCounts.of(dataset)
        pixels = np.zeros((12, 20), dtype=int)
        pixels[counts.image, counts.label] = counts.pixels
        for number in range(12):
            labels = dataset[number]['data_samples'].gt_sem_seg.data.numpy().ravel()
            expected = np.bincount(labels[labels != 255], minlength=20)
            assert np.array_equal(pixels[number], expected)

    def test_data_without_labels_are_refused(self):
        data = sampler_rank.Labelled(3)
        data.pipeline.transforms = []
        with pytest.raises(ValueError, match='Labelled loads no labels'):
            RareClassSampler(data, seed=0)

    def test_too_many_pixels_are_refused(self, sampler):
        with pytest.raises(ValueError, match='min_pixels=1000: no image has as many'):
            sampler(min_pixels=1000)


class TestMethods:
    def test_ohem_keeps_the_share_of_pixels_that_mmsegs_configs_keep(self, tmp_path):
        config = method_config(tmp_path, 'ohem')
        expected = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=781)
        assert config.model.decode_head.sampler == expected  # of 64x64
        assert 'sampler' not in config.model.auxiliary_head

    def test_ohem_needs_the_size_of_a_training_image(self, tmp_path):
        config = method_config(tmp_path, 'full')
        config.model.data_preprocessor.pop('size')
        config.pop('crop_size', None)
        with pytest.raises(ValueError, match=r'neither model\.data_preprocessor\.size nor'):
            apply_method(config, 'ohem')

    def test_orderdp_has_the_share_of_iterations_that_it_keeps(self, tmp_path):
        config = method_config(
            tmp_path, 'orderdp', 0.7, 400, **{'train_dataloader.dataset.length': 100}
        )
        sampler = config.train_dataloader.sampler
        assert sampler.pool * sampler.share == pytest.approx(0.3)
        assert config.train_cfg.max_iters == pytest.approx(0.3 * 400, abs=8)
        assert config.train_cfg.max_iters == config.param_scheduler[0].end
        assert config.custom_hooks[0] == dict(type='ScoreSamplerHook', full_iters=400)

    def test_counts_of_other_data_are_another_file(self, tmp_path):
        files = set()
        for length in (12, 12, 13):
            config = method_config(tmp_path, 'full', **{'train_dataloader.dataset.length': length})
            apply_method(config, 'rcs')
            files.add(config.train_dataloader.sampler.counts)
        assert len(files) == 2
