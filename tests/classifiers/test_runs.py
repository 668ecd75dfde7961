"""Whole runs of classifiers in their own processes: with MMPretrain's train.py, and with ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch
from classifier_runs import write_images
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from pfb_mmseg import PFBHook
from pfb_mmseg.compare.methods import apply_method
from pfb_mmseg.models.classification import PFBImageClassifier
from pfb_mmseg.report import read_scalars

ROOT = Path(__file__).parents[2]
THEIRS = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=3, in_channels=64,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=3),
    ),
    data_preprocessor=dict(num_classes=3, mean=[127.5] * 3, std=[64] * 3),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
data = dict(type='CustomDataset', data_root='images', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')])
train_dataloader = dict(
    batch_size=6, num_workers=0, persistent_workers=False, dataset=data,
    sampler=dict(type='RepeatAugSampler', shuffle=True, num_repeats=3),
)
val_dataloader = dict(
    batch_size=6, num_workers=0, persistent_workers=False, dataset={**data, 'test_mode': True},
    sampler=dict(type='DefaultSampler', shuffle=False),
)
del data
val_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=5.0), accumulative_counts=1
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=4, by_epoch=True)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1)
)
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
randomness = dict(seed=0)
"""
PFB = """
_base_ = 'plain.py'
custom_imports = dict(imports=['pfb_mmseg'])
model = dict(
    type='PFBImageClassifier', pfb=dict(prune_ratio=0.5, criterion='random', exit_loss_weight=1.0)
)
custom_hooks = [
    dict(type='EMAHook', momentum=0.1), dict(type='PFBHook', begin=1, end=3, by_epoch=True)
]
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    write_images(folder / 'images')
    (folder / 'plain.py').write_text(CONFIG)
    (folder / 'pfb.py').write_text(PFB)
    return folder


def call(folder, tool, *arguments):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, tool, *arguments]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope='module')
def theirs(folder):
    """By MMPretrain's train.py: two epochs, then resumed for two more."""
    call(
        folder, THEIRS, 'pfb.py', '--work-dir', 'theirs', '--cfg-options', 'train_cfg.max_epochs=2'
    )
    return folder / 'theirs', call(folder, THEIRS, 'pfb.py', '--work-dir', 'theirs', '--resume')


def test_three_lines_of_the_page_make_a_config_one_with_pfb(folder):
    page = (ROOT / 'docs/guide/classification.md').read_text()
    [block] = re.findall(r'^```python\n(.*?)^```$', page, flags=re.M | re.S)
    cfg = Config.fromfile(folder / 'plain.py')
    cfg.merge_from_dict(Config.fromstring(block, '.py').to_dict())
    init_default_scope('mmpretrain')
    assert type(MODELS.build(cfg.model)) is PFBImageClassifier
    hook = HOOKS.build(cfg.custom_hooks[0])
    assert isinstance(hook, PFBHook)
    assert cfg.custom_imports.imports == ['pfb_mmseg']


def test_their_tool_blocks_in_the_epochs_that_the_hook_names(theirs):
    work_dir, output = theirs
    # Four epochs of three batches: the second and the third are blocked, of which the exit learns.
    kept = [entry['pfb/kept'] for entry in read_scalars(work_dir)[0]]
    assert kept == [6, 6, 6, 3, 3, 3, 3, 3, 3, 6, 6, 6]
    assert 'PFB blocks 50% of the images behind backbone.layer1' in output
    assert 'accuracy/top1' in output


def test_checkpoints_load_into_the_plain_classifier_the_averaged_weights_too(folder, theirs):
    checkpoint = torch.load(theirs[0] / 'epoch_4.pth', weights_only=False)
    assert 'ema_state_dict' in checkpoint
    cfg = Config.fromfile(folder / 'plain.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    missing, unexpected = model.load_state_dict(checkpoint['state_dict'], strict=False)
    assert not missing and all(key.startswith('pfb.') for key in unexpected)
    load_checkpoint(model, str(theirs[0] / 'epoch_4.pth'))


def test_our_tool_blocks_a_config_that_knows_nothing_of_it(folder):
    options = ['--cfg-options', 'train_cfg.max_epochs=2', 'model.pfb.criterion=random']
    output = call(
        folder, ROOT / 'tools' / 'train.py', 'plain.py', '--work-dir', 'ours',
        '--prune-ratio', '0.5', *options,
    )  # fmt: skip
    assert 'model.type: ImageClassifier -> PFBImageClassifier' in output
    entries = read_scalars(folder / 'ours')[0]
    assert sum(entry['pfb/kept'] for entry in entries) < sum(
        entry['pfb/candidates'] for entry in entries
    )
    dumped = Config.fromfile(folder / 'ours' / 'plain.py')
    assert dumped.model.type == 'PFBImageClassifier'
    assert dumped.custom_imports.imports == ['pfb_mmseg']
    output = call(folder, ROOT / 'tools' / 'train.py', 'ours/plain.py', '--work-dir', 'ours',
                  '--resume', '--cfg-options', 'train_cfg.max_epochs=3')  # fmt: skip
    assert (folder / 'ours' / 'epoch_3.pth').is_file()


INFOBATCH = """
_base_ = 'plain.py'
custom_imports = dict(imports=['pfb_mmseg'])
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfoBatchSampler', prune_ratio=0.5, percentile=95, seed=0)
)
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=9, val_interval=9)
param_scheduler = []
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=9))
custom_hooks = [dict(type='InfoBatchHook', full_iters=9), dict(type='BudgetHook')]
"""


def test_infobatch_prunes_and_weighs(folder):
    (folder / 'infobatch.py').write_text(INFOBATCH)
    call(folder, THEIRS, 'infobatch.py', '--work-dir', 'infobatch')
    budget = json.loads((folder / 'infobatch/budget.json').read_text())
    assert budget['loaded'] == budget['backward'] == 9 * 6 < budget['candidates']


@pytest.mark.parametrize(
    ('method', 'model_type'),
    [
        ('infobatch', 'ImageClassifier'),
        ('loss_topk', 'PFBImageClassifier'),
        ('small', 'ImageClassifier'),
    ],
)
def test_a_method_to_compare_with_is_a_change_to_the_config(
    folder, monkeypatch, method, model_type
):
    monkeypatch.chdir(folder)
    cfg = Config.fromfile(folder / 'plain.py')
    cfg.train_cfg = dict(by_epoch=False, max_iters=90)
    cfg.param_scheduler = []
    apply_method(cfg, method, 0.5)
    init_default_scope('mmpretrain')
    assert type(MODELS.build(cfg.model)).__name__ == model_type
    if method == 'infobatch':
        assert cfg.train_cfg.max_iters < 90
    if method == 'small':
        assert cfg.train_dataloader.batch_size == 3


def test_importing_the_package_leaves_mmpretrain_alone_and_its_absence_is_told(folder):
    code = """
import sys, warnings
{absent}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import pfb_mmseg
assert not any('mmpretrain' in str(w.message) and 'pfb' in str(w.filename) for w in caught)
assert 'mmpretrain.models' not in sys.modules, 'slow'
from mmengine.registry import MODELS
try:
    MODELS.build(dict(type='PFBImageClassifier', pfb=dict(prune_ratio=0.5), backbone=None))
except Exception as error:
    print(type(error).__name__, error)
print('mmpretrain.models' in sys.modules)
"""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    absent = "sys.modules['mmpretrain'] = None"
    outputs = [
        subprocess.run(
            [sys.executable, '-c', code.format(absent=text)],
            env=env, capture_output=True, text=True, cwd=folder,
        )
        for text in ('', absent)
    ]  # fmt: skip
    assert outputs[0].stdout.splitlines()[-1] == 'True', outputs[0].stderr
    assert outputs[1].stdout.splitlines()[-1] == 'False', outputs[1].stderr
    assert 'pip install "pfb_mmseg[classification]"' in outputs[1].stdout
