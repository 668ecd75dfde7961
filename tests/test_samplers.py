"""Samplers that choose what is loaded: their draws against oracles, streams, ranks; the weights of
images in a segmentor's loss."""

import copy
import itertools
import math

import numpy as np
import processes
import pytest
import sampler_rank
import tiny
import torch
from mmengine.dataset import ConcatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from test_baselines import method_config
from torch.utils.data import DataLoader

from pfb_mmseg.compare import (
    FixedPartSampler,
    InfoBatchSampler,
    OrderDPSampler,
    RareClassSampler,
    SeTaSampler,
)
from pfb_mmseg.compare.image_weights import ImageWeights
from pfb_mmseg.compare.rare_class import class_probabilities, count_classes
from pfb_mmseg.compare.rivals import difficulty_groups, pool_and_share, ratio_and_window

NAN = float('nan')
SAMPLERS = {
    'infobatch': lambda data: InfoBatchSampler(data, 0.6, seed=5),
    'orderdp': lambda data: OrderDPSampler(data, seed=5),
    'seta': lambda data: SeTaSampler(data, 0.2, seed=5),
    'random_once': lambda data: FixedPartSampler(data, 0.4, seed=5),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss_of(indices, step=0):
    """Something that depends on both, distinct for all indices below 97."""
    return (indices * 31 % 97 + 1.0) / (1 + step % 3)


def draw(sampler, scores, source, epoch=1):
    """An epoch's indices and weights, with these as the last-seen losses."""
    sampler.update(torch.arange(len(scores)), scores)
    return sampler.draw(epoch, source)


def prune_epoch(scores, prune_ratio, percentile, source):
    return draw(
        InfoBatchSampler(range(len(scores)), prune_ratio, percentile, seed=0), scores, source
    )


def hardest_of_a_pool(scores, pool, share, source):
    return draw(OrderDPSampler(range(len(scores)), pool, share, seed=0), scores, source)[0]


def window_of_groups(scores, epoch, prune_ratio, num_groups, window, source, num_epochs=100):
    sampler = SeTaSampler(range(len(scores)), prune_ratio, num_groups, window, seed=0)
    sampler.num_epochs = num_epochs
    return draw(sampler, scores, source, epoch)[0]


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

    def test_expected_weights_are_those_of_all_samples(self):
        """Seven candidates, a third of them pruned: not a whole number, unbiased all the same."""
        scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 8.0])
        draws, total = 5000, torch.zeros(8).double()
        source = generator(2)
        for _ in range(draws):
            indices, weights = prune_epoch(scores, 1 / 3, None, source)
            total.index_add_(0, indices, weights)
        # Standard error of a mean weight: at most 0.71 / sqrt(5000) = 0.01.
        torch.testing.assert_close(total / draws, torch.ones(8).double(), atol=0.05, rtol=0)

    def test_the_first_epoch_and_the_last_eighth_are_whole(self):
        sampler = InfoBatchSampler(range(20), 0.5, 95, seed=0)
        sampler.num_epochs = 8
        lengths = []
        for epoch in range(8):
            lengths.append(len(sampler.draw(epoch, generator(epoch))[0]))
            sampler.update(torch.arange(20), torch.rand(20))
        assert lengths[0] == lengths[7] == 20 and max(lengths[1:7]) < 12


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
            chosen = sampler.take(6)[0].flatten()
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
        epochs = [sampler.take(6)[0].flatten().tolist() for _ in range(5)]
        assert len({frozenset(epoch) for epoch in epochs}) == 1 and len(set(epochs[0])) == 6
        assert len({tuple(epoch) for epoch in epochs}) == 5
        assert sampler.candidates == 100

    def test_every_sample_is_in_it_as_often_as_the_ratio_says(self):
        found = torch.zeros(10)
        for seed in range(1000):
            found[FixedPartSampler(range(10), 0.7, seed=seed).take(3)[0].flatten()] += 1
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

    def test_of_many_losses_the_groups_are_nearly_those_of_least_spread(self):
        losses = torch.randn(2000, generator=generator()).exp()
        groups = difficulty_groups(losses, 5)
        assert sorted(torch.cat(groups).tolist()) == list(range(2000))
        means = torch.stack([losses[group].double().mean() for group in groups])
        assert means.tolist() == sorted(means.tolist())
        nearest = (losses.double()[:, None] - means).abs().argmin(dim=1)
        own = torch.zeros(2000, dtype=torch.long)
        for number, group in enumerate(groups):
            own[group] = number
        assert (own == nearest).float().mean() > 0.99

    @pytest.mark.parametrize('num', [1, 3])
    def test_there_are_no_more_groups_than_losses(self, num):
        assert [len(group) for group in difficulty_groups(torch.ones(num), 5)] == [1] * num

    def test_the_window_slides_from_easy_to_hard_and_begins_anew(self):
        sizes = [30, 25, 20, 15, 10]
        cluster = torch.arange(5).repeat_interleave(torch.tensor(sizes))
        scores = cluster * 10 + torch.rand(100, generator=generator())
        sampler = SeTaSampler(range(100), seed=0)  # three of five groups
        sampler.num_epochs = 16
        found = []
        for epoch in range(16):
            sampler.update(torch.arange(100), scores)
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
        whole = window_of_groups(scores, 0, 0.3, 5, 0.6, generator())
        last = window_of_groups(scores, 9, 0.3, 5, 0.6, generator(), num_epochs=10)
        part = window_of_groups(scores, 3, 0.3, 5, 0.6, generator())
        assert len(set(whole.tolist())) == len(set(last.tolist())) == 700
        assert 0 < len(set(part.tolist())) < 700
        assert scores[part].max() < scores.quantile(0.8)

    def test_what_was_never_trained_on_is_as_hard_as_the_hardest(self):
        scores = torch.tensor([1.0, 1.1, 2.0, 2.1, 3.0, 3.1, 9.0, NAN, 9.1, NAN])
        easy = window_of_groups(scores, 4, 0.0, 4, 0.5, generator())
        hard = window_of_groups(scores, 2, 0.0, 4, 0.5, generator())
        # 4 groups, of which 2 are seen: 3 places.
        assert set(easy.tolist()) == {2, 3, 4, 5}
        assert set(hard.tolist()) == {4, 5, 6, 7, 8, 9}

    @pytest.mark.parametrize('ratio', [0.05, 0.2, 0.3, 0.5, 0.7, 0.9])
    @pytest.mark.parametrize('num_epochs', [3, 10, 37.5, 200])
    def test_a_ratio_is_met_if_the_groups_are_of_one_size(self, ratio, num_epochs):
        random, window = ratio_and_window(ratio, num_epochs)
        assert 0 <= random < 1 and 0.6 <= window <= 1
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

    @pytest.mark.parametrize('ahead', [0, 3])
    @pytest.mark.parametrize('discards', [True, False])
    def test_a_resumed_stream_is_the_one_that_was_left(self, make, ahead, discards):
        def steps(sampler, stream, number, asked):
            for _ in range(number):
                while len(asked) < 4 * (1 + ahead):
                    asked.append(next(stream))
                indices, weights = (column[:, 0] for column in sampler.take(4))
                assert indices.tolist() == [asked.pop(0) for _ in range(4)]
                sampler.update(indices, loss_of(indices))
                yield indices.tolist(), weights.tolist(), sampler.candidates

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

    def test_workers_are_asked_for_what_the_hook_names(self, make):
        sampler = make(range(10))
        batches = iter(DataLoader(range(10), 4, sampler=sampler, num_workers=2))
        for _ in range(8):
            batch = next(batches)
            assert torch.equal(batch, sampler.take(4)[0][:, 0])
            sampler.update(batch, batch.float())

    def test_scores_of_pruned_samples_are_carried_over(self):
        sampler = InfoBatchSampler(range(20), 0.5, 95, seed=0)
        first = sampler.take(20)[0].flatten()
        sampler.update(first, first + 1.0)
        trained = sampler.take(11)[0].flatten()[:10]  # 20 - 0.5 * 19, up or down
        sampler.update(trained, torch.full((10,), 0.5))
        pruned = sorted(set(range(20)) - set(trained.tolist()))
        assert torch.equal(sampler.scores[pruned], torch.tensor(pruned) + 1.0)
        assert (sampler.scores[trained] == 0.5).all()

    def test_the_last_finite_loss_of_a_sample_counts(self):
        sampler = OrderDPSampler(range(5), seed=0)
        sampler.update(torch.tensor([1, 3, 1, 0, 3, 1]), torch.arange(6.0))
        assert sampler.scores.nan_to_num(-1).tolist() == [3, 5, -1, 4, -1]
        sampler.update(torch.arange(3), torch.tensor([NAN, float('inf'), 2.0]))
        assert sampler.scores.nan_to_num(-1).tolist() == [-1, -1, 2, 4, -1]

    def test_a_state_of_other_data_is_refused(self):
        state = OrderDPSampler(range(4), seed=0).state_dict()
        with pytest.raises(ValueError, match='scores of 4 samples, the data set has 5'):
            OrderDPSampler(range(5), seed=0).load_state_dict(state)

    @pytest.mark.parametrize(
        ('kind', 'options', 'complaint'),
        [
            (OrderDPSampler, dict(pool=0), 'pool=0: expected'),
            (OrderDPSampler, dict(share=1.1), 'share=1.1: expected'),
            (OrderDPSampler, dict(prune_ratio=0.5), 'prune_ratio'),
            (FixedPartSampler, dict(prune_ratio=1), 'prune_ratio=1: expected'),
            (InfoBatchSampler, dict(percentile=101), 'percentile=101'),
            (SeTaSampler, dict(num_groups=0), 'num_groups=0: expected'),
            (SeTaSampler, dict(window=0), 'window=0: expected'),
            (SeTaSampler, dict(seed=-1), 'seed=-1: expected'),
            (RareClassSampler, dict(temperature=0), 'temperature=0: expected'),
        ],
    )
    def test_a_wrong_argument_is_refused(self, kind, options, complaint):
        with pytest.raises((TypeError, ValueError), match=complaint):
            kind(range(4), **{'seed': 0, **options})


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    processes.run(sampler_rank.run, folder, num_ranks=2)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


class TestRanks:
    """Two processes with workers, see sampler_rank.py."""

    @pytest.mark.parametrize('name', SAMPLERS)
    def test_ranks_share_the_samples_and_agree_on_their_losses(self, two_ranks, name):
        first, second = (seen[name] for seen in two_ranks)
        for one, other in zip(first['steps'], second['steps'], strict=True):
            assert torch.equal(one['taken'], other['taken'])
            for rank, step in enumerate((one, other)):
                assert torch.equal(step['taken'][:, rank], step['loaded'])
        losses = {}
        for number, step in enumerate(first['steps']):
            flat = step['taken'].flatten()
            losses |= dict(zip(flat.tolist(), loss_of(flat, number).tolist(), strict=True))
        for state in (first['state'], second['state']):
            scores = state['scores'].tolist()
            assert {i: s for i, s in enumerate(scores) if s == s} == losses
            assert state['epoch'] == first['state']['epoch']
            assert torch.equal(state['stream'], first['state']['stream'])

    def test_rare_classes_are_drawn_in_turns_as_one_process_would_alone(self, two_ranks):
        alone = RareClassSampler(sampler_rank.Labelled(6), seed=3)
        both = torch.stack([seen['rare'] for seen in two_ranks], dim=1).flatten().tolist()
        assert both == list(itertools.islice(alone, 40))


class Scenes(sampler_rank.Labelled):
    """Class 0 nearly everywhere, 1 in two images, 2 in one of these and in another."""

    def labels(self, index):
        label_map = np.full(1000, 255, np.uint8)
        label_map[:900] = 0 if index < 8 else 255
        for image, label, start, stop in ((1, 1, 900, 960), (2, 1, 900, 940), (2, 2, 940, 945),
                                          (5, 2, 900, 915)):  # fmt: skip
            if image == index:
                label_map[start:stop] = label
        return label_map


class TestRareClasses:
    def test_classes_are_drawn_by_the_formula(self):
        frequency, temperature = [0.7, 0.2, 0.09, 0.01], 0.1
        weights = [math.exp((1 - f) / temperature) for f in frequency]
        expected = [weight / sum(weights) for weight in weights]
        found = class_probabilities(np.array(frequency), temperature)
        assert found == pytest.approx(expected)
        assert class_probabilities(np.array(frequency), 1e-5)[3] == pytest.approx(1)

    def test_images_are_drawn_as_often_as_their_classes_say(self):
        holders = {0: range(8), 1: [1, 2], 2: [2, 5]}
        pixels = {0: 7200, 1: 100, 2: 20}
        weights = {c: math.exp((1 - pixels[c] / 7320) / 0.5) for c in holders}
        expected = np.zeros(9)
        for c, images in holders.items():
            for image in images:
                expected[image] += weights[c] / sum(weights.values()) / len(images)
        sampler, draws = RareClassSampler(Scenes(9), temperature=0.5, seed=1), 20_000
        found = np.bincount(list(itertools.islice(sampler, draws)), minlength=9) / draws
        error = np.sqrt(expected * (1 - expected) / draws)
        assert (np.abs(found - expected) <= 5 * error).all()

    def test_skipping_leaves_the_rest_of_the_stream(self):
        stream = list(itertools.islice(RareClassSampler(Scenes(9), seed=1), 50))
        for num_samples in (0, 4, 9, 23):
            resumed = RareClassSampler(Scenes(9), seed=1)
            resumed.skip(num_samples)
            assert list(itertools.islice(resumed, 20)) == stream[num_samples:][:20]

    def test_data_sets_made_of_others_are_counted_in_their_order(self):
        parts = [sampler_rank.Labelled(n, first) for n, first in ((3, 0), (2, 7))]
        pixels, images = count_classes(ConcatDataset(parts))
        maps = [part.labels(i) for part in parts for i in range(len(part))]
        for label in range(4):
            assert pixels[label] == sum((one == label).sum() for one in maps)
            assert images[label] == [i for i, one in enumerate(maps) if (one == label).any()]

    def test_the_demo_scenes_are_counted_as_they_are_trained_on(self, tmp_path):
        config = method_config(tmp_path, 'full')
        init_default_scope('mmseg')
        dataset = DATASETS.build(copy.deepcopy(config.train_dataloader.dataset))
        expected = torch.zeros(256, dtype=torch.long)
        for number in range(12):
            labels = dataset[number]['data_samples'].gt_sem_seg.data.flatten()
            expected += labels.bincount(minlength=256)
        pixels, _ = count_classes(dataset)
        assert pixels == {c: n for c, n in enumerate(expected.tolist()) if n and c != 255}

    def test_data_without_labels_are_refused(self):
        data = sampler_rank.Labelled(3)
        data.pipeline.transforms = []
        with pytest.raises(ValueError, match='Labelled loads no labels'):
            RareClassSampler(data, seed=0)


HEAD = dict(dropout_ratio=0)


def build(head=HEAD):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(tiny.model_cfg('EncoderDecoder', head=head)).train()


def alone(part, features, samples):
    """The loss of each image by itself, after one forward pass of the batch (BatchNorm)."""
    logits = part(features)
    return torch.stack(
        [part.loss_by_feat(logits[i : i + 1], [samples[i]])['loss_ce'] for i in range(4)]
    )


class TestImageWeights:
    def test_loss_and_gradients_are_the_weighted_mean_over_the_images(self):
        model, twin = build(), build()
        weigher = ImageWeights(model)
        images, samples = tiny.images(4), tiny.samples(4)
        weights = torch.tensor([2.0, 1, 1, 3.5], dtype=torch.float64)
        weigher.weights = weights
        losses = model.loss(images, samples)
        features = twin.extract_feat(images)
        expected = {
            'decode': alone(twin.decode_head, features, samples),
            'aux': alone(twin.auxiliary_head, features, samples),
        }
        for name, one in expected.items():
            torch.testing.assert_close(losses[f'{name}.loss_ce'], (one * weights).mean().float())
        torch.testing.assert_close(weigher.take_losses(), expected['decode'].detach())
        tiny.total(losses).backward()
        sum((one * weights).mean() for one in expected.values()).backward()
        gradients = tiny.gradients(model)
        for name, gradient in tiny.gradients(twin).items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize('over_labelled', [False, True])
    def test_a_partly_labelled_image_has_the_loss_that_is_trained(self, over_labelled):
        loss = dict(type='CrossEntropyLoss', avg_non_ignore=over_labelled)
        head = dict(dropout_ratio=0, loss_decode=loss)
        model, twin = build(head), build(head)
        images, samples = tiny.images(4), tiny.samples(4)
        samples[0].gt_sem_seg.data[:, ::3] = 255
        weigher = ImageWeights(model)
        weigher.weights = torch.ones(4)
        model.loss(images, samples)
        expected = alone(twin.decode_head, twin.extract_feat(images), samples)
        torch.testing.assert_close(weigher.take_losses(), expected.detach())

    def test_without_weights_nothing_changes(self):
        model, twin = build(), build()
        weigher = ImageWeights(model)
        losses = [one.loss(tiny.images(), tiny.samples()) for one in (model, twin)]
        torch.testing.assert_close(*losses, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match='weighted no loss of single images'):
            weigher.take_losses()

    def test_what_cannot_be_weighted_is_refused(self):
        model = build(dict(sampler=dict(type='OHEMPixelSampler')))
        with pytest.raises(ValueError, match='ASPPHead weighs its pixels with OHEMPixelSampler'):
            ImageWeights(model)
        model = build()
        ImageWeights(model).weights = torch.ones(3)
        with pytest.raises(ValueError, match='3 weights for 4 images'):
            model.loss(tiny.images(4), tiny.samples(4))
