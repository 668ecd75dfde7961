"""What a run of a classifier writes down of its images, and what the pages make of it."""

import csv
import re
import shutil
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from classifier_runs import CLASSES, NUM_IMAGES, run_config
from demo_runs import train
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch.nn import functional as F
from torch.testing import assert_close

from pfb_mmseg.commands.main import read
from pfb_mmseg.report import SelectionRecord
from pfb_mmseg.report.images import ImageSet
from pfb_mmseg.report.report import write_report
from pfb_mmseg.report.scan import Scanner

MIXED = [dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]


@DATASETS.register_module()
class InMemoryDataset(BaseDataset):
    """Images that are no files, as those of MMPretrain's CIFAR10."""

    METAINFO = dict(classes=CLASSES)

    def load_data_list(self):
        rng = np.random.default_rng(0)
        return [
            dict(img=rng.integers(0, 256, (32, 32, 3), np.uint8), gt_label=index % 3)
            for index in range(NUM_IMAGES)
        ]


@pytest.fixture(scope='module')
def run(tmp_path_factory, images):
    work_dir = tmp_path_factory.mktemp('run')
    train(run_config(images, work_dir))
    return work_dir


@pytest.fixture(scope='module')
def hard_run(tmp_path_factory, images):
    work_dir = tmp_path_factory.mktemp('hard')
    # Its early exit learns for ten steps before it decides.
    options = {'model.train_cfg': dict(augments=MIXED), 'train_dataloader.batch_size': 2}
    pfb = dict(criterion='hard')
    train(run_config(images, work_dir, pfb=pfb, **options))
    return work_dir


def config_of(work_dir):
    [file] = work_dir.glob('*/vis_data/config.py')
    return file


def text_of(page):
    markup = r'<style>.*?</style>|<pre>.*?</pre>|<[^>]*>'
    return ' '.join(re.sub(markup, ' ', page, flags=re.S).split())


@pytest.mark.parametrize('which', ['run', 'hard_run'], ids=['plain', 'mixed'])
def test_the_record_counts_images_by_the_class_that_they_were_loaded_with(which, request):
    """Also where Mixup and CutMix make shares of classes of them afterwards."""
    record = SelectionRecord.load(request.getfixturevalue(which) / 'pfb_record.npz')
    assert (record.classes, record.class_unit) == ([*CLASSES], 'images')
    folders = [PurePosixPath(path).parent.name for path in record.paths]
    expected = np.zeros((2, 3), int)
    for name, candidates, kept in zip(folders, record.candidates, record.kept, strict=True):
        expected[:, CLASSES.index(name)] += candidates - kept, kept
    assert expected.sum(axis=1).all()
    assert record.class_counts.tolist() == expected.tolist()


def test_the_report_speaks_of_images_and_names_their_classes(run, tmp_path):
    read(['report', str(run), '--out', str(tmp_path), '--images', '3'])()
    text = text_of((tmp_path / 'index.html').read_text())
    assert 'Share of each class among the images, while' in text
    assert 'Logged up to epoch 3 of 3' in text
    assert 'top-1 of the last validation' in text
    assert re.search(r'\d (cat|dog|owl); kept \d of \d; log density', text)
    assert 'pixel' not in text and 'ground truth' not in text


def test_the_report_of_an_interrupted_run_says_how_many_epochs_are_done(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    config = Config.fromfile(config_of(tmp_path))
    config.train_cfg.max_epochs = 9
    config.dump(config_of(tmp_path))
    text = text_of(write_report(tmp_path, num_images=0).read_text())
    assert 'Logged up to epoch 3 of 9' in text


def test_images_without_a_file_go_by_their_place_in_the_data_set(tmp_path):
    config = run_config('nowhere', tmp_path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.dataset = dict(type='InMemoryDataset', pipeline=[dict(type='PackInputs')])
    train(config)
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    assert {*record.paths} == {f'image {index}' for index in range(NUM_IMAGES)}
    read(['report', str(tmp_path), '--images', str(NUM_IMAGES)])()
    page = (tmp_path / 'pruning_report' / 'index.html').read_text()
    for index, path in enumerate(record.paths):
        place = int(path.removeprefix('image '))
        assert f'{path} {CLASSES[place % 3]}; kept {record.kept[index]} of' in text_of(page)
    config_file, out = config_of(tmp_path), tmp_path / 'out'
    read(['browse', str(config_file), str(tmp_path / 'epoch_3.pth'), '--out', str(out)])()
    with open(out / 'ranking.csv', newline='') as file:
        assert {row[2] for row in csv.reader(file)} == {*record.paths, 'path'}


@pytest.mark.parametrize(
    ('which', 'criterion', 'score_name'),
    [
        ('run', 'rare', 'log_density'),
        ('run', 'loss_topk', 'loss'),
        ('hard_run', 'hard', 'loss'),
    ],
)
def test_browse_ranks_a_data_set_by_each_criterion(which, criterion, score_name, request, tmp_path):
    work_dir = request.getfixturevalue(which)
    arguments = [config_of(work_dir), work_dir / 'epoch_3.pth', '--out', tmp_path]
    read(['browse', *map(str, arguments), '--criterion', criterion])()
    with open(tmp_path / 'ranking.csv', newline='') as file:
        head, *rows = csv.reader(file)
    assert head[3] == score_name and len(rows) == NUM_IMAGES
    scores = [float(row[3]) for row in rows]
    assert scores == sorted(scores, reverse=criterion != 'rare')
    text = text_of((tmp_path / 'index.html').read_text())
    assert f'{NUM_IMAGES} images by their' in text


def scan(work_dir, criterion, batch_size):
    config = Config.fromfile(config_of(work_dir))
    scanner = Scanner(config, work_dir / 'epoch_3.pth', criterion=criterion)
    infos = ImageSet(config).infos
    images = torch.stack([scanner._pipeline(dict(info))['inputs'] for info in infos])
    labels = torch.tensor([info['gt_label'] for info in infos])
    observed = scanner.score(infos, batch_size)
    return scanner.model, (images - 127.5) / 64, labels, observed


def test_a_loss_is_that_of_each_image_alone(run):
    model, images, labels, found = scan(run, 'loss_topk', 5)
    with torch.no_grad():
        scores = model.head(model.extract_feat(images))
    assert_close(found, F.cross_entropy(scores, labels, reduction='none'), rtol=1e-4, atol=1e-5)
