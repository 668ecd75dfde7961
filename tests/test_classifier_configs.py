"""The configs of Tables 1 to 3 say what Table S5 says, and run in the real layouts."""

import copy
import hashlib
import pickle
import re
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
from demo_runs import read_config
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.registry import MODELS
from PIL import Image

from pfb_mmseg.report import SelectionRecord, read_scalars

CONFIGS = Path(__file__).parents[1] / 'configs'
ALL = sorted(
    path for folder in ('cifar10', 'cifar100', 'imagenet') for path in (CONFIGS / folder).glob('*')
)
PFB = [path for path in ALL if '_pfb-' in path.name]
FULL = [path for path in ALL if path not in PFB]
ZOO = Path(mmpretrain.__file__).parent / '.mim' / 'configs'

R18_10 = CONFIGS / 'cifar10/resnet18_1xb128-200e_cifar10.py'
R18_100 = CONFIGS / 'cifar100/resnet18_1xb128-200e_cifar100.py'
R50 = CONFIGS / 'imagenet/resnet50_4xb256-90e_in1k.py'
SWIN = CONFIGS / 'imagenet/swin-tiny_4xb256-300e_in1k.py'
PAPERS = (R18_10, R18_100, R50, SWIN)


def twin(path):
    """The full-data config beside a PFB config."""
    return path.with_name(re.sub(r'_pfb-p\d+', '', path.name))


def ratio(path):
    return int(re.search(r'_pfb-p(\d+)', path.name)[1]) / 100


@pytest.mark.parametrize('path', FULL, ids=lambda path: path.stem)
def test_full_data_config_parses_and_its_model_builds(path):
    config = Config.fromfile(path)
    assert config.custom_imports.imports == ['pfb_mmseg']
    assert config.default_scope == 'mmpretrain'
    init_default_scope('mmpretrain')
    config.model.data_preprocessor = config.data_preprocessor
    assert type(MODELS.build(config.model)).__name__ == config.model.type


@pytest.mark.parametrize('path', PFB, ids=lambda path: path.stem)
def test_pfb_config_differs_from_its_twin_in_pruning_only(path):
    pruned, full = Config.fromfile(path), Config.fromfile(twin(path))
    pfb = pruned.model.pop('pfb')
    assert pruned.model.pop('type') == 'PFBImageClassifier'
    assert full.model.pop('type') == 'ImageClassifier'
    hook = pruned.custom_hooks.pop()
    assert hook.type == 'PFBHook' and hook.by_epoch
    full.setdefault('custom_hooks', [])
    assert pruned.to_dict() == full.to_dict()
    assert pfb.prune_ratio == ratio(path)


@pytest.mark.parametrize(
    'path, ratios',
    [(path, (0.3, 0.5, 0.7) if path in (R18_10, R18_100) else (0.3, 0.4, 0.5)) for path in PAPERS],
    ids=lambda value: getattr(value, 'stem', ''),
)
def test_every_ratio_of_the_tables_has_a_config(path, ratios):
    assert sorted(ratio(other) for other in PFB if twin(other) == path) == list(ratios)


@pytest.mark.parametrize(
    'path, optimizer, lr, decay, batch, epochs, exploration, dim, location, begin, end',
    [
        (R18_10, 'SGD', 0.1, 5e-4, 128, 200, 0.01, 64, 'layer1', 5, 180),
        (R18_100, 'SGD', 0.05, 5e-4, 128, 200, 0.01, 64, 'layer1', 5, 180),
        (R50, 'LARS', 6.4, 5e-5, 1024, 90, 0.001, 128, 'layer2', 5, 80),
        (SWIN, 'AdamW', 0.001, 0.05, 1024, 300, 0.001, 96, 'stages.0', 15, 265),
    ],
    ids=lambda value: getattr(value, 'stem', ''),
)
def test_the_values_are_those_of_table_s5(
    path, optimizer, lr, decay, batch, epochs, exploration, dim, location, begin, end
):
    """But for D, of which stage 1 has fewer than 128."""
    full = Config.fromfile(path)
    found = full.optim_wrapper.optimizer
    assert (found.type, found.lr, found.weight_decay) == (optimizer, lr, decay)
    gpus = int(re.search(r'_(\d)xb', path.name)[1])
    assert gpus * full.train_dataloader.batch_size == batch == full.auto_scale_lr.base_batch_size
    assert full.train_cfg.max_epochs == epochs
    assert full.model.head.loss.label_smooth_val == 0.1
    if path == SWIN:
        warmup, cosine = full.param_scheduler
        assert warmup.end == cosine.begin == 20 and cosine.end == epochs
        assert cosine.type == 'CosineAnnealingLR'
    else:
        assert full.param_scheduler.type == 'OneCycleLR'
        assert (full.param_scheduler.eta_max, full.param_scheduler.total_steps) == (lr, epochs)
    for other in PFB:
        if twin(other) == path:
            pruned = Config.fromfile(other)
            assert pruned.model.pfb == dict(
                prune_ratio=ratio(other),
                block_after=f'backbone.{location}',
                criterion=dict(
                    type='rare',
                    estimator=dict(num_centroids=64, dim=dim),
                    exploration=exploration,
                ),
            )
            assert (pruned.custom_hooks[0].begin, pruned.custom_hooks[0].end) == (begin, end)


@pytest.mark.parametrize(
    'path, theirs, keys',
    [
        (R18_10, 'resnet/resnet18_8xb16_cifar10.py', ('train_pipeline', 'test_pipeline')),
        (R18_100, 'resnet/resnet50_8xb16_cifar100.py', ('train_pipeline', 'test_pipeline')),
        (R50, 'resnet/resnet50_8xb32_in1k.py', ('train_pipeline', 'test_pipeline')),
        (SWIN, 'swin_transformer/swin-tiny_16xb64_in1k.py', ('test_pipeline',)),
    ],
    ids=lambda value: getattr(value, 'stem', ''),
)
def test_what_the_paper_leaves_open_is_as_in_the_zoo(path, theirs, keys):
    ours, theirs = Config.fromfile(path), Config.fromfile(ZOO / theirs)
    for key in ('data_preprocessor', 'val_evaluator', *keys):
        assert ours[key] == theirs[key], key
    if path != R18_100:  # of which the zoo has a ResNet-50 only
        assert ours.model.backbone == theirs.model.backbone
    if path == SWIN:
        assert ours.optim_wrapper == theirs.optim_wrapper
        assert ours.model.init_cfg == theirs.model.init_cfg


# The Runner on the files: two iterations and a validation.


def pickled(folder, parts, num_classes, label_key, meta, names_key):
    """Batches of 4 images as published; returns (file, md5) pairs by file."""
    rng = np.random.default_rng(0)
    sums = {}
    folder.mkdir(parents=True)
    entries = {
        name: {
            'data': rng.integers(0, 256, (num, 3072), dtype=np.uint8),
            label_key: rng.integers(0, num_classes, num).tolist(),
        }
        for name, num in parts.items()
    }
    entries[meta] = {names_key: [f'class {i}' for i in range(num_classes)]}
    for name, entry in entries.items():
        (folder / name).write_bytes(pickle.dumps(entry))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return sums


@pytest.fixture
def cifar10_root(tmp_path, monkeypatch):
    train = {'data_batch_1': 2, 'data_batch_2': 2, 'data_batch_3': 2, 'data_batch_4': 1}
    parts = {**train, 'data_batch_5': 1, 'test_batch': 4}
    folder = tmp_path / 'data' / CIFAR10.base_folder
    sums = pickled(folder, parts, 10, 'labels', 'batches.meta', 'label_names')
    expect_sums(monkeypatch, CIFAR10, sums)
    return tmp_path / 'data'


@pytest.fixture
def cifar100_root(tmp_path, monkeypatch):
    folder = tmp_path / 'data' / CIFAR100.base_folder
    sums = pickled(folder, {'train': 8, 'test': 4}, 100, 'fine_labels', 'meta', 'fine_label_names')
    expect_sums(monkeypatch, CIFAR100, sums)
    return tmp_path / 'data'


def expect_sums(monkeypatch, dataset, sums):
    for files in ('train_list', 'test_list'):
        found = [[name, sums[name]] for name, _ in getattr(dataset, files)]
        monkeypatch.setattr(dataset, files, found)
    meta = dataset.meta
    monkeypatch.setattr(dataset, 'meta', {**meta, 'md5': sums[meta['filename']]})


@pytest.fixture
def imagenet_root(tmp_path):
    """Class folders for training; validation images in one folder, listed with their labels."""
    rng, root = np.random.default_rng(0), tmp_path / 'data'
    for i in range(1000):  # all must be there; one without images is warned of
        (root / 'train' / f'n{i:08}').mkdir(parents=True)
    names = [f'train/n{i:08}/n{i:08}_1.JPEG' for i in range(8)]
    names += [f'val/ILSVRC2012_val_0000000{i}.JPEG' for i in range(4)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(root / name)
    (root / 'meta').mkdir()
    lines = [f'{Path(name).name} {i % 2}\n' for i, name in enumerate(names[8:])]
    (root / 'meta' / 'val.txt').write_text(''.join(lines))
    return root


def shrink(config, root, work_dir):
    """What a CPU and eight images need: small images, one epoch of two iterations."""
    config.work_dir = str(work_dir)
    if config.model.backbone.type == 'SwinTransformer':
        config.model.backbone.update(img_size=64, window_size=2)
    for part in ('train', 'val', 'test'):
        loader = config[f'{part}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        loader.dataset.data_root = str(root)
        for step in loader.dataset.pipeline:
            sizes = {'RandomResizedCrop': 'scale', 'ResizeEdge': 'scale', 'CenterCrop': 'crop_size'}
            if step.type in sizes:
                step[sizes[step.type]] = 72 if step.type == 'ResizeEdge' else 64
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.logger.interval = 1
    config.randomness = dict(seed=0)
    config.visualizer.name = config.work_dir  # what has a name is shared between runs
    return config


LAYOUTS = pytest.mark.parametrize(
    'path, root',
    [
        (R18_10, 'cifar10_root'),
        (R18_100, 'cifar100_root'),
        (R50, 'imagenet_root'),
        (SWIN, 'imagenet_root'),
    ],
    ids=lambda value: getattr(value, 'stem', ''),
)


def run(config):
    """What is logged of two iterations, and the accuracy after them."""
    runner = Runner.from_cfg(copy.deepcopy(config))
    runner.train()
    assert runner.iter == 2
    train, val = read_scalars(config.work_dir)
    assert np.isfinite([entry['loss'] for entry in train]).all()
    assert 0 <= val[-1]['accuracy/top1'] <= 100
    return train


@LAYOUTS
def test_pfb_config_prunes_trains_and_validates(path, root, request, tmp_path):
    root = request.getfixturevalue(root)
    (path,) = [pruned for pruned in PFB if twin(pruned) == path and ratio(pruned) == 0.5]
    config = shrink(read_config(path), root, tmp_path / 'work')
    # The first batch seeds the centroids, the second is pruned.
    config.model.pfb.criterion.estimator.num_centroids = 4
    config.custom_hooks[-1].update(begin=0, end=1)
    train = run(config)
    assert [entry['pfb/kept'] for entry in train if 'pfb/kept' in entry][-1] == 2
    record = SelectionRecord.load(tmp_path / 'work' / 'pfb_record.npz')
    assert record.candidates.sum() == 4 and record.kept.sum() == 2
