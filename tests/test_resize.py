"""Progressive resizing: what becomes of a batch, and when."""

import pytest
import torch
from demo_runs import DEMO_CONFIG, demo_config, train
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.structures import PixelData
from mmseg.registry import HOOKS, MODELS
from mmseg.structures import SegDataSample

from benchmarks.lab.resize import ProgressiveResizeHook, ResizingSegDataPreProcessor
from pfb_mmseg.compare.methods import apply_method


def batch(image, **maps):
    sample = SegDataSample()
    for name, labels in maps.items():
        setattr(sample, name, PixelData(data=labels))
    return dict(inputs=[image], data_samples=[sample])


class TestPreProcessor:
    IMAGE = torch.arange(16.0).view(1, 4, 4).expand(3, 4, 4)
    LABELS = torch.arange(16).view(1, 4, 4)

    def shrunk(self, scale, training=True, size=(4, 4), **maps):
        preprocessor = ResizingSegDataPreProcessor(size=size, seg_pad_val=255)
        preprocessor.train_scale = scale
        data = preprocessor(batch(self.IMAGE, **maps), training)
        return data['inputs'], data['data_samples'][0]

    def test_images_are_averaged_and_labels_picked(self):
        edges = self.LABELS.to(torch.uint8)
        inputs, sample = self.shrunk(0.5, gt_sem_seg=self.LABELS, gt_edge_map=edges)
        assert inputs[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
        assert sample.gt_sem_seg.data.tolist() == [[[5, 7], [13, 15]]]
        assert sample.gt_sem_seg.data.dtype == torch.int64
        assert sample.gt_edge_map.data.tolist() == [[[5, 7], [13, 15]]]
        assert sample.gt_edge_map.data.dtype == torch.uint8
        assert sample.img_shape == sample.gt_sem_seg.shape == inputs.shape[-2:]

    def test_what_was_padded_shrinks_with_the_rest(self):
        inputs, sample = self.shrunk(0.5, size=(8, 4), gt_sem_seg=self.LABELS)
        assert inputs.shape == (1, 3, 4, 2)
        assert sample.gt_sem_seg.data[0, :, 0].tolist() == [5, 13, 255, 255]

    def test_scales_that_leave_a_rest_are_rounded(self):
        inputs, sample = self.shrunk(0.7, gt_sem_seg=self.LABELS)
        assert inputs.shape[-2:] == sample.gt_sem_seg.shape == (3, 3)

    def test_whole_images_and_those_to_be_predicted_are_left_alone(self):
        inputs, sample = self.shrunk(1.0, gt_sem_seg=self.LABELS)
        assert torch.equal(inputs[0], self.IMAGE)
        assert torch.equal(sample.gt_sem_seg.data, self.LABELS)
        inputs, _ = self.shrunk(0.5, training=False, gt_sem_seg=self.LABELS)
        assert torch.equal(inputs[0], self.IMAGE)


@HOOKS.register_module(force=True)
class ShapeHook(Hook):
    """Writes down what the backbone gets in each iteration, and breaks down where it is told to."""

    seen = []

    def __init__(self, fail_at=None):
        self.fail_at = fail_at

    def before_train(self, runner):
        def note(module, args):
            if module.training:
                self.seen.append((runner.iter, *args[0].shape[-2:]))

        self.handle = runner.model.backbone.register_forward_pre_hook(note)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.fail_at:
            raise RuntimeError('the machine went down')

    def after_train(self, runner):
        self.handle.remove()


def config_of(tmp_path, method, **options):
    config = demo_config(tmp_path, max_iters=9, **options)
    config.model.pfb.estimator.num_centroids = 4
    apply_method(config, method, 0.5)
    return config


@pytest.mark.parametrize('method', ['resize', 'resize_pfb'])
def test_the_first_third_of_a_run_sees_half_the_size_also_if_resumed(tmp_path, method):
    ShapeHook.seen.clear()
    config = config_of(tmp_path, method, **{'default_hooks.checkpoint.interval': 1})
    hooks = config.custom_hooks
    config.custom_hooks = [*hooks, dict(type='ShapeHook', fail_at=2)]
    with pytest.raises(RuntimeError, match='the machine went down'):
        train(config)
    assert set(ShapeHook.seen) == {(0, 32, 32), (1, 32, 32)}
    ShapeHook.seen.clear()
    config.custom_hooks = [*hooks, dict(type='ShapeHook')]
    config.resume = True
    runner = train(config)
    assert set(ShapeHook.seen) == {(2, 32, 32), *((t, 64, 64) for t in range(3, 9))}
    assert runner.model.data_preprocessor.train_scale == 1
    if method == 'resize_pfb':
        assert runner.model.pfb.quota.prune_ratio == 0.5


def test_a_resized_model_is_otherwise_the_plain_one():
    config, full = Config.fromfile(DEMO_CONFIG), Config.fromfile(DEMO_CONFIG)
    apply_method(config, 'resize')
    apply_method(full, 'full')
    assert MODELS.get(config.model.data_preprocessor.pop('type')) is ResizingSegDataPreProcessor
    assert config.pop('custom_hooks') == [dict(type='ProgressiveResizeHook')]
    full.model.data_preprocessor.pop('type')
    full.pop('custom_hooks')
    assert config.to_dict() == full.to_dict()


@pytest.mark.parametrize(
    ('options', 'complaint'),
    [
        (dict(scale=1.0), r'scale=1.0: expected a number in \(0, 1\)'),
        (dict(until=0), r'until=0: expected a number in \(0, 1\]'),
    ],
)
def test_ranges_are_checked(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ProgressiveResizeHook(**options)


def test_a_data_preprocessor_that_cannot_resize_is_told_of(tmp_path):
    config = demo_config(tmp_path, custom_hooks=[dict(type='ProgressiveResizeHook')])
    with pytest.raises(ValueError, match="'ResizingSegDataPreProcessor', got SegDataPreProcessor"):
        train(config)
    config.model.data_preprocessor.type = 'MyPreProcessor'
    with pytest.raises(ValueError, match="type='MyPreProcessor': images are resized"):
        apply_method(config, 'resize')
