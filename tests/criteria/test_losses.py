"""Criteria that compare images after a forward pass of the whole network: loss top-k and DivBS."""

import copy

import numpy as np
import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmseg.models.utils import resize
from mmseg.registry import MODELS

from pfb_mmseg.core import BatchPruner, Candidates
from pfb_mmseg.core.criteria.divbs import classifier_gradients, diverse_order
from pfb_mmseg.models.mixin import BlockedStep
from pfb_mmseg.models.segmentation.heads import image_losses

NAN = float('nan')


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def first(gradients, num_keep, seed=0):
    """Those that are taken first, ascending."""
    return diverse_order(gradients, generator(seed))[:num_keep].sort().values.tolist()


def build(criterion, head=None, **pfb):
    """With running statistics as after some training, and logits that tell images apart."""
    model = tiny.build(dict(criterion=criterion) | pfb, head=head)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=0.5)
    return model


def explicit_losses(model, images, samples):
    """Loss of each image, from a forward pass of its own in eval mode."""
    model.eval()
    return torch.stack(
        [
            model.decode_head.loss(
                model.extract_feat(images[i : i + 1]), [samples[i]], model.train_cfg
            )['loss_ce']
            for i in range(len(images))
        ]
    )


class TestImageLosses:
    @pytest.mark.parametrize('over_labelled', [False, True])
    def test_are_the_losses_that_are_trained_of_the_images_alone(self, over_labelled):
        """Over all pixels, or over the labelled ones."""
        loss = dict(type='CrossEntropyLoss', avg_non_ignore=over_labelled)
        head = dict(loss_decode=loss)
        model = tiny.plain_twin(build('loss_topk', head), head).eval()
        images, samples = tiny.images(), tiny.samples()
        samples[2].gt_sem_seg.data[:, :20] = 255
        labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
        with torch.no_grad():
            logits = resize(model(images, mode='tensor'), labels.shape[2:], mode='bilinear')
            losses = image_losses(model.decode_head, logits, labels)
            torch.testing.assert_close(losses, explicit_losses(model, images, samples))


class TestLossTopK:
    def test_keeps_the_highest_losses_and_tells_them(self):
        model = build('loss_topk')
        images, samples = tiny.images(), tiny.samples()
        expected = explicit_losses(tiny.plain_twin(model), images, samples).detach()
        model.loss(images, samples)
        selection = model.pfb.selection
        assert selection.indices.tolist() == sorted(expected.argsort()[4:].tolist())
        assert selection.score_name == 'loss'
        torch.testing.assert_close(selection.score, expected)

    def test_a_loss_that_is_not_finite_goes_first(self):
        class Losses(Candidates):
            def losses(self):
                return torch.tensor([NAN, 1.0, 0.0, 2.0])

        pruner = BatchPruner(0.25, criterion='loss_topk')
        with pruner.select(Losses(4, torch.device('cpu'))) as decision:
            assert decision.selection.indices.tolist() == [1, 2, 3]


class TestDivBS:
    def test_gradients_are_those_of_a_backward_pass_for_each_image(self):
        model = build('divbs')
        images, samples = tiny.images(4), tiny.samples(4)
        found = BlockedStep(model, images, samples, model.loss).classifier_gradients()
        twin = tiny.plain_twin(model)
        losses = explicit_losses(twin, images, samples)
        weight = twin.decode_head.conv_seg.weight
        for gradient, loss in zip(found, losses, strict=True):
            (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
            torch.testing.assert_close(gradient, expected.flatten(), rtol=1e-3, atol=1e-6)

    def test_outer_products_are_summed_over_pixels(self):
        rng = np.random.default_rng(0)
        features, grad = rng.normal(size=(3, 4, 2, 5)), rng.normal(size=(3, 6, 2, 5))
        expected = [
            sum(np.outer(g[:, y, x], f[:, y, x]) for y in range(2) for x in range(5)).ravel()
            for f, g in zip(features, grad, strict=True)
        ]
        found = classifier_gradients(torch.from_numpy(features), torch.from_numpy(grad))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)

    @pytest.mark.parametrize('seed', range(5))
    def test_greedy_choice_is_the_one_made_with_projections(self, seed):
        """Oracle: the residual is the mean gradient minus its least-squares fit by those chosen."""
        rng = np.random.default_rng(seed)
        gradients = rng.normal(size=(12, 30)) + rng.normal(size=30)
        chosen = []
        mean = gradients.mean(axis=0)
        for _ in range(6):
            basis = gradients[chosen]
            fit = basis.T @ np.linalg.lstsq(basis.T, mean, rcond=None)[0] if chosen else 0
            correlation = np.abs(gradients @ (mean - fit))
            correlation[chosen] = -1
            chosen.append(int(correlation.argmax()))
        assert diverse_order(torch.from_numpy(gradients), generator())[:6].tolist() == chosen

    def test_an_explained_mean_is_filled_up_at_random(self):
        """Two directions: two images explain the mean, the others are drawn."""
        gradients = torch.zeros(10, 5)
        gradients[:, 0] = torch.arange(10.0)
        gradients[:3, 1] = 1
        drawn = [tuple(first(gradients, 4, seed)) for seed in range(20)]
        assert all(len(set(one)) == 4 for one in drawn)
        assert all(9 in one for one in drawn)
        assert len(set(drawn)) > 1

    @pytest.mark.parametrize('bad', [NAN, float('inf')])
    @pytest.mark.parametrize('num_finite', [2, 6])
    def test_a_gradient_that_is_not_finite_is_taken_last(self, bad, num_finite):
        """Even where the finite ones, all alike, are explained by the first of them."""

        class Gradients(Candidates):
            def classifier_gradients(self):
                gradients = torch.ones(8, 8)
                gradients[: 8 - num_finite, 3] = bad
                return gradients

        for seed in range(10):
            pruner = BatchPruner(1 - num_finite / 8, criterion='divbs', seed=seed)
            with pruner.select(Gradients(8, torch.device('cpu'))) as decision:
                kept = decision.selection.indices.tolist()
            assert kept == list(range(8 - num_finite, 8))

    def test_model_keeps_what_the_order_says(self):
        model = build('divbs')
        images, samples = tiny.images(), tiny.samples()
        twin = tiny.plain_twin(model)
        weight = twin.decode_head.conv_seg.weight
        losses = explicit_losses(twin, images, samples)
        gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
        model.loss(images, samples)
        expected = first(torch.stack(gradients).flatten(1), 4)
        assert model.pfb.selection.indices.tolist() == expected
        assert model.pfb.selection.score is None

    def test_a_head_without_a_1x1_classifier_is_refused(self):
        model = build('divbs')
        model.decode_head.conv_seg = torch.nn.Identity()
        with pytest.raises(ValueError, match='gradient of a 1x1 convolution conv_seg.*ASPPHead'):
            model.loss(tiny.images(), tiny.samples())


@pytest.mark.parametrize('criterion', ['loss_topk', 'divbs'])
class TestBoth:
    def test_train_as_the_plain_model_on_the_kept_images(self, criterion):
        head = dict(dropout_ratio=0)
        model = build(criterion, head)
        twin = tiny.plain_twin(model, head)
        images, samples = tiny.images(), tiny.samples()
        losses = model.loss(images, samples)
        kept = model.pfb.selection.indices.tolist()
        assert len(kept) == 4
        expected = twin.loss(images[kept], [samples[i] for i in kept])
        torch.testing.assert_close(losses, expected, rtol=0, atol=0)
        tiny.total(losses).backward()
        tiny.total(expected).backward()
        gradients = tiny.gradients(model)
        for name, gradient in tiny.gradients(twin).items():
            assert torch.equal(gradients[name], gradient), name

    def test_scoring_leaves_no_trace_in_the_model(self, criterion):
        model = build(criterion)
        before = copy.deepcopy(model.state_dict())
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        with model.pfb.pruner.select(BlockedStep(model, tiny.images(), tiny.samples(), model.loss)):
            pass
        after = model.state_dict()
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        for name in before.keys() - {'pfb.pruner._extra_state', 'pfb._extra_state'}:
            assert torch.equal(before[name], after[name]), name
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_the_quota_goes_on_from_a_checkpoint(self, criterion):
        model, other = (build(criterion, prune_ratio=0.3) for _ in range(2))
        counts = []
        images, samples = tiny.images(8, 32), tiny.samples(8, 32)
        for _ in range(10):
            model.loss(images, samples)
            counts.append(model.pfb.selection.num_kept)
            if len(counts) == 4:
                other.load_state_dict(model.state_dict())
        assert sum(counts) == 56
        assert [other.pfb.pruner.num_keep(8)] == counts[4:5]

    def test_inference_is_the_hosts(self, criterion):
        model = build(criterion).eval()
        twin = tiny.plain_twin(model).eval()
        with torch.no_grad():
            assert torch.equal(
                model(tiny.images(), mode='tensor'), twin(tiny.images(), mode='tensor')
            )

    def test_of_a_cascade_it_is_the_last_head_that_counts(self, criterion):
        init_default_scope('mmseg')
        torch.manual_seed(0)
        config = tiny.model_cfg('PFBCascadeEncoderDecoder', dict(criterion=criterion))
        first_head = config['decode_head'] | dict(type='FCNHead')
        first_head.pop('dilations')
        last = first_head | dict(type='OCRHead', ocr_channels=8)
        config |= dict(num_stages=2, decode_head=[first_head, last])
        model = MODELS.build(config).train()
        images, samples = tiny.images(4), tiny.samples(4)
        twin = copy.deepcopy(model).eval()
        losses = [twin.loss(images[i : i + 1], [samples[i]])['decode_1.loss_ce'] for i in range(4)]
        model.loss(images, samples)
        assert model.pfb.selection.num_kept == 2
        if criterion == 'loss_topk':
            torch.testing.assert_close(model.pfb.selection.score, torch.stack(losses))
        else:
            weight = twin.decode_head[1].conv_seg.weight
            gradients = [torch.autograd.grad(loss, weight)[0].flatten() for loss in losses]
            assert model.pfb.selection.indices.tolist() == first(torch.stack(gradients), 2)

    def test_labels_are_needed(self, criterion):
        model = build(criterion)
        samples = tiny.samples()
        del samples[3].gt_sem_seg
        with pytest.raises(ValueError, match='gt_sem_seg, which a data sample lacks'):
            model.loss(tiny.images(), samples)
