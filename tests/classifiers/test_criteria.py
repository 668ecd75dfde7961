"""What criteria and InfoBatch learn of a classifier's images, against the images taken alone."""

import copy

import pytest
import tiny_classifier
import torch
from mmpretrain.structures import DataSample, MultiTaskDataSample
from torch.nn import functional as F

from pfb_mmseg.compare.image_weights import ImageWeights
from pfb_mmseg.models.classification.exits import class_shares

SMOOTH = dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=5))
SOFT = dict(loss=dict(type='CrossEntropyLoss', use_soft=True, loss_weight=2.0))
SEVERAL = dict(type='MultiLabelLinearClsHead')
ARCFACE = dict(type='ArcFaceClsHead')


def several_samples(num=8):
    out = tiny_classifier.samples(num)
    out[1].set_gt_label([0, 2, 4])
    return out


KINDS = pytest.mark.parametrize(
    ('head', 'samples'),
    [
        ({}, tiny_classifier.samples),
        (SMOOTH, tiny_classifier.samples),
        (SMOOTH, tiny_classifier.mixed_samples),
        (SOFT, tiny_classifier.mixed_samples),
        (SEVERAL, several_samples),
    ],
    ids=['classes', 'smoothed classes', 'smoothed mixtures', 'mixtures', 'several classes'],
)


def alone(model, samples):
    """Loss of each image in a step of its own in eval mode, and the gradient of the last layer."""
    model.eval()
    losses, gradients = [], []
    for image, sample in zip(tiny_classifier.images(), samples, strict=True):
        loss = model.loss(image[None], [sample])['loss']
        gradients.append(torch.autograd.grad(loss, model.head.fc.weight)[0].flatten())
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(gradients)


class Remember:
    """A criterion's observation of the last step."""

    def __init__(self, model, monkeypatch):
        criterion = model.pfb.pruner.criterion
        observe = criterion.observe
        self.seen = None

        def remember(candidates):
            self.seen = observe(candidates)
            return self.seen

        monkeypatch.setattr(criterion, 'observe', remember)


@KINDS
def test_loss_topk_keeps_the_images_of_highest_loss(head, samples):
    model = tiny_classifier.build(dict(criterion='loss_topk'), head)
    expected, _ = alone(tiny_classifier.plain_twin(model, head), samples())
    model.loss(tiny_classifier.images(), samples())
    selection = model.pfb.selection
    torch.testing.assert_close(selection.score, expected)
    assert selection.indices.tolist() == sorted(expected.argsort()[4:].tolist())


@KINDS
def test_divbs_reads_the_gradient_of_the_last_layer(head, samples, monkeypatch):
    model = tiny_classifier.build(dict(criterion='divbs'), head)
    _, expected = alone(tiny_classifier.plain_twin(model, head), samples())
    observed = Remember(model, monkeypatch)
    model.loss(tiny_classifier.images(), samples())
    torch.testing.assert_close(observed.seen, expected)


class TestHard:
    @staticmethod
    def exit_losses(layers, features, targets, several=False):
        """Of standardised features, in float64."""
        layer = layers[1]
        features = (features - features.mean(0)) / (features.var(0, correction=0) + 1e-5).sqrt()
        scores = features @ layer.weight.double().T + layer.bias.double()
        if several:
            chance = scores.sigmoid()
            return -(targets * chance.log() + (1 - targets) * (1 - chance).log()).sum(1)
        return -(targets * scores.log_softmax(1)).sum(1)

    @staticmethod
    def watch(model):
        seen = []
        model.backbone.layer1.register_forward_hook(
            lambda module, args, output: seen.append(output.detach().mean((2, 3)))
        )
        return seen

    @pytest.mark.parametrize('weight', [None, 0])
    @pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
    @KINDS
    def test_the_highest_losses_of_the_exit_stay_and_those_of_all_teach(
        self, head, samples, strategy, weight
    ):
        options = dict(criterion='hard', strategy=strategy, exit_loss_weight=weight)
        model = tiny_classifier.warm(tiny_classifier.build(options, head), samples())
        layers = copy.deepcopy(model.pfb.exit.layers)
        seen = self.watch(model)
        targets = torch.zeros(8, 5).double()
        for row, sample in zip(targets, samples(), strict=True):
            if 'gt_score' in sample:
                row[:] = sample.gt_score
            else:
                row[sample.gt_label] = 1
        losses = model.loss(tiny_classifier.images(), samples())
        features = seen[0].double().requires_grad_()
        expected = self.exit_losses(layers, features, targets, head is SEVERAL)
        kept = expected.argsort()[4:].sort().values
        selection = model.pfb.selection
        torch.testing.assert_close(selection.score.double(), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(selection.indices, kept)
        if weight == 0:
            assert 'exit.loss_ce' not in losses
            return
        taught = losses['exit.loss_ce']
        torch.testing.assert_close(taught.double(), expected.mean(), atol=1e-4, rtol=1e-4)
        taught.backward()
        learnt = {name.split('.')[1] for name, p in model.named_parameters() if p.grad is not None}
        assert learnt == {'conv1', 'norm1', 'bn1', 'layer1'} & {
            name.split('.')[1] for name, _ in model.named_parameters()
        }

    def test_an_image_of_nan_goes_first_and_spoils_no_other(self):
        model = tiny_classifier.build(dict(criterion='hard', prune_ratio=0.25))
        tiny_classifier.warm(model)
        # In eval mode: BatchNorm would spread the NaN itself.
        images = tiny_classifier.images()
        for norm in model.backbone.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()
        images[3] = float('nan')
        losses = model.loss(images, tiny_classifier.samples())
        assert 3 not in model.pfb.selection.indices
        assert losses['exit.loss_ce'].isfinite()
        assert model.state_dict()['pfb._extra_state'][1:].view(torch.float32).isfinite().all()

    def test_a_classifier_has_no_auxiliary_head(self):
        with pytest.raises(ValueError, match="exit='auxiliary': classifiers have no auxiliary"):
            tiny_classifier.build(dict(criterion='hard', exit='auxiliary'))


class TestRefusals:
    TASKS = dict(
        type='MultiTaskHead',
        task_heads=dict(
            a=dict(type='LinearClsHead', num_classes=5),
            b=dict(type='LinearClsHead', num_classes=3),
        ),
    )
    SEESAW = dict(loss=dict(type='SeesawLoss', num_classes=5))

    @pytest.mark.parametrize('criterion', ['loss_topk', 'divbs'])
    def test_losses_that_count_over_the_run(self, criterion):
        model = tiny_classifier.build(dict(criterion=criterion), self.SEESAW)
        with pytest.raises(ValueError, match='SeesawLoss in LinearClsHead.*keeps cum_samples'):
            model.loss(tiny_classifier.images(), tiny_classifier.samples())

    def test_divbs_without_one_linear_layer(self):
        model = tiny_classifier.build(dict(criterion='divbs'), ARCFACE)
        with pytest.raises(ValueError, match='one linear layer .* which ArcFaceClsHead lacks'):
            model.loss(tiny_classifier.images(), tiny_classifier.samples())

    @pytest.mark.parametrize(
        ('criterion', 'sentence'),
        [
            ('hard', 'MultiTaskHead does not tell the number'),
            ('loss_topk', 'MultiTaskHead of PFBImageClassifier has no loss_module'),
        ],
    )
    def test_several_tasks(self, criterion, sentence):
        with pytest.raises(ValueError, match=sentence):
            model = tiny_classifier.build(dict(criterion=criterion), self.TASKS)
            model.loss(tiny_classifier.images(), self.samples())

    def test_heads_without_image_losses_train_with_what_needs_none(self):
        model = tiny_classifier.build(dict(criterion='rare'), self.TASKS)
        losses = model.loss(tiny_classifier.images(), self.samples())
        kept = model.pfb.selection.indices
        twin = tiny_classifier.plain_twin(model, self.TASKS)
        expected = twin.loss(
            tiny_classifier.images()[kept], tiny_classifier.some_of(self.samples(), kept)
        )
        assert len(kept) == 4 and {'a_loss', 'b_loss'} <= set(losses)
        torch.testing.assert_close(losses, expected)
        model = tiny_classifier.build(dict(criterion='loss_topk'), ARCFACE)
        model.loss(tiny_classifier.images(), tiny_classifier.samples())
        assert len(model.pfb.selection.indices) == 4

    @staticmethod
    def samples():
        out = []
        for index in range(8):
            sample = MultiTaskDataSample()
            sample.set_field(DataSample().set_gt_label(index % 5), 'a')
            sample.set_field(DataSample().set_gt_label(index % 3), 'b')
            out.append(sample)
        return out


class TestImageWeights:
    def build(self, head):
        model = tiny_classifier.build(head=head, model_type='ImageClassifier')
        return model, ImageWeights(model)

    @KINDS
    def test_each_image_counts_with_its_weight_and_tells_its_loss(self, head, samples):
        model, weigher = self.build(head)
        model.eval()
        expected, _ = alone(tiny_classifier.plain_twin(model, head), samples())
        weights = torch.tensor([1.0, 2, 1, 2, 1, 1, 2, 1], dtype=torch.float64)
        weigher.weights = weights
        loss = model.loss(tiny_classifier.images(), samples())['loss']
        torch.testing.assert_close(loss, (expected * weights.float()).mean())
        torch.testing.assert_close(weigher.take_losses(), expected)

    def test_without_weights_it_is_the_plain_classifier(self):
        model, weigher = self.build({})
        twin = tiny_classifier.plain_twin(model)
        images, samples = tiny_classifier.images(), tiny_classifier.samples()
        assert torch.equal(model.loss(images, samples)['loss'], twin.loss(images, samples)['loss'])
        with pytest.raises(RuntimeError, match='weighted no loss of single images'):
            weigher.take_losses()

    def test_a_batch_of_another_size_is_refused(self):
        model, weigher = self.build({})
        weigher.weights = torch.ones(3)
        with pytest.raises(ValueError, match='3 weights for 8 images'):
            model.loss(tiny_classifier.images(), tiny_classifier.samples())


def test_label_shares_of_classes_and_of_mixtures():
    samples = several_samples(3)
    expected = torch.stack([F.one_hot(torch.tensor(0), 5)] * 3).float()
    expected[1] = torch.tensor([1.0, 0, 1, 0, 1])
    expected[2] = F.one_hot(torch.tensor(4), 5)
    assert torch.equal(class_shares(samples, 5), expected)
    with pytest.raises(ValueError, match='gt_label or gt_score, which a data sample lacks'):
        class_shares([DataSample()], 5)
