"""Configs of segmentors parse and build; those for Cityscapes and VOC run in the real layout."""

import copy
import os
import re
from pathlib import Path
from pickle import UnpicklingError
from unittest import mock

import mmseg
import numpy as np
import pytest
import torch
from demo_runs import read_config
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from PIL import Image

from pfb_mmseg.compare.lengths import set_iters
from pfb_mmseg.compat import find_distributions, why_no_resume
from pfb_mmseg.report import SelectionRecord, read_scalars

CONFIGS = Path(__file__).parents[1] / 'configs'
OTHERS = ('_base_', 'cifar10', 'cifar100', 'imagenet', 'mask2former')
ALL = sorted(path for path in CONFIGS.glob('*/*.py') if path.parent.name not in OTHERS)
PFB = [path for path in ALL if '_pfb-' in path.name]
RIVALS = [path for path in ALL if '_infobatch_' in path.name]
ZOO = Path(mmseg.__file__).parent / '.mim' / 'configs'

CITYSCAPES = CONFIGS / 'cityscapes/deeplabv3_r50-d8_4xb2-36k_cityscapes-512x1024.py'
ADE20K = CONFIGS / 'ade20k/upernet_r50_4xb4-160k_ade20k-512x512.py'
VOC = CONFIGS / 'voc12aug/deeplabv3_r50-d8_4xb4-36k_voc12aug-512x512.py'


def name(path):
    return f'{path.parent.name}/{path.stem}'


def twin(path):
    """The full-data config beside a PFB config."""
    return path.with_name(re.sub(r'_pfb-p\d+', '', path.name))


@pytest.mark.parametrize('path', ALL, ids=name)
def test_config_parses_and_its_model_builds(path):
    config = Config.fromfile(path)
    assert 'pfb_mmseg' in config.custom_imports.imports
    init_default_scope('mmseg')
    model = MODELS.build(config.model)
    assert type(model).__name__ == config.model.type
    assert model.auxiliary_head.in_index == 2


@pytest.mark.parametrize('path', PFB, ids=name)
def test_pfb_config_differs_from_its_twin_in_pruning_only(path):
    pruned, full = Config.fromfile(path), Config.fromfile(twin(path))
    pfb = pruned.model.pop('pfb')
    assert pruned.model.pop('type') == 'PFBEncoderDecoder'
    assert full.model.pop('type') == 'EncoderDecoder'
    schedule, *others = pruned.pop('custom_hooks')
    assert schedule == dict(type='PFBHook', begin=0.025, end=0.9)
    assert not others
    assert pruned.to_dict() == full.to_dict()
    ratio = int(re.search(r'_pfb-p(\d+)', path.name)[1]) / 100
    if path.parent.name == 'demo':
        assert pfb == dict(prune_ratio=ratio, criterion='hard')
        return
    # Table S5.
    estimator = dict(num_centroids=64, dim=128)
    assert pfb == dict(
        prune_ratio=ratio, criterion=dict(type='rare', estimator=estimator, exploration=0.01)
    )


def test_every_full_data_config_has_a_pfb_twin():
    assert len(ALL) == 9
    assert {twin(path) for path in PFB} == set(ALL) - set(PFB) - set(RIVALS)


def test_infobatch_config_is_what_the_method_makes_of_its_twin():
    """But for its length, which the paper gives: 80 % of the iterations."""
    (path,) = RIVALS
    rival, full = Config.fromfile(path), Config.fromfile(ADE20K)
    sampler = rival.train_dataloader.pop('sampler')
    assert sampler == dict(type='InfoBatchSampler', prune_ratio=0.5, percentile=None)
    assert rival.pop('custom_hooks') == [dict(type='InfoBatchHook', full_iters=160000)]
    set_iters(full, 128000)
    full.train_dataloader.pop('sampler')
    assert rival.to_dict() == full.to_dict()


@pytest.mark.parametrize(
    'ours, theirs, iters',
    [
        (CITYSCAPES, 'deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024.py', 36000),
        (VOC, 'deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512.py', 36000),
        (ADE20K, 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 160000),
    ],
    ids=['cityscapes', 'voc12aug', 'ade20k'],
)
def test_full_data_config_is_the_zoos_with_the_papers_iterations(ours, theirs, iters):
    if not ZOO.is_dir():
        pytest.skip(f'the installed mmseg brings no configs at {ZOO}')
    ours, theirs = Config.fromfile(ours), Config.fromfile(ZOO / theirs)
    assert ours.train_cfg.max_iters == ours.param_scheduler[0].end == iters
    theirs.train_cfg.max_iters = theirs.param_scheduler[0].end = iters
    for key in (
        'model',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'tta_pipeline',
        'tta_model',
        'val_evaluator',
        'test_evaluator',
        'optim_wrapper',
        'param_scheduler',
        'train_cfg',
        'default_hooks',
    ):
        assert ours[key] == theirs[key], key


# The Runner on the files: two iterations, a validation, and the multi-scale and flip test.

HEIGHT, WIDTH = 48, 96


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def random_pair(rng, num_classes):
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = rng.integers(0, num_classes, (HEIGHT // 8, WIDTH // 8)).astype(np.uint8)
    labels[0, 0] = 255
    return image, labels.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture
def cityscapes_root(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / 'cityscapes'
    frames = {'train': ['aachen', 'aachen', 'bochum', 'bochum'], 'val': ['munster']}
    for split, cities in frames.items():
        for number, city in enumerate(cities):
            image, labels = random_pair(rng, 19)
            stem = f'{city}_{number:06d}_000019'
            write(root / 'leftImg8bit' / split / city / f'{stem}_leftImg8bit.png', image)
            write(root / 'gtFine' / split / city / f'{stem}_gtFine_labelTrainIds.png', labels)
    return root


@pytest.fixture
def voc_root(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / 'VOCdevkit' / 'VOC2012'
    stems = {
        'train': ['2007_000032', '2007_000039'],
        'aug': ['2008_000002', '2008_000003'],
        'val': ['2007_000033'],
    }
    for split, names in stems.items():
        folder = 'SegmentationClassAug' if split == 'aug' else 'SegmentationClass'
        for stem in names:
            image, labels = random_pair(rng, 21)
            write(root / 'JPEGImages' / f'{stem}.jpg', image)
            write(root / folder / f'{stem}.png', labels)
        listing = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text('\n'.join(names) + '\n')
    return root


def shrink(config, root, work_dir):
    """What a CPU needs: no SyncBN, no download, small images, two iterations."""
    config.work_dir = str(work_dir)
    config.model.pretrained = None
    config.model.data_preprocessor.size = (HEIGHT, WIDTH)
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        if 'norm_cfg' in config.model[part]:
            config.model[part].norm_cfg.type = 'BN'
    train = config.train_dataloader.dataset
    datasets = train.get('datasets', [train])
    for dataset in [*datasets, config.val_dataloader.dataset, config.test_dataloader.dataset]:
        dataset.data_root = str(root)
        for step in dataset.pipeline:
            if 'scale' in step:
                step.scale = (WIDTH, HEIGHT)
            if 'crop_size' in step:
                step.crop_size = (HEIGHT, WIDTH)
            if step.type == 'Pad':
                step.size = (HEIGHT, WIDTH)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
    config.train_dataloader.batch_size = 4
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.update(interval=2, save_optimizer=False)
    config.default_hooks.logger.interval = 1
    config.randomness = dict(seed=0)
    return config


def run(config):
    """Train, validate, then test with augmentation as ``tools/test.py --tta`` does."""
    config.visualizer.name = config.work_dir  # what has a name is shared between runs
    trainer = Runner.from_cfg(copy.deepcopy(config))
    trainer.train()
    config.load_from = str(Path(config.work_dir) / 'iter_2.pth')
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = dict(**config.tta_model, module=config.model)
    config.experiment_name = f'{trainer.experiment_name}_tta'
    tester = Runner.from_cfg(config)
    if why_no_resume(find_distributions(), torch.__version__):
        with pytest.raises(UnpicklingError):
            tester.test()
        with mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1'):
            return trainer, tester.test()
    return trainer, tester.test()


LAYOUTS = pytest.mark.parametrize(
    'path, root',
    [
        (CITYSCAPES, 'cityscapes_root'),
        pytest.param(VOC, 'voc_root', marks=pytest.mark.slow),  # its model is that of Cityscapes
    ],
    ids=['cityscapes', 'voc'],
)


def losses(runner):
    values, _ = runner.message_hub.get_scalar('train/loss').data
    return values


class TestRunner:
    @LAYOUTS
    def test_pfb_config_prunes_trains_and_tests(self, path, root, request, tmp_path):
        root = request.getfixturevalue(root)
        (path,) = [pruned for pruned in PFB if twin(pruned) == path]
        config = shrink(read_config(path), root, tmp_path / 'work')
        assert len(config.tta_pipeline[1].transforms[0]) == 6
        # The first batch seeds the centroids, the second is pruned; of that, one process with plain
        # BN needs two images behind the global pooling of ASPP.
        config.model.pfb.criterion.estimator.num_centroids = 4
        config.custom_hooks[0].begin = 0
        runner, metrics = run(config)
        kept = {CITYSCAPES: 3, VOC: 2}[twin(path)]
        record = SelectionRecord.load(tmp_path / 'work' / 'pfb_record.npz')
        assert record.candidates.sum() == 4
        assert record.kept.sum() == kept
        assert all(Path(file).is_file() for file in record.paths)
        assert read_scalars(tmp_path / 'work')[0][-1]['pfb/kept'] == kept
        assert np.isfinite(losses(runner)).all()
        assert 0 <= metrics['mIoU'] <= 100
