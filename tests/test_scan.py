"""Ranking a data set by the score of a criterion, by the tool and by itself."""

import csv
import re

import numpy as np
import pytest
import torch
from demo_runs import demo_config, train
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.models.utils import resize
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from test_reports import tool
from torch.nn import functional as F

from pfb_mmseg.commands.main import read
from pfb_mmseg.report import SelectionRecord
from pfb_mmseg.report.images import ImageSet
from pfb_mmseg.report.report import write_report
from pfb_mmseg.report.scan import Scanner


@TRANSFORMS.register_module()
class NoLabels(BaseTransform):
    """In place of LoadAnnotations for images that nobody has labelled."""

    def transform(self, results):
        return results


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Short runs by criterion: their config, and their checkpoint."""
    folder, made = tmp_path_factory.mktemp('runs'), {}

    def make(criterion):
        if criterion not in made:
            work_dir = folder / criterion
            config = demo_config(work_dir, **{'default_hooks.checkpoint.interval': 12})
            config.model.pfb = dict(prune_ratio=0.5, criterion=criterion)
            train(config)
            (file,) = work_dir.glob('*/vis_data/config.py')
            made[criterion] = (file, work_dir / 'iter_12.pth')
        return made[criterion]

    return make


def ranking(folder):
    with open(folder / 'ranking.csv', newline='') as file:
        (*_, score_name), *rows = csv.reader(file)
    return score_name, {path: float(score) for *_, path, score in rows}


class TestTool:
    def test_by_hard_ranks_by_the_loss_of_the_whole_model_hardest_first(
        self, runs, tmp_path, monkeypatch
    ):
        config, checkpoint = runs('hard')
        arguments = [config, checkpoint, '--images', 3, '--out', tmp_path]
        assert tool('browse_selection.py', monkeypatch, *arguments) == 0
        score_name, found = ranking(tmp_path)
        assert score_name == 'loss' and len(found) == 24
        values = list(found.values())
        assert values == sorted(values, reverse=True) and values[0] > values[-1] > 0
        text = (tmp_path / 'index.html').read_text()
        assert 'Hardest' in text and 'Easiest' in text

    def test_ranks_by_another_one_if_told(self, runs, tmp_path, monkeypatch):
        config, checkpoint = runs('random')
        arguments = [config, checkpoint, '--images', 0, '--out', tmp_path]
        arguments += ['--cfg-options', 'train_dataloader.dataset.length=70']  # for 64 centroids
        for criterion, expected in (
            ('hard', 'loss'), ('loss_topk', 'loss'), ('rare', 'log_density')
        ):  # fmt: skip
            told = ['--criterion', criterion]
            assert tool('browse_selection.py', monkeypatch, *arguments, *told) == 0
            assert ranking(tmp_path)[0] == expected
        assert tool('browse_selection.py', monkeypatch, *arguments) == 0
        assert ranking(tmp_path)[0] == 'log_density'  # random draws rank nothing

    @pytest.mark.parametrize(
        ('options', 'complaint'),
        [
            (['--criterion', 'divbs'], "no image a score of its own; rank by one of 'rare'"),
            (['--criterion', 'hardest'], "criterion='hardest': expected one of"),
            (
                ['--criterion', 'loss_topk', '--cfg-options',
                 'test_dataloader.dataset.pipeline.1.type=NoLabels',
                 'val_dataloader.dataset.pipeline.1.type=NoLabels'],
                'has no labels, by which loss is measured',
            ),
        ],
    )  # fmt: skip
    def test_says_what_cannot_be(self, runs, tmp_path, monkeypatch, capsys, options, complaint):
        config, checkpoint = runs('random')
        arguments = [config, checkpoint, '--out', tmp_path, *options]
        assert tool('browse_selection.py', monkeypatch, *arguments) == 2
        assert complaint in re.sub(r'\s+', ' ', capsys.readouterr().err)


class TestScores:
    def test_labels_are_laid_over_images_that_were_resized_and_padded(self, runs):
        """Each label over its own pixels: as if image and labels had been made so beforehand."""
        config, checkpoint = runs('random')
        changed = Config.fromfile(config)
        for loader in (changed.test_dataloader, changed.val_dataloader):
            loader.dataset.pipeline.insert(1, dict(type='Resize', scale=(96, 96)))
        changed.model.data_preprocessor.test_cfg = dict(size=(128, 160))
        scanner = Scanner(changed, checkpoint, criterion='loss_topk')
        infos = ImageSet(changed).infos[:3]
        found = scanner.score(infos)
        for loss, info in zip(found, infos, strict=True):
            item = scanner._pipeline(dict(info))
            with torch.no_grad():
                image = scanner.model.data_preprocessor(
                    dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
                )['inputs']
                logits = resize(scanner.model(image, mode='tensor'), (128, 160), mode='bilinear')
            labels = item['data_samples'].gt_sem_seg.data[0]
            assert labels.shape == (64, 64) and image.shape[2:] == (128, 160)
            place = ((torch.arange(96) + 0.5) * 64 / 96).long()
            pixels = F.cross_entropy(
                logits[..., :96, :96],
                labels[place][:, place][None],
                ignore_index=255,
                reduction='none',
            )
            assert loss == pytest.approx(pixels.sum().item() / (128 * 160), rel=1e-3)


@DATASETS.register_module()
class HalvesDataset(BaseSegDataset):
    """The left and the right half of each picture are samples of their own."""

    METAINFO = dict(classes=('dark', 'bright'))

    def load_data_list(self):
        infos = super().load_data_list()
        return [{**info, 'right': right} for info in infos for right in (False, True)]


@TRANSFORMS.register_module()
class CutHalf(BaseTransform):
    def transform(self, results):
        part = slice(16, 32) if results['right'] else slice(0, 16)
        for name in ('img', 'gt_seg_map'):
            results[name] = results[name][:, part]
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


def file_config(folder, work_dir, kind, *steps, **options):
    """The demo network on pictures that are dark on the left and bright on the right."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), *steps]
    dataset = dict(
        type=kind,
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        pipeline=[*pipeline, dict(type='PackSegInputs')],
        metainfo=dict(classes=('dark', 'bright')),
    )
    config = demo_config(work_dir, max_iters=8)
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset = dataset
    classes = {f'model.{head}_head.num_classes': 2 for head in ('decode', 'auxiliary')}
    config.merge_from_dict({'default_hooks.checkpoint.interval': 8, **classes, **options})
    return config


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    for index in range(6):
        image = rng.integers(0, 100, (32, 32, 3), np.uint8)
        image[:, 16:] += 100
        Image.fromarray(image).save(tmp_path / 'images' / f'{index}.png')
        Image.fromarray(np.uint8(image[..., 0] >= 100)).save(tmp_path / 'labels' / f'{index}.png')
    return tmp_path


class TestSamplesOfOneFile:
    def test_are_entries_of_their_own(self, folder):
        """In the record, in the report and in the ranking."""
        options = {
            'model.data_preprocessor.size': (32, 16),
            'custom_hooks': [dict(type='PFBHook', begin=0, end=1.0)],
        }
        work_dir = folder / 'run'
        half = dict(type='CutHalf')
        config = file_config(folder, work_dir, 'HalvesDataset', half, **options)
        config.model.pfb = dict(prune_ratio=0.5, criterion='hard', exit_loss_weight=0)
        train(config)
        record = SelectionRecord.load(work_dir / 'pfb_record.npz')
        assert sorted(record.places.tolist()) == list(range(12))
        page = write_report(work_dir, num_images=12).read_text()
        for row, place in enumerate(record.places):
            shown = f'{place // 2} [{place}]</b>kept {record.kept[row]} of {record.candidates[row]}'
            assert shown in page

        config.dump(folder / 'config.py')
        arguments = ['browse', folder / 'config.py', work_dir / 'iter_8.pth']
        arguments += ['--criterion', 'loss_topk', '--out', folder / 'out']
        read([*map(str, arguments)])()
        with open(folder / 'out' / 'ranking.csv', newline='') as file:
            rows = {int(index): (path, score) for _, index, path, score in csv.reader(file)
                    if index != 'index'}  # fmt: skip
        assert sorted(rows) == list(range(12))
        for place, (path, _) in rows.items():
            assert path == str(folder / 'images' / f'{place // 2}.png')
        page = (folder / 'out' / 'index.html').read_text()
        assert all(f'{place // 2} [{place}]</b>loss' in page for place in range(12))


class TestPadding:
    @pytest.mark.parametrize('channels', [2, 1])
    def test_counts_as_the_label_that_the_head_ignores(self, folder, channels):
        """A padded image scores as one with so many unlabelled pixels."""
        loss = dict(type='CrossEntropyLoss', use_sigmoid=channels == 1, loss_weight=1.0)
        head = dict(ignore_index=250, out_channels=channels, loss_decode=loss)
        options = {f'model.{name}_head.{key}': value for name in ('decode', 'auxiliary')
                   for key, value in head.items()}  # fmt: skip
        options['model.data_preprocessor'] = dict(
            size=(32, 32), seg_pad_val=250, test_cfg=dict(size=(48, 64))
        )
        config = file_config(folder, folder / 'run', 'BaseSegDataset', **options)
        config.model.pfb = dict(prune_ratio=0.5)
        model = MODELS.build(config.model)
        torch.save({'state_dict': model.state_dict()}, folder / 'model.pth')
        infos = ImageSet(config).infos
        scanner = Scanner(config, folder / 'model.pth', criterion='loss_topk')
        found = scanner.score(infos)
        for loss, info in zip(found, infos, strict=True):
            item = scanner._pipeline(dict(info))
            data = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
            with torch.no_grad():
                image = scanner.model.data_preprocessor(data)['inputs']
                logits = scanner.model(image, mode='tensor')
                logits = resize(logits, (48, 64), mode='bilinear')[..., :32, :32]
            labels = item['data_samples'].gt_sem_seg.data
            if channels == 1:
                pixels = F.binary_cross_entropy_with_logits(
                    logits[:, 0], labels.float(), reduction='none'
                )
            else:
                pixels = F.cross_entropy(logits, labels, reduction='none')
            assert loss == pytest.approx(pixels.sum().item() / (48 * 64), rel=1e-3)
