"""The page on custom models runs as it stands, and hosts other than segmentors train."""

import re
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, LabelData, PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import pfb_mmseg

PAGE = Path(pfb_mmseg.__file__).parent / 'hosts' / 'README.md'


@pytest.fixture(scope='module')
def page(request):
    """Everything that the page defines, after its code has run from top to bottom."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    code = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S)
    assert len(code) == 7
    printed = []
    names = {'__name__': 'page', 'print': printed.append}
    try:
        for block in code:
            exec(compile(block, str(PAGE), 'exec'), names)
        yield {**names, 'printed': printed}
    finally:
        for name in ('PFBMySegmentor', 'PFBDepthEstimator'):
            MODELS.module_dict.pop(name, None)
        pfb_mmseg.blocking.FAMILIES.pop('MyBackbone', None)
        pfb_mmseg.models.TASKS.pop('Classifier', None)


def seed(model):
    estimator = model.pfb.pruner.estimator
    model.pfb.prepare()
    estimator.update(torch.randn(estimator.num_centroids, estimator.dim))


def test_the_classifier_of_the_page_prunes_from_the_second_step_on(page):
    assert page['printed'] == ['trained on 8 of 8 images', 'trained on 4 of 8 images']


def test_the_task_of_the_page_tells_the_losses_of_its_images(page):
    options = dict(prune_ratio=0.5, block_after='backbone.3', criterion='loss_topk')
    model = page['PFBClassifier'](num_classes=4, pfb=options).train()
    labels = list(torch.arange(8) % 4)
    model.loss(tiny.images(), labels)
    expected = torch.nn.functional.cross_entropy(
        model(tiny.images()), torch.stack(labels), reduction='none'
    )
    kept = expected.argsort()[4:].sort().values
    assert torch.equal(model.pfb.selection.indices, kept)


def test_a_model_of_no_known_kind_tells_no_losses():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1))

    class Blocked(pfb_mmseg.PFBMixin, Plain):
        pass

    with pytest.raises(ValueError, match='Blocked has no loss .*Use a criterion that does without'):
        Blocked(pfb=dict(prune_ratio=0.5, criterion='hard'))


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_the_segmentor_of_the_page_trains(page, strategy):
    model = MODELS.build({**page['model'], 'pfb': {**page['model']['pfb'], 'strategy': strategy}})
    seed(model)
    losses = model.train().loss(tiny.images(), tiny.samples())
    total = tiny.total(losses)
    total.backward()
    assert total.isfinite()
    assert len(model.pfb.selection.indices) == 4
    assert model.backbone.stem[0].weight.grad.any()


def test_the_depth_estimator_of_the_page_trains_on_depth_maps_of_the_kept_images(page):
    model = MODELS.build(
        dict(
            type='PFBDepthEstimator',
            pfb=dict(prune_ratio=0.5),
            backbone=dict(type='ResNet', depth=18, base_channels=16),
            decode_head=dict(
                type='VPDDepthHead',
                in_channels=[16, 32, 64, 128],
                embed_dim=16,
                feature_dim=128,
                num_deconv_filters=(16, 16, 16),
            ),
        )
    )
    assert isinstance(model, page['DepthEstimator'])
    seed(model)
    samples = [
        SegDataSample(gt_depth_map=PixelData(data=torch.full((1, 64, 64), 1.0 + index)))
        for index in range(8)
    ]
    seen = []
    stack = model.decode_head._stack_batch_gt
    model.decode_head._stack_batch_gt = lambda kept: seen.append(stack(kept)) or seen[-1]
    loss = tiny.total(model.train().loss(tiny.images(), samples))
    loss.backward()
    assert loss.isfinite()
    kept = model.pfb.selection.indices
    assert len(kept) == 4
    assert seen[0][:, 0, 0, 0].tolist() == [1.0 + index for index in kept.tolist()]


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
@pytest.mark.parametrize(
    'wrap',
    [lambda label: BaseDataElement(gt_label=LabelData(label=label)), lambda label: label],
    ids=['data elements', 'tensors'],
)
def test_a_classifier_gets_the_labels_of_the_images_it_is_trained_on(page, wrap, strategy):
    seen = {}

    class Host(page['Classifier']):
        def loss(self, inputs, data_samples):
            logits = self.forward(inputs)
            seen['rows'] = len(logits)
            seen['labels'] = [
                int(sample.gt_label.label if isinstance(sample, BaseDataElement) else sample)
                for sample in data_samples
            ]
            return dict(loss=logits.logsumexp(1).mean())

    class Blocked(page['PFBMixin'], Host):
        pass

    model = Blocked(
        num_classes=4, pfb=dict(prune_ratio=0.5, block_after='backbone.3', strategy=strategy)
    ).train()
    seed(model)
    labels = torch.arange(8)
    losses = model(tiny.images(), [wrap(label) for label in labels], mode='loss')
    losses['loss'].backward()
    assert seen['rows'] == 4
    assert seen['labels'] == model.pfb.selection.indices.tolist()
    assert model.backbone[0].weight.grad.any()
