"""Each type and criterion that the pages name trains from a plain config.

As MMSegmentation's own tools/train.py runs it: a new interpreter that has imported nothing of this
package before it reads the config.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import classifier_runs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', *(ROOT / 'docs/guide').glob('*.md')]
PAGES += [*(ROOT / 'docs/reference').glob('*.md')]

# What the reader of a page writes, or other packages register.
NOT_OURS = {
    'MyModel',
    'MyDetector',
    'FCNHead',
    'ResNetV1c',
    'BN',
    'unusual',
}

TRAIN = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner

for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    print('TRAINED', cfg.experiment_name, runner.iter)
"""

# Batches of four scenes, two steps: the first is plain, the second blocked.
SEGMENTOR = """
_base_ = '{root}/configs/demo/fcn_r18-d8_1xb16-300i_demo-64x64.py'
custom_imports = dict(imports=['pfb_mmseg'], _delete_=True)
experiment_name = '{name}'
work_dir = '{work_dir}'
log_level = 'WARNING'
heads = dict(
    type='FCNHead', channels=4, num_convs=1, num_classes=13,
    norm_cfg=dict(type='BN'), concat_input=False,
)
model = dict(
    backbone=dict(base_channels=4, stem_channels=4),
    decode_head=dict(in_channels=32, channels=4),
    auxiliary_head=dict(in_channels=16, channels=4),
)
train_dataloader = dict(batch_size=4, dataset=dict(length=8))
val_dataloader = val_evaluator = val_cfg = None
train_cfg = dict(max_iters=2, val_interval=10)
param_scheduler = None
custom_hooks = [dict(type='PFBHook', begin=1, end=1.0)]
{more}
"""
PFB = "prune_ratio=0.5, criterion=dict(type='rare', estimator=dict(num_centroids=4, dim=4))"
CASCADE = f"""
model.update(
    type='PFBCascadeEncoderDecoder',
    num_stages=2,
    pfb=dict({PFB}),
    decode_head=[
        dict(in_channels=16, in_index=2, **heads),
        dict(
            type='OCRHead', in_channels=32, in_index=3, channels=8, ocr_channels=4,
            num_classes=13, norm_cfg=dict(type='BN'),
        ),
    ],
)
"""
DEPTH = """
model.update(
    type='PFBModel',
    backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=16),
    host='mmseg.DepthEstimator',
    pfb=dict(prune_ratio=0.5, criterion='random'),
    decode_head=dict(
        _delete_=True, type='VPDDepthHead', in_channels=[16, 32, 64, 128], embed_dim=16,
        feature_dim=128, num_deconv_filters=(16, 16, 16),
    ),
    auxiliary_head=None,
)
train_dataloader['dataset'] = dict(
    _delete_=True,
    type='NYUDataset',
    data_root={data_root!r},
    data_prefix=dict(img_path='images', depth_map_path='annotations'),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadDepthAnnotation', depth_rescale_factor=1e-3),
        dict(type='PackSegInputs'),
    ],
)
"""


def segmentor(criterion, more=''):
    pfb = PFB if criterion == 'rare' else f'prune_ratio=0.5, criterion={criterion!r}'
    return f"model.update(type='PFBEncoderDecoder', pfb=dict({pfb}))\n{more}"


# What a name in the pages stands for, as the end of a config.
SEGMENTORS = {
    'rare': segmentor('rare'),
    'hard': segmentor('hard'),
    'random': segmentor('random'),
    'common': segmentor('common'),
    'loss_topk': segmentor('loss_topk'),
    'divbs': segmentor('divbs'),
    'PFBCascadeEncoderDecoder': CASCADE,
    'PFBBatchSampler': segmentor(
        'hard',
        "train_dataloader['batch_sampler'] = dict(type='PFBBatchSampler', skip_loading=0.25)",
    ),
    'PFBLogHook': segmentor(
        'hard', "custom_hooks = [dict(type='PFBLogHook'), dict(type='PFBRecordHook')]"
    ),
    'PFBModel': DEPTH,
}
OTHERS = {'PFBEncoderDecoder', 'PFBHook', 'PFBRecordHook', 'PFBImageClassifier'}


def train(folder, configs):
    """The names of what has trained for two iterations, in one new interpreter."""
    paths = []
    for name, text in configs.items():
        paths.append(folder / f'config_{name}.py')
        paths[-1].write_text(text)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', TRAIN, *map(str, paths)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(re.findall(r'^TRAINED (\S+) (\d+)$', run.stdout, flags=re.M))


def write_depth(folder):
    """Four images and depth maps in the layout of NYU."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for name in ('images', 'annotations'):
        (folder / name).mkdir(parents=True)
    for index in range(4):
        image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        depth = rng.integers(500, 9000, (64, 64)).astype(np.uint16)
        cv2.imwrite(str(folder / f'images/room_{index}.jpg'), image)
        cv2.imwrite(str(folder / f'annotations/room_{index}.png'), depth)


def test_every_segmentor_and_criterion_of_the_pages_trains_from_a_plain_config(tmp_path):
    write_depth(tmp_path / 'depth')
    configs = {
        name: SEGMENTOR.format(
            root=ROOT,
            name=name,
            work_dir=tmp_path / name,
            more=more.replace('{data_root!r}', repr(str(tmp_path / 'depth'))),
        )
        for name, more in SEGMENTORS.items()
    }
    assert train(tmp_path, configs) == dict.fromkeys(SEGMENTORS, '2')


def test_the_classifier_of_the_pages_trains_from_a_plain_config(tmp_path):
    classifier_runs.write_images(tmp_path / 'images')
    configs = {}
    for name in ('rare', 'hard'):
        cfg = classifier_runs.run_config(tmp_path / 'images', tmp_path / name, max_epochs=1)
        cfg.model.pfb = dict(prune_ratio=0.5, criterion=name)
        cfg.custom_hooks = [dict(type='PFBHook')]
        cfg.experiment_name = name
        assert cfg.model.type == 'PFBImageClassifier'
        configs[name] = cfg.pretty_text
    assert train(tmp_path, configs) == dict(rare='3', hard='3')


def test_no_page_names_a_type_that_is_not_tried():
    named = set()
    for page in PAGES:
        text = page.read_text()
        named |= set(re.findall(r"type='(\w+)'", text)) | set(re.findall(r'`(PFB\w+)`', text))
        named |= set(re.findall(r"criterion='(\w+)'", text))
    named -= {'PFBMixin', 'strong', *NOT_OURS}
    assert named <= {*SEGMENTORS, *OTHERS}, named - {*SEGMENTORS, *OTHERS}
