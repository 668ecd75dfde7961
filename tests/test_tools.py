"""The command-line tools, run as a user runs them, on a plain config that knows nothing of PFB."""

import os
import runpy
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from demo_runs import demo_config
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from pfb_mmseg import PFBMixin, apply_pfb
from pfb_mmseg.commands.arguments import ToolParser
from pfb_mmseg.commands.launch import named_config
from pfb_mmseg.commands.main import read
from pfb_mmseg.compat import find_distributions, why_no_resume
from pfb_mmseg.core import CRITERIA
from pfb_mmseg.report import SelectionRecord

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
default_scope = 'mmseg'
norm_cfg = dict(type='BN', requires_grad=True)
head = dict(type='FCNHead', channels=8, num_convs=1, concat_input=False, num_classes=2)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255),
    backbone=dict(type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=64, in_index=3, norm_cfg=norm_cfg, **head),
    auxiliary_head=dict(in_channels=32, in_index=2, norm_cfg=norm_cfg, **head),
    test_cfg=dict(mode='whole'),
)
image, labels = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
dataset = dict(
    type='BaseSegDataset',
    metainfo=dict(classes=('dark', 'bright')),
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    img_suffix='.png',
    pipeline=[image, labels, dict(type='PackSegInputs')],
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler'),
    dataset=dataset,
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(indices=3, **dataset),
)
flips = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]
transforms = [flips, [labels], [dict(type='PackSegInputs')]]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [image, dict(type='TestTimeAug', transforms=transforms)]
test_evaluator = dict(type='IoUMetric')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=False)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
"""
# Four centroids are seeded by the first batch, so that the second is pruned.
PFB = ['--prune-ratio', '0.5', '--cfg-options', 'model.pfb.criterion.type=rare']
PFB += ['model.pfb.criterion.estimator.num_centroids=4']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tools')
    (folder / 'plain.py').write_text(CONFIG)
    write_data(folder)
    return folder


def write_data(folder):
    """The images and labels that the config trains on."""
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{index}.png'), image)
        cv2.imwrite(str(folder / 'labels' / f'{index}.png'), image[..., 0] // 128)


@pytest.fixture(scope='module')
def trained(folder):
    output = call(folder, 'train.py', 'plain.py', *PFB)
    return folder / 'work_dirs' / 'plain', output


def call(folder, tool, *arguments, status=0, **environment):
    """Output of tools/<tool>, run in the folder."""
    start = [sys.executable] if tool.endswith('.py') else ['bash']
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    run = subprocess.run(
        [*start, ROOT / 'tools' / tool, *arguments],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'PATH': path, 'PORT': str(port)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == status, run.stdout
    return run.stdout


def call_test(folder, tool, *arguments):
    """Output of a test; where MMEngine cannot read its checkpoints, it is seen to say so first."""
    reason = why_no_resume(find_distributions(), torch.__version__)
    if reason is None:
        return call(folder, tool, *arguments)
    assert reason in call(folder, tool, *arguments, status=1)
    return call(folder, tool, *arguments, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')


def test_prune_ratio_trains_a_plain_config_with_pfb_and_says_what_it_changed(trained):
    work_dir, output = trained
    assert (work_dir / 'iter_4.pth').is_file()
    record = SelectionRecord.load(work_dir / 'pfb_record.npz')
    assert 0 < sum(record.kept) < sum(record.candidates)
    for change in ('model.type: EncoderDecoder -> PFBEncoderDecoder', 'PFBHook added'):
        assert change in output


def test_the_config_left_in_the_work_dir_is_one_with_pfb(trained):
    cfg = Config.fromfile(trained[0] / 'plain.py')
    assert cfg.model.type == 'PFBEncoderDecoder'
    criterion = dict(type='rare', estimator=dict(num_centroids=4))
    assert cfg.model.pfb == dict(prune_ratio=0.5, criterion=criterion)


def test_a_checkpoint_trained_with_pfb_is_tested_with_the_plain_config_and_tta(trained, folder):
    checkpoint = trained[0] / 'iter_4.pth'
    options = ['--tta', '--out', 'maps', '--show-dir', 'painted']
    output = call_test(folder, 'test.py', 'plain.py', str(checkpoint), *options)
    assert 'mIoU' in output
    assert 'size mismatch' not in output and 'missing keys' not in output
    assert len(list((folder / 'maps').iterdir())) == 3
    assert list((folder / 'painted').rglob('*.png'))


def test_predictions_are_painted_over_scenes_that_are_no_files(tmp_path, monkeypatch):
    cfg = demo_config(tmp_path / 'work')
    cfg.test_dataloader.dataset.update(length=3, size=(40, 72))
    cfg.default_hooks.visualization.backend_args.size = (40, 72)
    cfg.model.data_preprocessor.pop('size')
    cfg.dump(tmp_path / 'demo.py')
    init_default_scope('mmseg')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'weights.pth')
    monkeypatch.chdir(tmp_path)
    options = ['visualizer.alpha=0.2', f'visualizer.name={tmp_path.name}']
    read(['test', 'demo.py', 'weights.pth', '--show-dir', 'painted', '--cfg-options', *options])()
    painted = sorted((tmp_path / 'painted').rglob('*.png'))
    assert [path.name[:11] for path in painted] == ['test_000000', 'test_000001', 'test_000002']
    for path, scene in zip(painted, DATASETS.build(cfg.test_dataloader.dataset), strict=True):
        found = cv2.imread(str(path))
        assert found.shape == (40, 2 * 72, 3)  # labels and prediction, side by side
        scene = scene['inputs'].permute(1, 2, 0).numpy()
        # The scene shows through.
        assert np.corrcoef(found[:, :72].ravel(), scene.ravel())[0, 1] > 0.8


def test_two_cpu_processes_train(folder):
    output = call(folder, 'dist_train.sh', 'plain.py', '2', '--work-dir', 'dist', *PFB)
    assert output.count('No GPU') == 1
    assert (folder / 'dist' / 'iter_4.pth').is_file()


@pytest.mark.slow
def test_two_cpu_processes_test(trained, folder):
    output = call_test(folder, 'dist_test.sh', 'plain.py', str(trained[0] / 'iter_4.pth'), '2')
    assert output.count('No GPU') == 1
    assert output.count('mIoU') == 1


@pytest.mark.parametrize(
    ('tool', 'arguments', 'sentence'),
    [
        ('train.py', ['absent.py'], "config 'absent.py' is not a file"),
        ('train.py', ['plain.py', '--prune-ratio', '1'], 'prune_ratio=1.0: expected'),
        (
            'train.py',
            ['plain.py', '--skip-loading', '0.3'],
            '--skip-loading 0.3 needs --prune-ratio',
        ),
        ('train.py', ['plain.py', '--amp'], '--amp: mixed precision needs a GPU'),
        ('test.py', ['plain.py', 'absent.pth'], "checkpoint 'absent.pth' is not a file"),
        ('test.py', ['bare.py', 'empty.pth', '--tta'], '--tta needs tta_model in the config'),
        ('test.py', ['bare.py', 'empty.pth', '--show-dir', 'x'], 'need a visualizer and a hook'),
    ],
)
def test_a_mistake_in_the_arguments_is_told_in_a_sentence(
    folder, monkeypatch, capsys, tool, arguments, sentence
):
    (folder / 'bare.py').write_text("model = dict(type='EncoderDecoder')\n")
    (folder / 'empty.pth').touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr('sys.argv', [tool, *arguments])
    monkeypatch.setattr('pfb_mmseg.commands.launch.get_device', lambda: 'cpu')
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_a_script_called_with_too_few_arguments_says_how_it_is_used(folder, script):
    assert f'{script}.sh' in call(folder, f'{script}.sh', status=2)


def test_slurm_script_hands_its_arguments_on(folder):
    srun = folder / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    srun.chmod(0o755)
    env = {**os.environ, 'PATH': f'{srun.parent}{os.pathsep}{os.environ["PATH"]}', 'GPUS': '8'}
    command = ['bash', ROOT / 'tools' / 'slurm_train.sh', 'part', 'job', 'c.py', '--cfg-options']
    run = subprocess.run([*command, 'a="[1, 2]"'], env=env, capture_output=True, text=True)
    assert '<--partition=part><--job-name=job>' in run.stdout
    assert '<--ntasks=8>' in run.stdout
    assert '<c.py><--launcher><slurm><--cfg-options><a="[1, 2]">' in run.stdout


def test_modules_that_the_command_line_names_are_imported_like_those_of_the_config(
    tmp_path, monkeypatch
):
    (tmp_path / 'plain.py').write_text("model = dict(type='EncoderDecoder')\n")
    (tmp_path / 'module_of_mine.py').write_text(
        'from pfb_mmseg.core import CRITERIA, Criterion\n'
        "CRITERIA.register_module('of_mine')(type('OfMine', (Criterion,), {}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(CRITERIA, '_known', dict(CRITERIA._known))
    options = {'custom_imports.imports': ['module_of_mine']}
    named_config(ToolParser(), Namespace(config=str(tmp_path / 'plain.py'), cfg_options=options))
    assert 'of_mine' in CRITERIA


class TestApplyPFB:
    def test_adds_what_a_plain_config_lacks_and_leaves_the_rest(self):
        cfg = Config(
            dict(
                model=dict(type='mmseg.CascadeEncoderDecoder', num_stages=2),
                custom_imports=dict(imports='mine', allow_failed_imports=True),
                custom_hooks=[dict(type='EMAHook')],
            )
        )
        changes = apply_pfb(cfg, 0.3)
        assert cfg.to_dict() == dict(
            model=dict(
                type='mmseg.PFBCascadeEncoderDecoder',
                num_stages=2,
                pfb=dict(prune_ratio=0.3, criterion='hard'),
            ),
            custom_imports=dict(imports=['mine', 'pfb_mmseg'], allow_failed_imports=True),
            custom_hooks=[dict(type='EMAHook'), dict(type='PFBHook')],
        )
        assert len(changes) == 5
        assert apply_pfb(cfg, 0.3) == []

    def test_overrides_the_ratio_of_a_config_with_pfb_and_keeps_its_other_options(self):
        cfg = Config(
            dict(
                model=dict(type='PFBEncoderDecoder', pfb=dict(prune_ratio=0.7, criterion='rare')),
                custom_imports=dict(imports=['pfb_mmseg']),
                custom_hooks=[dict(type='PFBHook', begin=0.1)],
            )
        )
        assert apply_pfb(cfg, 0.3) == ['model.pfb.prune_ratio: 0.7 -> 0.3']
        assert cfg.model.pfb == dict(prune_ratio=0.3, criterion='rare')
        assert cfg.custom_hooks == [dict(type='PFBHook', begin=0.1)]

    def test_accepts_classes_as_configs_in_import_syntax_give_them(self):
        from mmseg.models import EncoderDecoder

        cfg = Config(dict(model=dict(type=EncoderDecoder)))
        apply_pfb(cfg, 0.3)
        assert cfg.model.type == 'mmseg.PFBEncoderDecoder'

    def test_accepts_a_segmentor_of_the_users_own_that_has_the_mixin(self):
        from mmseg.models import EncoderDecoder

        class MySegmentor(PFBMixin, EncoderDecoder):
            pass

        cfg = Config(dict(model=dict(type=MySegmentor)))
        apply_pfb(cfg, 0.3)
        assert cfg.model.type is MySegmentor

    @pytest.mark.parametrize('ratio', [1.0, -0.1, float('nan')])
    def test_refuses_a_ratio_outside_its_range(self, ratio):
        with pytest.raises(ValueError, match=f'prune_ratio={ratio}'):
            apply_pfb(Config(dict(model=dict(type='EncoderDecoder'))), ratio)
