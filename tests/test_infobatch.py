"""InfoBatch: its draws, streams and ranks; the weights of images in a segmentor's loss."""

import infobatch_rank
import processes
import pytest
import tiny
import torch
from infobatch_rank import NUM_STEPS
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch.utils.data import DataLoader

from pfb_mmseg.compare import InfoBatchSampler
from pfb_mmseg.compare.image_weights import ImageWeights

NAN = float('nan')


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss_of(indices, step=0):
    """Something that depends on both, distinct for all indices below 97."""
    return (indices * 31 % 97 + 1.0) / (1 + step % 3)


def prune_epoch(losses, prune_ratio, percentile, source):
    """An epoch's indices and weights, with these as the last-seen losses."""
    sampler = InfoBatchSampler(range(len(losses)), prune_ratio, percentile, seed=0)
    sampler.update(torch.arange(len(losses)), losses)
    return sampler.draw(1, source)


class TestPruneEpoch:
    def test_without_losses_everybody_stays(self):
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


class TestStream:
    def test_workers_are_asked_for_what_the_hook_names(self):
        sampler = InfoBatchSampler(range(10), 0.6, seed=5)
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
        assert torch.equal(sampler.losses[pruned], torch.tensor(pruned) + 1.0)
        assert (sampler.losses[trained] == 0.5).all()

    def test_the_last_finite_loss_of_a_sample_counts(self):
        sampler = InfoBatchSampler(range(5), seed=0)
        sampler.update(torch.tensor([1, 3, 1, 0, 3, 1]), torch.arange(6.0))
        assert sampler.losses.nan_to_num(-1).tolist() == [3, 5, -1, 4, -1]
        sampler.update(torch.arange(3), torch.tensor([NAN, float('inf'), 2.0]))
        assert sampler.losses.nan_to_num(-1).tolist() == [-1, -1, 2, 4, -1]


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    processes.run(infobatch_rank.run, folder, num_ranks=2)
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


class TestRanks:
    """Two processes with workers, see infobatch_rank.py."""

    def test_ranks_share_the_samples_and_agree_on_their_losses(self, two_ranks):
        first, second = two_ranks
        for one, other in zip(first['steps'], second['steps'], strict=True):
            assert torch.equal(one['taken'], other['taken'])
            for rank, step in enumerate((one, other)):
                assert torch.equal(step['taken'][:, rank], step['loaded'])
        losses = {}
        for number, step in enumerate(first['steps']):
            flat = step['taken'].flatten()
            losses |= dict(zip(flat.tolist(), loss_of(flat, number).tolist(), strict=True))
        for rank in (first, second):
            scores = rank['losses'].tolist()
            assert {i: s for i, s in enumerate(scores) if s == s} == losses
            assert rank['candidates'] == first['candidates'] > NUM_STEPS * 8


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
