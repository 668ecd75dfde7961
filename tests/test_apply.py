"""Segmentors without a PFB class of their own: it is made on the spot, anew from each config."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import tiny
import torch
from demo_runs import ROOT, demo_config
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.models.segmentors import BaseSegmentor, DepthEstimator, MultimodalEncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from pfb_mmseg import PFBMixin, apply_pfb
from pfb_mmseg.convert.apply import blocked_class, remove_pfb
from pfb_mmseg.models.description import describe


@pytest.fixture
def registered():
    """Registers classes with mmseg for the time of a test."""
    names = []

    def register(cls):
        MODELS.register_module(module=cls)
        names.append(cls.__name__)
        return cls

    yield register
    for name in names:
        MODELS.module_dict.pop(name)


def depth_cfg():
    return dict(
        type='DepthEstimator',
        backbone=dict(type='ResNet', depth=18, base_channels=16),
        decode_head=dict(
            type='VPDDepthHead',
            in_channels=[16, 32, 64, 128],
            embed_dim=16,
            feature_dim=128,
            num_deconv_filters=(16, 16, 16),
        ),
    )


def depth_samples(num=8):
    return [
        SegDataSample(gt_depth_map=PixelData(data=torch.full((1, 64, 64), 1.0 + index)))
        for index in range(num)
    ]


def blocked(model_cfg, **pfb):
    """The model of a plain config after --prune-ratio 0.5, from the text that a run writes down."""
    cfg = Config(dict(default_scope='mmseg', model=model_cfg))
    apply_pfb(cfg, 0.5)
    cfg.model.pfb.update(criterion='random', **pfb)
    cfg = Config.fromstring(cfg.pretty_text, '.py')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(cfg.model).train(), cfg


def test_a_depth_estimator_trains_on_the_kept_images_and_resumes():
    model, cfg = blocked(depth_cfg())
    assert cfg.model.type == 'PFBModel' and cfg.model.host == 'DepthEstimator'
    assert (
        isinstance(model, (PFBMixin, DepthEstimator))
        and type(model).__name__ == 'PFBDepthEstimator'
    )
    twin = MODELS.build(depth_cfg()).train()
    twin.load_state_dict(model.state_dict(), strict=False)
    losses = model.loss(tiny.images(), depth_samples())
    kept = model.pfb.selection.indices
    assert len(kept) == 4
    expected = twin.loss(tiny.images()[kept], [depth_samples()[i] for i in kept.tolist()])
    torch.testing.assert_close(losses, expected)
    again = MODELS.build(cfg.model)
    assert type(again) is type(model)
    again.load_state_dict(model.state_dict())
    copy.deepcopy(model)  # as EMA does


@pytest.mark.parametrize('exit', ['own', 'auxiliary'])
@pytest.mark.parametrize('copied', [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_model_of_a_class_made_on_the_spot_is_copied_and_pickled(copied, exit):
    init_default_scope('mmseg')
    pfb = dict(criterion='hard', exit=exit)
    cfg = tiny.model_cfg('PFBModel', pfb, dict(dropout_ratio=0)) | dict(host='EncoderDecoder')
    model = tiny.warm(MODELS.build(cfg).train())
    again = copied(model)
    assert type(again) is type(model) is not EncoderDecoder
    assert again.pfb.point.host is again and again.pfb.exit.point.host is again
    for one in (model, again):
        tiny.total(one.loss(tiny.images(), tiny.samples())).backward()
    torch.testing.assert_close(tiny.gradients(again), tiny.gradients(model), rtol=0, atol=0)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


MY_SEGMENTOR = """
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

@MODELS.register_module()
class MySegmentor(EncoderDecoder):
    pass
"""
RUN = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner

runner = Runner.from_cfg(Config.fromfile(sys.argv[1]))
runner.train()
print('trained', type(runner.model).__name__, runner.model.pfb.quota.prune_ratio)
"""


def test_what_the_command_wrote_down_trains_in_an_interpreter_that_knows_nothing_of_it(tmp_path):
    config = demo_config(tmp_path / 'plain', 4)
    config.model.type = 'MySegmentor'
    config.model.pop('pfb')
    config.custom_hooks = []
    config.custom_imports = dict(imports=['my_segmentor', 'pfb_mmseg'])
    config.dump(tmp_path / 'plain.py')
    (tmp_path / 'my_segmentor.py').write_text(MY_SEGMENTOR)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(tmp_path)])}

    def call(*command):
        command = [sys.executable, *command]
        run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout + run.stderr

    told = call(
        '-m', 'pfb_mmseg.commands', 'train', 'plain.py', '--work-dir', 'ours',
        '--prune-ratio', '0.5', '--cfg-options', 'model.pfb.seed=1',
    )  # fmt: skip
    for change in (
        'model.type: MySegmentor -> PFBModel, host kept in model.host',
        'model.pfb.prune_ratio: not set -> 0.5',
        'model.pfb.criterion: not set -> hard',
    ):
        assert change in told
    written = Config.fromfile(tmp_path / 'ours' / 'plain.py', import_custom_modules=False).model
    assert written.pfb == dict(prune_ratio=0.5, criterion='hard', seed=1)
    told = call('-c', RUN, 'ours/plain.py')
    assert 'trained PFBMySegmentor 0.5' in told


@pytest.mark.parametrize('criterion', ['rare', dict(type='hard', skip=0.1)], ids=str)
def test_the_recommended_criterion_stands_in_for_none_only(criterion):
    cfg = Config(dict(model=tiny.model_cfg('EncoderDecoder')))
    assert 'model.pfb.criterion: not set -> hard' in apply_pfb(cfg, 0.3)
    assert cfg.model.pfb.criterion == 'hard'
    cfg = Config(dict(model=tiny.model_cfg(pfb=dict(criterion=criterion))))
    apply_pfb(cfg, 0.3)
    assert cfg.model.pfb.criterion == criterion


def test_an_encoder_of_another_name_gets_its_images_as_the_model_hands_them_over(
    registered,
):
    @registered
    class Words(nn.Module):
        def forward(self):
            return torch.zeros(5, 4)

    @registered
    class ImageHead(nn.Module):
        """Reads the images too, as SAN's does."""

        align_corners, num_classes, out_channels = False, 5, 5

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(64, 1, 1)

        def forward(self, inputs):
            images, features, words = inputs
            assert len(images) == len(features[-1])
            self.sizes = images.shape[-1], features[-1].shape[-1]
            return self.layer(features[-1]).mean((1, 2, 3)) + words.sum()

        def loss(self, inputs, data_samples, train_cfg):
            assert len(data_samples) == len(inputs[0])
            return dict(loss_seg=self(inputs).square().mean())

    model_cfg = dict(
        type='MultimodalEncoderDecoder',
        image_encoder=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
        text_encoder=dict(type='Words'),
        decode_head=dict(type='ImageHead'),
        asymetric_input=True,
        encoder_resolution=0.5,
    )
    model, cfg = blocked(copy.deepcopy(model_cfg))
    assert isinstance(model, MultimodalEncoderDecoder)
    sizes = []
    model.image_encoder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    model.pfb.pruner.criterion.observe = lambda candidates: candidates.features()[:, 0]
    model.loss(tiny.images(), tiny.samples())['decode.loss_seg'].backward()
    assert len(model.pfb.selection.indices) == 4
    assert sizes[-2:] == [(8, 3, 32, 32), (4, 3, 32, 32)]
    assert 'behind image_encoder.layer3' in describe(model.pfb)
    with pytest.raises(ValueError, match='heads of PFBMultimodalEncoderDecoder read its images'):
        blocked(copy.deepcopy(model_cfg), strategy='single_pass')
    with pytest.raises(ValueError, match="module inside the image_encoder, e.g. 'image_encoder"):
        blocked(copy.deepcopy(model_cfg), block_after='backbone.layer3')


def test_a_segmentor_of_the_users_own_steps_and_an_option_of_its_own_goes_through(registered):
    @registered
    class MySegmentor(EncoderDecoder):
        def __init__(self, *args, factor, **kwargs):
            super().__init__(*args, **kwargs)
            self.factor = factor

        def loss(self, inputs, data_samples):
            losses = super().loss(inputs, data_samples)
            return {name: value * self.factor for name, value in losses.items()}

    model, cfg = blocked({**tiny.model_cfg('MySegmentor'), 'factor': 0.0})
    assert cfg.model.host == 'MySegmentor'
    batch = dict(inputs=list(tiny.images()), data_samples=tiny.samples())
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.train_step(batch, optim_wrapper)['loss'] == 0
    assert len(model.pfb.selection.indices) == 4
    remove_pfb(cfg)
    assert cfg.model.type == 'MySegmentor'
    assert not {'host', 'pfb'} & set(cfg.model) and not cfg.custom_hooks


def test_bookkeeping_that_was_listed_by_hand_goes_with_the_rest():
    hooks = ['mmseg.PFBHook', 'PFBLogHook', 'PFBRecordHook', 'EMAHook']
    cfg = Config(dict(model=tiny.model_cfg(), custom_hooks=[dict(type=name) for name in hooks]))
    remove_pfb(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']


def test_one_that_has_the_mixin_already_stays_as_it_is(registered):
    @registered
    class PFBMine(PFBMixin, EncoderDecoder):
        pass

    assert blocked(tiny.model_cfg('PFBMine'))[1].model.type == 'PFBMine'
    assert blocked_class(PFBMine) is PFBMine


def test_a_class_in_place_of_a_name_is_written_down_so_that_it_is_found_again():
    _, cfg = blocked({**depth_cfg(), 'type': DepthEstimator})
    assert cfg.model.host == 'mmseg.models.segmentors.depth_estimator.DepthEstimator'


def test_a_segmentor_without_an_encoder_is_refused(registered):
    @registered
    class Bare(BaseSegmentor):
        def loss(self, inputs, data_samples):
            return {}

        predict = _forward = extract_feat = encode_decode = loss

    with pytest.raises(ValueError, match='PFBBare has no backbone, inside which'):
        blocked(dict(type='Bare'))


@pytest.mark.parametrize('model_type', ['SegTTAModel', 'FCNHead'])
def test_what_has_no_loss_or_is_no_model_is_refused(model_type):
    cfg = Config(dict(model=dict(type=model_type)))
    with pytest.raises(ValueError, match=rf"'{model_type}' is neither a segmentor .* PFBMixin"):
        apply_pfb(cfg, 0.3)
    assert cfg.to_dict() == dict(model=dict(type=model_type))


def test_a_type_that_nobody_registered_is_refused():
    with pytest.raises(ValueError, match="'NoSuchSegmentor' is not registered.*custom_imports"):
        apply_pfb(Config(dict(model=dict(type='NoSuchSegmentor'))), 0.3)
    init_default_scope('mmseg')
    with pytest.raises(ValueError, match="host='NoSuchSegmentor' is not registered"):
        MODELS.build(dict(type='PFBModel', host='NoSuchSegmentor', pfb=dict(prune_ratio=0.5)))
