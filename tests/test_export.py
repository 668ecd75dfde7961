"""What `pfb export` writes is used where pfb_mmseg is not installed."""

import copy
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from classifier_runs import run_config, write_images
from demo_runs import ROOT, demo_config, train
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain import ImageClassificationInferencer, get_model
from mmseg.apis import inference_model, init_model
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from pfb_mmseg import PFBMixin
from pfb_mmseg.commands.main import read
from pfb_mmseg.compat import find_distributions, why_no_resume
from pfb_mmseg.convert.export import export, plain_config
from pfb_mmseg.demo.scenes import draw_scene

# Imports of pfb_mmseg raise, and so would everything that needs it.
WITHOUT = """
import sys
sys.modules['pfb_mmseg'] = None
import numpy as np
import torch
from mmseg.apis import inference_model, init_model

checkpoint, config, image, out = sys.argv[1:]
model = init_model(config, checkpoint, device='cpu')
torch.save(inference_model(model, np.load(image)).seg_logits.data, out)
"""
WITHOUT_AND_CLASSIFIED = """
import sys
sys.modules['pfb_mmseg'] = None
import numpy as np
import torch
from mmpretrain import ImageClassificationInferencer, get_model

checkpoint, config, image, out = sys.argv[1:]
classify = ImageClassificationInferencer(get_model(config, checkpoint, device='cpu'))
assert classify.classes == ('cat', 'dog', 'owl')
[result] = classify(np.load(image), return_datasamples=True)
torch.save(result.pred_score, out)
"""
REFUSED = why_no_resume(find_distributions(), torch.__version__)


@pytest.fixture(autouse=True)
def way_out():
    """Where MMEngine cannot read back its own checkpoints; what is exported, it can."""
    with mock.patch.dict(os.environ, {'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'} if REFUSED else {}):
        yield


@pytest.fixture(scope='module')
def scene():
    image, _ = draw_scene('night', 'val', 0, (64, 64))
    return image


def predict_without_pfb(exported, image, folder, code=WITHOUT):
    """Logits or scores of a plain model, in a process that cannot import this package."""
    np.save(folder / 'image.npy', image)
    files = [exported.checkpoint, exported.config, folder / 'image.npy', folder / 'logits.pt']
    env = {k: v for k, v in os.environ.items() if k != 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'}
    run = subprocess.run(
        [sys.executable, '-c', code, *files], cwd=folder, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert 'do not match' not in run.stdout + run.stderr
    return torch.load(folder / 'logits.pt')


def config_left_in(run):
    (path,) = run.glob('*.py')
    return Config.fromfile(path)


@pytest.mark.parametrize('variant', ['auxiliary', 'own exit', 'EMA'])
def test_an_exported_run_predicts_bit_for_bit_the_same_without_pfb(variant, tmp_path, scene):
    cfg = demo_config(tmp_path / 'run', max_iters=4)
    if variant == 'own exit':
        cfg.model.pfb = dict(prune_ratio=0.5, criterion='hard', exit='own')
    if variant == 'EMA':
        cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.3))
    train(cfg)
    checkpoint = tmp_path / 'run/iter_4.pth'
    exported = export(checkpoint, tmp_path / 'out')
    assert exported.checkpoint == tmp_path / 'out/iter_4.pth'

    trained = config_left_in(tmp_path / 'run')
    for step in trained.test_pipeline:  # a file or an array, in place of a scene made by code
        step.type = step.type.replace('LoadDemoScene', 'LoadImageFromFile')
        step.type = step.type.replace('LoadDemoLabels', 'LoadAnnotations')
    expected = inference_model(init_model(trained, str(checkpoint), device='cpu'), scene)
    found = predict_without_pfb(exported, scene, tmp_path)
    assert torch.equal(found, expected.seg_logits.data)


@pytest.mark.parametrize('variant', ['density', 'own exit', 'EMA'])
def test_an_exported_classifier_predicts_bit_for_bit_the_same_with_mmpretrain_alone(
    variant, tmp_path
):
    write_images(tmp_path / 'images')
    hooks = [dict(type='EMAHook', momentum=0.3)] if variant == 'EMA' else []
    pfb = dict(criterion='hard') if variant == 'own exit' else None
    config = run_config(tmp_path / 'images', tmp_path / 'run', 2, pfb, hooks)
    train(config)
    checkpoint = tmp_path / 'run/epoch_2.pth'
    exported = export(checkpoint, tmp_path / 'out')
    assert Config.fromfile(exported.config).model.type == 'ImageClassifier'
    assert 'pfb' not in exported.config.read_text().lower()

    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    model = get_model(config_left_in(tmp_path / 'run'), str(checkpoint), device='cpu')
    assert type(model).__name__ != 'ImageClassifier'
    [expected] = ImageClassificationInferencer(model)(image, return_datasamples=True)
    found = predict_without_pfb(exported, image, tmp_path, WITHOUT_AND_CLASSIFIED)
    assert torch.equal(found, expected.pred_score)


def test_of_a_data_set_that_is_left_out_the_pipeline_stays_for_mmpretrain_to_predict_with():
    config = 'benchmarks/configs/cifar10/resnet18-small_pfb-p50_1xb128-8e_cifar10-jpeg.py'
    cfg = Config.fromfile(ROOT / config)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.type = 'PFBDemoDataset'
    changes = plain_config(cfg)
    assert 'train_dataloader' not in cfg and 'test_evaluator' not in cfg
    assert cfg.test_dataloader == dict(dataset=dict(pipeline=[dict(type='PackInputs')]))
    assert any('test data left out' in change for change in changes)


def test_nothing_of_pfb_or_of_training_is_left_and_what_went_is_told(run, tmp_path):
    exported = export(run / 'iter_4.pth', tmp_path / 'new' / 'model.pth')
    assert exported.config == tmp_path / 'new' / 'model.py'
    before = torch.load(run / 'iter_4.pth', weights_only=False)
    # Plain data: what torch reads without being told to trust it.
    after = torch.load(exported.checkpoint, weights_only=True)
    assert after.keys() == {'meta', 'state_dict'}
    weights = {k: v for k, v in before['state_dict'].items() if not k.startswith('pfb.')}
    plain = MODELS.build(Config.fromfile(exported.config).model)
    plain.load_state_dict(after['state_dict'], strict=True)
    blocked = MODELS.build(config_left_in(run).model)
    blocked.load_state_dict(plain.state_dict(), strict=True)
    assert after['state_dict'].keys() == weights.keys() < before['state_dict'].keys()
    assert all(torch.equal(after['state_dict'][key], weights[key]) for key in weights)
    assert after['meta']['dataset_meta'] == before['meta']['dataset_meta']
    for text in (exported.config.read_text(), after['meta']['cfg']):
        assert 'pfb' not in text.lower() and 'Demo' not in text
    told = '\n'.join(exported.changes)
    for change in (
        'model.type: PFBEncoderDecoder -> EncoderDecoder',
        'custom_imports: pfb_mmseg left out',
        'test_pipeline.0.type: LoadDemoScene -> LoadImageFromFile',
        'test data left out',
        'entries of PFB left out',
        'optimizer, param_schedulers, pfb left out',
    ):
        assert change in told


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work dir of a short run with PFB."""
    folder = tmp_path_factory.mktemp('run')
    train(demo_config(folder, max_iters=4))
    return folder


def test_files_that_are_there_are_left_alone_unless_it_is_asked_for(run, tmp_path):
    (tmp_path / 'iter_4.py').write_text('mine = True')
    with pytest.raises(FileExistsError, match='iter_4.py is there already'):
        export(run / 'iter_4.pth', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['iter_4.py']
    exported = export(run / 'iter_4.pth', tmp_path, overwrite=True)
    assert 'mine' not in exported.config.read_text()
    with pytest.raises(FileExistsError, match='is the checkpoint itself'):
        export(run / 'iter_4.pth', run, overwrite=True)


def test_a_checkpoint_without_a_config_is_exported_with_one_that_is_given(run, tmp_path):
    checkpoint = torch.load(run / 'iter_4.pth', weights_only=False)
    torch.save(checkpoint['state_dict'], tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='has no state_dict'):
        export(tmp_path / 'weights.pth', tmp_path / 'out')
    del checkpoint['meta']['cfg']
    torch.save(checkpoint, tmp_path / 'bare.pth')
    with pytest.raises(ValueError, match='keeps no config'):
        export(tmp_path / 'bare.pth', tmp_path / 'out')
    config = config_left_in(run)
    exported = export(tmp_path / 'bare.pth', tmp_path / 'out', config)
    assert config.model.type == 'PFBEncoderDecoder'  # the caller's is his
    assert Config.fromfile(exported.config).model.type == 'EncoderDecoder'
    for option, value in (('num_convs', 3), ('channels', 4)):
        other = copy.deepcopy(config)
        other.model.decode_head[option] = value
        with pytest.raises(ValueError, match='config and checkpoint do not belong together'):
            export(tmp_path / 'bare.pth', tmp_path / 'other', other)
    config.model.type = 'NoSuchSegmentor'
    with pytest.raises(ValueError, match='cannot be built: .*NoSuchSegmentor'):
        export(tmp_path / 'bare.pth', tmp_path / 'other', config)
    assert not (tmp_path / 'other').exists()


def test_the_command_tells_what_it_did_and_ends_in_a_sentence_where_it_cannot(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(run / 'iter_4.pth')
    read(['export', checkpoint, 'out'])()
    told = capsys.readouterr().out
    assert 'model.type: PFBEncoderDecoder -> EncoderDecoder' in told
    assert 'Checkpoint: out/iter_4.pth   config: out/iter_4.py' in told
    (tmp_path / 'file').touch()
    for arguments, sentence in (
        (['absent.pth', 'out'], "checkpoint 'absent.pth' is not a file"),
        ([checkpoint, 'out'], 'out/iter_4.pth is there already'),
        ([checkpoint, 'file'], 'file is a file: name a folder'),
        ([checkpoint, 'new', '--config', 'fcn_r18-d8_1xb16-300i_demo-64x64'], 'belong together'),
        ([checkpoint, 'new', '--cfg-options', 'a=1'], '--config names'),
    ):
        with pytest.raises(SystemExit) as stop:
            read(['export', *arguments])()
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / 'elsewhere.py').write_text("custom_imports = dict(imports=['elsewhere_too'])")
    with pytest.raises(SystemExit):
        read(['export', checkpoint, 'new', '--config', 'elsewhere.py'])()
    assert 'elsewhere_too' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()
    read(['export', checkpoint, 'out', '--overwrite'])()


@pytest.mark.parametrize(
    'path', sorted(ROOT.glob('configs/[!_]*/*.py')), ids=lambda path: path.stem
)
def test_every_config_is_turned_back(path):
    if path.parent.name == 'mask2former':
        pytest.importorskip('mmdet')
    cfg = Config.fromfile(path)
    before = copy.deepcopy(cfg)
    plain_config(cfg)
    init_default_scope(before.default_scope)
    kind = {'mmseg': 'EncoderDecoder', 'mmpretrain': 'ImageClassifier'}[before.default_scope]
    assert type(MODELS.build(copy.deepcopy(cfg.model))).__name__ == kind
    assert 'pfb' not in cfg.pretty_text.lower().replace(path.stem, '')
    if path.parent.name in ('cityscapes', 'voc12aug'):  # can be tested as before
        for entry in ('test_dataloader', 'test_cfg', 'test_evaluator', 'visualizer'):
            assert cfg[entry] == before[entry]


@MODELS.register_module()
class MyBlockedSegmentor(PFBMixin, EncoderDecoder):
    """A user's own, of which nobody knows what it is without PFB."""

    def postprocess_result(self, *args, **kwargs):
        """Something that plain EncoderDecoder does not do."""


def test_a_model_that_cannot_be_turned_back_is_refused_with_the_remedy():
    cfg = Config.fromfile(ROOT / 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py')
    cfg.model.type = 'MyBlockedSegmentor'
    with pytest.raises(ValueError, match='MyBlockedSegmentor.*name its plain counterpart'):
        plain_config(cfg)


def test_types_are_recognised_by_path():
    cfg = Config.fromfile(ROOT / 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py')
    cfg.model.type = 'mmseg.PFBEncoderDecoder'
    cfg.custom_imports = dict(imports=['pfb_mmseg', 'my_code', 'pfb_mmseg.hooks'])
    changes = plain_config(cfg)
    assert cfg.model.type == 'mmseg.EncoderDecoder'
    assert cfg.custom_imports.imports == ['my_code']
    assert any('needed still: my_code' in change for change in changes)
