"""tools/benchmark_loader.py: its files, a whole tiny bench that is called twice, and mistakes."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS
from rich.progress import Progress

from benchmarks import loader
from pfb_mmseg.compare.methods import PRUNING_METHODS
from pfb_mmseg.shipped import find_config

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools/benchmark_loader.py'


def write_images(folder, num_images, seed=0):
    loader.write_images(folder, num_images, Progress(disable=True), seed)
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob('*.png')}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cityscapes')
    write_images(folder, 2)
    return folder


def request_of(**changes):
    options = dict(
        methods=['pfb'], ratios=[0.5], seeds=[0], heights=[32], images=2, iters=8, batch_size=2,
        workers=1,
    )  # fmt: skip
    return loader.Request(**{**options, **changes})


class TestFiles:
    def test_are_what_cityscapes_loads(self, folder):
        dataset = CityscapesDataset(
            data_root=str(folder),
            data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        )
        assert len(dataset) == 2
        for index in range(2):
            info = dataset.get_data_info(index)
            image = cv2.imread(info['img_path'], cv2.IMREAD_UNCHANGED)
            labels = cv2.imread(info['seg_map_path'], cv2.IMREAD_UNCHANGED)
            assert image.shape == (1024, 2048, 3) and labels.shape == (1024, 2048)
            seen = {
                dataset.METAINFO['classes'][label] for label in np.unique(labels) if label < 255
            }
            assert {'road', 'building'} <= seen
            assert seen <= {'road', 'building', 'sky', 'vegetation', 'car'}
            # An edge of the labels is one of the image: they show the same scene.
            road = labels == CityscapesDataset.METAINFO['classes'].index('road')
            assert image[road].std(axis=0).mean() < 0.8 * image.std(axis=(0, 1)).mean()

    def test_come_through_the_pipeline_of_cityscapes_and_are_scaled_last(self, folder):
        init_default_scope('mmseg')
        config = loader.config_of(request_of(), folder, 32).train_dataloader
        *steps, pack = Config.fromfile(
            find_config('deeplabv3_r50-d8_4xb2-36k_cityscapes-512x1024')
        ).train_dataloader.dataset.pipeline
        scaled = dict(type='Resize', scale=(64, 32))
        assert config.dataset.pipeline == [*steps, scaled, pack]
        dataset = DATASETS.build(config.dataset)
        assert len(dataset) == 2
        sample = dataset[1]
        assert sample['inputs'].shape == (3, 32, 64)
        assert sample['data_samples'].gt_sem_seg.shape == (32, 64)
        fewer = loader.config_of(request_of(images=1), folder, 32).train_dataloader
        assert len(DATASETS.build(fewer.dataset)) == 1

    def test_are_the_same_for_the_same_seed_and_others_for_another(self, folder, tmp_path):
        first = {
            file: data for file, data in write_images(folder, 2).items() if '000000_0' in str(file)
        }
        assert len(first) == 2
        assert write_images(tmp_path / 'same', 1) == first
        other = write_images(tmp_path / 'other', 1, seed=1)
        assert other.keys() == first.keys()
        assert all(other[file] != first[file] for file in first)

    def test_that_are_there_stay_and_one_that_is_missing_is_drawn_again(self, tmp_path):
        before = write_images(tmp_path, 1)
        image, labels = sorted(before, key=lambda file: 'gtFine' in str(file))
        kept = (tmp_path / image).stat().st_mtime_ns
        write_images(tmp_path, 1)
        assert (tmp_path / image).stat().st_mtime_ns == kept
        (tmp_path / labels).unlink()
        assert write_images(tmp_path, 1) == before


def call(monkeypatch, folder, *arguments):
    """The tool as it is called in a folder; its runs are processes of their own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setattr('sys.argv', [str(TOOL), *arguments])
    runpy.run_path(str(TOOL), run_name='__main__')


def logged(run):
    """Of each iteration: seconds in all, and of these those waited."""
    [file] = run.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [(entry['time'], entry['data_time']) for entry in entries if 'data_time' in entry]


@pytest.mark.slow
def test_it_measures_writes_tables_and_keeps_its_runs(tmp_path, monkeypatch, capsys):
    arguments = ['--methods', 'hard', 'orderdp', '--ratios', '0.5', '--heights', '16']
    arguments += ['--images', '6', '--batch-size', '2', '--iters', '21', '--work-dir', 'out']
    call(monkeypatch, tmp_path, *arguments)
    found = json.loads((tmp_path / 'out/loader.json').read_text())
    assert (found['images'], found['iters'], found['workers']) == (6, 21, 1)
    lines = {line['row']: line for line in found['benches']['16']}
    assert list(lines) == ['full', 'hard-p50', 'orderdp-p50']
    for row, line in lines.items():
        run = tmp_path / 'out/height16' / row / 'seed0'
        budget = json.loads((run / 'budget.json').read_text())
        assert line['loaded'] == budget['loaded'] == 2 * line['iterations']
        entries = logged(run)
        assert len(entries) == line['iterations']
        counted = entries[6:]  # the first, two that a worker loads ahead, and an epoch
        seconds, waited = (sum(column) for column in zip(*counted, strict=True))
        assert line['seconds'] == pytest.approx(seconds / len(counted) * len(entries))
        assert line['wait'] == pytest.approx(waited / len(counted))
        assert line['share'] == pytest.approx(waited / seconds)
        saved = 1 - line['seconds'] / lines['full']['seconds']
        assert line['saved'] == (None if row == 'full' else pytest.approx(saved))
        if row == 'hard-p50':  # from the first iteration to the last
            assert budget['backward'] == 21
        assert not list(run.rglob('*.pth'))
    assert lines['full']['loaded'] == lines['hard-p50']['loaded'] == 42
    assert lines['orderdp-p50']['loaded'] == 14

    capsys.readouterr()
    call(monkeypatch, tmp_path, *arguments)
    output = capsys.readouterr().out
    for row in lines:
        assert f'{row} seed 0: reused' in output
    assert json.loads((tmp_path / 'out/loader.json').read_text())['benches'] == found['benches']
    text = (tmp_path / 'out/loader.md').read_text()
    assert 'Crops scaled to 16x32' in text
    assert [line.split(' | ')[0] for line in text.splitlines()[4:]][2:5] == [
        f'| {r}' for r in lines
    ]


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        (['--images', '0'], '--images 0: expected an integer >= 1'),
        (['--iters', '0'], '--iters 0: expected an integer >= 1'),
        (['--batch-size', '0'], '--batch-size 0: expected an integer >= 1'),
        (['--workers', '-1'], '--workers -1: expected an integer >= 0'),
        (['--ratios', '1'], '--ratios 1: expected numbers in (0, 1)'),
        (['--heights', '4'], '--heights 4: expected integers in [8, 512]'),
        (['--heights', '32', '32'], '--heights 32 32: one stands there twice'),
        (['--seeds', '0', '0'], '--seeds 0 0: one stands there twice'),
        (['--methods', 'long'], "invalid choice: 'long'"),
        (
            ['--images', '1', '--iters', '10', '--workers', '5', '--methods', 'pfb'],
            '--iters 10: full takes 10 iterations, of which the first 12 are not counted with 5',
        ),
    ],
)
def test_mistakes_are_told_before_the_first_run(
    tmp_path, monkeypatch, capsys, arguments, complaint
):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, tmp_path, *arguments)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.rglob('height*'))


def test_all_methods_that_prune_can_be_asked_for():
    assert {*PRUNING_METHODS} <= {*loader.METHODS}
