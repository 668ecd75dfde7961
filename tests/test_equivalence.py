"""A blocked step is the step it claims to be: the same losses, gradients and statistics."""

import pytest
import tiny
import torch
from torch import nn
from torch.testing import assert_close

from pfb_mmseg import PFBMixin
from pfb_mmseg.blocking import BlockingPoint, scoring_mode
from pfb_mmseg.core.criteria import Rare
from pfb_mmseg.models.mixin import BlockedStep


def blocked_step(model, images, samples, seed=7):
    """Losses and gradients of one step, and which images it kept."""
    torch.manual_seed(seed)
    losses = model.loss(images, samples)
    tiny.total(losses).backward()
    selection = model.pfb.selection
    kept = range(len(images)) if selection is None else selection.indices.tolist()
    return losses, tiny.gradients(model), list(kept)


def plain_step(model, images, samples, kept, seed=7):
    """What EncoderDecoder makes of the kept images."""
    torch.manual_seed(seed)
    losses = model.loss(images[kept], [samples[i] for i in kept])
    tiny.total(losses).backward()
    return losses, tiny.gradients(model)


def norm_buffers(model):
    return {
        name: value.clone() for name, value in model.named_buffers() if not name.startswith('pfb.')
    }


class TestTwoPass:
    @pytest.mark.parametrize(
        'pfb',
        [
            {},
            {'prune_ratio': 0.25},
            {'score_scale': 0.5},
            {'criterion': 'random'},
        ],
        ids=str,
    )
    def test_trains_as_encoder_decoder_on_the_kept_images(self, pfb):
        """Dropout is on: with the scoring pass drawing numbers, the masks would differ."""
        model = tiny.build(pfb)
        twin = tiny.plain_twin(model)
        images, samples = tiny.images(), tiny.samples()
        losses, gradients, kept = blocked_step(model, images, samples)
        assert len(kept) == 8 * (1 - pfb.get('prune_ratio', 0.5))
        expected_losses, expected_gradients = plain_step(twin, images, samples, kept)
        assert_close(losses, expected_losses)
        assert_close(gradients, expected_gradients)
        assert_close(norm_buffers(model), norm_buffers(twin))

    @pytest.mark.parametrize(
        'backbone',
        [
            {'frozen_stages': 1},
            {'norm_eval': True},
            {'with_cp': True},
        ],
        ids=str,
    )
    def test_holds_for_frozen_and_checkpointed_backbones(self, backbone):
        model = tiny.build(**backbone)
        twin = tiny.plain_twin(model, **backbone)
        images, samples = tiny.images(), tiny.samples()
        losses, gradients, kept = blocked_step(model, images, samples)
        expected_losses, expected_gradients = plain_step(twin, images, samples, kept)
        assert_close(losses, expected_losses)
        assert_close(gradients, expected_gradients)
        assert_close(norm_buffers(model), norm_buffers(twin))

    def test_follows_the_plain_model_through_training(self):
        """Errors that one step hides, in momentum or running statistics, would add up."""
        model = tiny.build()
        twin = tiny.plain_twin(model)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (model, twin)]
        for step in range(3):
            images, samples = tiny.images(seed=step), tiny.samples(seed=step)
            *_, kept = blocked_step(model, images, samples, seed=step)
            plain_step(twin, images, samples, kept, seed=step)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        trained = {k: v for k, v in model.state_dict().items() if not k.startswith('pfb.')}
        assert_close(trained, dict(twin.state_dict()))

    def test_scoring_leaves_model_and_random_numbers_alone(self):
        model = tiny.build()
        modes = {name: module.training for name, module in model.named_modules()}
        before, state = norm_buffers(model), torch.get_rng_state()
        plain_loss = super(PFBMixin, model).loss
        step = BlockedStep(model, tiny.images(), tiny.samples(), plain_loss)
        step.choose()
        step.finish({})
        assert len(model.pfb.selection.indices) == 4
        assert_close(norm_buffers(model), before, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state)
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert all(p.grad is None for p in model.parameters())

    def test_batch_statistics_are_those_of_the_training_pass(self):
        """A layer that scored with running statistics would see other features."""
        model = tiny.build()
        images = tiny.images()
        with scoring_mode(model.backbone):
            vectors = model.pfb.point.score(images)
        with torch.no_grad():
            features = model.backbone(images)[2]
        assert_close(vectors, features.mean((2, 3)))


class DropPath(nn.Module):
    """Stochastic depth: in training a random half of the images loses its residual branch."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        if not self.training:
            return x + self.branch(x)
        survives = torch.rand(len(x), 1, 1, 1) < 0.5
        return x + 2 * survives * self.branch(x)


class TestScoringIsDeterministic:
    @pytest.mark.parametrize(
        'layer',
        [nn.Dropout2d(0.5), nn.Dropout(0.5), DropPath(nn.Conv2d(4, 4, 1))],
        ids=['Dropout2d', 'Dropout', 'DropPath'],
    )
    def test_whatever_drops_out_in_training(self, layer):
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), layer, nn.Conv2d(4, 4, 1))
        point = BlockingPoint(tiny.host(encoder), '2')
        images = tiny.images(size=16)
        with scoring_mode(encoder):
            first, second = point.score(images), point.score(images)
        assert_close(first, second, rtol=0, atol=0)
        assert encoder.training and layer.training


def paper_step(model, images, samples, kept):
    """The paper's formulation, written out: all images through three stages, the kept ones on."""
    backbone = model.backbone
    features = [backbone.maxpool(backbone.stem(images))]
    for name in ('layer1', 'layer2', 'layer3'):
        features.append(getattr(backbone, name)(features[-1]))
    features = [x[kept] for x in features[1:]]
    features.append(backbone.layer4(features[-1]))
    kept_samples = [samples[i] for i in kept]
    losses = {
        **{
            f'decode.{name}': value
            for name, value in model.decode_head.loss(features, kept_samples, {}).items()
        },
        **{
            f'aux.{name}': value
            for name, value in model.auxiliary_head.loss(features, kept_samples, {}).items()
        },
    }
    tiny.total(losses).backward()
    return losses, tiny.gradients(model)


class TestSinglePass:
    @pytest.mark.parametrize('backbone', [{}, {'norm_eval': True}, {'with_cp': True}], ids=str)
    def test_gradients_are_those_of_the_papers_formulation(self, backbone):
        model = tiny.build({'strategy': 'single_pass'}, head={'dropout_ratio': 0}, **backbone)
        model.double()
        twin = tiny.plain_twin(model, head={'dropout_ratio': 0}, **backbone)
        images, samples = tiny.images(dtype=torch.float64), tiny.samples()
        losses, gradients, kept = blocked_step(model, images, samples)
        assert len(kept) == 4
        expected_losses, expected_gradients = paper_step(twin, images, samples, kept)
        assert_close(losses, expected_losses, rtol=1e-9, atol=1e-12)
        assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-12)
        assert all(gradient.any() for gradient in gradients.values())
        assert_close(norm_buffers(model), norm_buffers(twin))

    @pytest.mark.parametrize('frozen', [False, True], ids=['batch norm', 'frozen norm'])
    def test_pruned_images_matter_through_batch_statistics_only(self, frozen):
        model = tiny.build({'strategy': 'single_pass'}, norm_eval=frozen)
        images = tiny.images().requires_grad_()
        *_, kept = blocked_step(model, images, tiny.samples())
        reach = images.grad.abs().amax(dim=(1, 2, 3))
        pruned = [i for i in range(len(images)) if i not in kept]
        assert (reach[kept] > 0).all()
        assert (reach[pruned] == 0).all() if frozen else (reach[pruned] > 0).all()

    def test_blocked_step_differs_from_the_full_one(self):
        model = tiny.build({'strategy': 'single_pass'})
        twin = tiny.plain_twin(model)
        images, samples = tiny.images(), tiny.samples()
        _, gradients, _ = blocked_step(model, images, samples)
        _, full = plain_step(twin, images, samples, range(8))
        with pytest.raises(AssertionError):
            assert_close(gradients, full)


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
class TestNothingPruned:
    def check(self, model):
        twin = tiny.plain_twin(model)
        images, samples = tiny.images(), tiny.samples()
        losses, gradients, kept = blocked_step(model, images, samples)
        assert kept == list(range(8))
        expected_losses, expected_gradients = plain_step(twin, images, samples, kept)
        assert_close(losses, expected_losses, rtol=0, atol=0)
        assert_close(gradients, expected_gradients, rtol=0, atol=0)
        assert_close(norm_buffers(model), norm_buffers(twin), rtol=0, atol=0)

    def test_ratio_of_zero_is_a_plain_step(self, strategy):
        self.check(tiny.build({'strategy': strategy, 'prune_ratio': 0}))

    def test_step_that_seeds_the_estimator_is_a_plain_step(self, strategy):
        model = tiny.build({'strategy': strategy})
        model.pfb.pruner.criterion = Rare(dict(num_centroids=64, dim=8))
        self.check(model)
        assert model.pfb.selection is not None and not model.pfb.pruner.ready

    def test_switched_off_is_a_plain_step(self, strategy):
        model = tiny.build({'strategy': strategy})
        model.pfb.pruning = False
        self.check(model)
        assert model.pfb.selection is None
