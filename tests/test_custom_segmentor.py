"""Models of one's own: PFBMixin in front of any model with an encoder and a loss."""

import pytest
import tiny
import torch
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, LabelData, PixelData
from mmseg.models.segmentors import DepthEstimator
from mmseg.structures import SegDataSample
from torch import nn

from pfb_mmseg import PFBMixin
from pfb_mmseg.models import TASKS, Task

RARE = dict(type='rare', estimator=dict(num_centroids=8))


class Classifier(BaseModel):
    """Nothing but a backbone and a loss; remembers what it was trained on."""

    def __init__(self):
        super().__init__()
        widths = (3, 8, 16, 32)
        self.backbone = nn.Sequential(
            *(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Linear(32, 8)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.head(self.backbone(inputs).mean(dim=(2, 3)))

    def loss(self, inputs, data_samples):
        logits = self.forward(inputs)
        self.labels = torch.stack(
            [
                sample.gt_label.label if isinstance(sample, BaseDataElement) else sample
                for sample in data_samples
            ]
        ).flatten()
        return dict(loss=nn.functional.cross_entropy(logits, self.labels))


class PFBClassifier(PFBMixin, Classifier):
    pass


def classifier(**pfb):
    return PFBClassifier(pfb=dict(prune_ratio=0.5, block_after='backbone.1', **pfb)).train()


def seeded(model):
    model.pfb.prepare()
    model.pfb.estimator.update(torch.randn(model.pfb.estimator.num_centroids, 16))
    return model


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
@pytest.mark.parametrize(
    'wrap',
    [lambda label: BaseDataElement(gt_label=LabelData(label=label)), lambda label: label],
    ids=['data elements', 'tensors'],
)
def test_a_classifier_gets_the_labels_of_the_images_it_is_trained_on(wrap, strategy):
    model = seeded(classifier(criterion=RARE, strategy=strategy))
    losses = model(tiny.images(), [wrap(torch.tensor(i)) for i in range(8)], mode='loss')
    losses['loss'].backward()
    assert len(model.labels) == 4
    assert model.labels.tolist() == model.pfb.selection.indices.tolist()
    assert model.backbone[0].weight.grad.any()


def test_a_task_tells_the_losses_of_its_images():
    class ClassifierTask(Task):
        def losses(self, images, data_samples):
            labels = torch.stack(data_samples)
            return nn.functional.cross_entropy(self.model(images), labels, reduction='none')

    TASKS['Classifier'] = ClassifierTask
    try:
        model = classifier(criterion='loss_topk')
        labels = list(torch.arange(8))
        logits = model(tiny.images())
        expected = nn.functional.cross_entropy(logits, torch.stack(labels), reduction='none')
        model.loss(tiny.images(), labels)
        assert model.labels.tolist() == sorted(expected.argsort()[4:].tolist())
    finally:
        del TASKS['Classifier']


def test_a_model_of_no_known_kind_tells_no_losses():
    for options in (dict(criterion='hard'), dict(criterion='random', exit_loss_weight=1)):
        with pytest.raises(ValueError, match='Classifier has no loss .*a criterion that does'):
            classifier(**options)


def test_a_depth_estimator_trains_on_the_depth_maps_of_the_images_that_stay():
    init_default_scope('mmseg')
    torch.manual_seed(0)

    class PFBDepthEstimator(PFBMixin, DepthEstimator):
        pass

    def build(**pfb):
        return PFBDepthEstimator(
            pfb=dict(prune_ratio=0.5, **pfb),
            backbone=dict(type='ResNet', depth=18, base_channels=16),
            decode_head=dict(
                type='VPDDepthHead',
                in_channels=[16, 32, 64, 128],
                embed_dim=16,
                feature_dim=128,
                num_deconv_filters=(16, 16, 16),
            ),
        )

    with pytest.raises(ValueError, match="VPDDepthHead of PFBDepthEstimator predicts none.*'rare'"):
        build(criterion='hard')
    model = build(criterion='random').train()
    samples = [
        SegDataSample(gt_depth_map=PixelData(data=torch.full((1, 64, 64), 1.0 + index)))
        for index in range(8)
    ]
    seen = []
    stack = model.decode_head._stack_batch_gt
    model.decode_head._stack_batch_gt = lambda kept: seen.append(stack(kept)) or seen[-1]
    loss = tiny.total(model.loss(tiny.images(), samples))
    loss.backward()
    assert loss.isfinite()
    kept = model.pfb.selection.indices.tolist()
    assert len(kept) == 4
    assert seen[0][:, 0, 0, 0].tolist() == [1.0 + index for index in kept]
