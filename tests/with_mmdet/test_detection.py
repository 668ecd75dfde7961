"""A detector of MMDetection is a host like any other, as docs/guide/detection.md shows."""

import time

import mmdet.models
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

import pfb_mmseg  # noqa: F401  registers PFBHook
from pfb_mmseg import PFBMixin
from pfb_mmseg.blocking import BlockingPoint, RunsTwice, SinglePass

RARE = dict(type='rare', estimator=dict(num_centroids=4, dim=8))


@MODELS.register_module()
class MyDetector(PFBMixin, mmdet.models.RetinaNet):
    """RetinaNet that trains on some images of each batch."""


class Boxes(Dataset):
    """Images of two sizes, with as many boxes on each."""

    metainfo = dict(classes=('one', 'other'))

    def __len__(self):
        return 16

    def __getitem__(self, index):
        size = (64, 64) if index % 2 else (48, 64)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_path=f'{index}.png',
                img_shape=size,
                ori_shape=size,
                scale_factor=(1.0, 1.0),
            )
        )
        boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0], [20.0, 10.0, 60.0, 44.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]))
        return dict(inputs=image, data_samples=sample)


def config(work_dir, **pfb):
    """Two iterations of a small RetinaNet on noise."""
    model = dict(
        type='MyDetector',
        pfb=dict(prune_ratio=0.5, **pfb),
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=32
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
        neck=dict(
            type='FPN',
            in_channels=[8, 16, 32, 64],
            out_channels=16,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss'),
            loss_bbox=dict(type='L1Loss'),
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, ignore_iof_thr=-1
            ),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
    )
    return dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=8,
            dataset=Boxes(),
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=10),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.001)),
        custom_hooks=[dict(type='PFBHook', begin=0.0, end=1.0)],
        default_scope='mmdet',
        experiment_name=f'test-{time.perf_counter_ns()}',
        log_level='WARNING',
    )


@pytest.fixture(autouse=True)
def scope():
    """Tests of other models build theirs in the scope of MMSegmentation."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.mark.parametrize('criterion', [RARE, 'random'], ids=['rare', 'random'])
@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_a_detector_trains_on_some_images_of_each_batch(tmp_path, criterion, strategy):
    runner = Runner(**config(tmp_path, criterion=criterion, strategy=strategy))
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2
    assert runner.model.pfb.selection.num_kept == 4
    weights = dict(runner.model.named_parameters())
    assert not torch.equal(weights['backbone.conv1.weight'], before['backbone.conv1.weight'])
    assert all(value.isfinite().all() for value in weights.values())


def test_an_early_exit_is_refused_where_the_model_is_built(tmp_path):
    with pytest.raises(ValueError, match='MyDetector has no loss of single images'):
        Runner(**config(tmp_path, criterion='hard'))


def test_a_pyramid_vision_transformer_is_blocked_behind_a_stage(tmp_path):
    options = config(tmp_path, criterion=RARE)
    options['model']['backbone'] = dict(
        type='PyramidVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1]
    )
    options['model']['neck']['in_channels'] = [8, 16, 40, 64]
    runner = Runner(**options)
    runner.train()
    point = runner.model.pfb.point
    assert point.path == 'backbone.layers.2.2' and point.num_channels == 40


def test_an_encoder_that_folds_its_images_gets_images_of_colour(tmp_path):
    options = config(tmp_path, criterion=RARE)
    options['model']['backbone'] = dict(
        type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125, out_indices=(1, 2, 3, 4)
    )
    options['model']['neck']['in_channels'] = [16, 32, 64, 128]
    runner = Runner(**options)
    runner.train()
    assert runner.model.pfb.point.input_shape == (3, 128, 256)


def test_tridents_branches_are_refused_in_a_single_pass():
    backbone = MODELS.build(
        dict(
            type='TridentResNet',
            depth=50,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
            base_channels=8,
            trident_dilations=(1, 2, 3),
            num_branch=3,
            test_branch_idx=1,
        )
    )
    backbone.train()
    model = torch.nn.Module()
    model.backbone = backbone
    point = BlockingPoint(model, 'layer2')
    with pytest.raises(RunsTwice, match="branches that share weights.*use strategy='two_pass'"):
        with SinglePass(point).cut(lambda output: torch.tensor([0, 2])):
            backbone(torch.rand(4, 3, 64, 64))
