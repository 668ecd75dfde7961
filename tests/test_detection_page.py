"""The detector of the page trains on half of each batch, where MMDetection can be imported."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from pfb_mmseg import PFBMixin

pytest.importorskip('mmdet.models', exc_type=ImportError, reason='needs MMDetection and mmcv.ops')
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402

PAGE = Path(__file__).parents[1] / 'docs/guide/detection.md'


@pytest.fixture
def build():
    """Builds the detector of the page, small, with options of PFB."""
    [block] = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S)
    names = {'__name__': 'page'}
    exec(compile(block, str(PAGE), 'exec'), names)

    def build(**pfb):
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MODELS.build(model_cfg(pfb)).train()

    yield build
    MODELS.module_dict.pop('MyDetector')


def model_cfg(pfb):
    return dict(
        type='MyDetector',
        pfb=dict(prune_ratio=0.5, **pfb),
        backbone=dict(type='ResNet', depth=18, base_channels=8),
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            out_channels=8,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=8,
            stacked_convs=1,
            feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
    )


def samples(num=8):
    """One box in each image; their classes are 0, 1, 2, 0, ..."""
    shape = dict(img_shape=(64, 64), pad_shape=(64, 64), batch_input_shape=(64, 64))
    boxes = torch.tensor([[4.0, 4, 40, 40]])
    return [
        DetDataSample(
            metainfo=shape,
            gt_instances=InstanceData(bboxes=boxes.clone(), labels=torch.tensor([index % 3])),
        )
        for index in range(num)
    ]


@pytest.mark.parametrize(
    'criterion', ['random', dict(type='rare', estimator=dict(num_centroids=8, dim=8))]
)
def test_it_trains_on_the_boxes_of_the_images_that_stay(build, criterion):
    model = build(criterion=criterion)
    assert isinstance(model, PFBMixin)
    seen = []
    loss = model.bbox_head.loss
    model.bbox_head.loss = lambda features, kept: seen.append(kept) or loss(features, kept)
    batch = samples()
    for _ in range(2):  # the first one seeds the centroids
        losses = model.loss(torch.randn(8, 3, 64, 64), batch)
    assert sum(losses['loss_cls']).isfinite()
    kept = model.pfb.selection.indices.tolist()
    assert len(kept) == 4
    assert [int(one.gt_instances.labels) for one in seen[-1]] == [index % 3 for index in kept]


@pytest.mark.parametrize('pfb', [dict(criterion='hard'), dict(exit_loss_weight=1.0)])
def test_an_early_exit_for_boxes_is_refused(build, pfb):
    with pytest.raises(ValueError):
        build(**pfb)
