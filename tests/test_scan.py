"""Ranking a data set by the score of a criterion, by the tool and by itself."""

import csv
import re

import numpy as np
import pytest
import torch
from demo_runs import demo_config, train
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmseg.models.utils import resize
from mmseg.registry import TRANSFORMS
from test_reports import tool
from torch.nn import functional as F

from pfb_mmseg.report.images import ImageSet
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
            work_dir = folder / str(len(made))
            options = {'default_hooks.checkpoint.interval': 12}
            config = demo_config(work_dir, **options)
            config.model.pfb.criterion = dict(criterion)
            train(config)
            (file,) = work_dir.glob('*/vis_data/config.py')
            made[criterion] = (file, work_dir / 'iter_12.pth')
        return made[criterion]

    return lambda name, **options: make((('type', name), *options.items()))


def ranking(folder):
    with open(folder / 'ranking.csv', newline='') as file:
        (*_, score_name), *rows = csv.reader(file)
    return score_name, {path: float(score) for *_, path, score in rows}


def scores(config, checkpoint, criterion=None, batch_size=8):
    scanner = Scanner(Config.fromfile(config), checkpoint, criterion=criterion)
    infos = ImageSet(Config.fromfile(config)).infos
    return scanner.score(scanner.observe(infos, batch_size))


class TestTool:
    def test_ranks_by_the_config_s_criterion_hardest_first(self, runs, tmp_path, monkeypatch):
        config, checkpoint = runs('hard')
        arguments = [config, checkpoint, '--device', 'cpu', '--images', 3, '--out', tmp_path]
        assert tool('browse_selection.py', monkeypatch, *arguments) == 0
        score_name, found = ranking(tmp_path)
        assert score_name == 'exit_loss' and len(found) == 24
        values = list(found.values())
        assert values == sorted(values, reverse=True) and values[0] > values[-1] > 0
        text = (tmp_path / 'index.html').read_text()
        assert 'How hard the images were' in text and 'labelled wrongly' in text

    def test_ranks_by_another_one_if_told(self, runs, tmp_path, monkeypatch):
        config, checkpoint = runs('random')
        arguments = [config, checkpoint, '--device', 'cpu', '--images', 0, '--out', tmp_path]
        for criterion, expected in (
            ('hard', 'exit_loss'), ('loss_topk', 'loss'), ('rare', 'log_density')
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
            (['--criterion', 'hard', '--refit'], '--refit learns a density'),
            (
                ['--criterion', 'hard', '--cfg-options', 'model.pfb.block_after=backbone.layer2'],
                'has no exit behind backbone.layer2',
            ),
            (
                ['--criterion', 'hard', '--cfg-options', 'test_dataloader.dataset.pipeline.1.type='
                 'NoLabels', 'val_dataloader.dataset.pipeline.1.type=NoLabels'],
                'has no labels, by which exit_loss is measured',
            ),
        ],
    )  # fmt: skip
    def test_says_what_cannot_be(self, runs, tmp_path, monkeypatch, capsys, options, complaint):
        config, checkpoint = runs('random')
        arguments = [config, checkpoint, '--device', 'cpu', '--out', tmp_path, *options]
        assert tool('browse_selection.py', monkeypatch, *arguments) == 2
        assert complaint in re.sub(r'\s+', ' ', capsys.readouterr().err)

    @pytest.mark.slow
    def test_wrong_labels_come_first(self, tmp_path, monkeypatch):
        """Of 300 scenes 30 have the labels of another, as often as not of one of the same kind."""
        options = {
            'model.backbone.base_channels': 16,
            'model.decode_head.in_channels': 128,
            'model.decode_head.channels': 32,
            'model.auxiliary_head.in_channels': 64,
            'model.auxiliary_head.channels': 32,
            'train_dataloader.dataset.length': 300,
            'train_dataloader.dataset.wrong_labels': 0.1,
            'train_dataloader.batch_size': 8,
            'default_hooks.checkpoint.interval': 250,
        }
        config = demo_config(tmp_path, 250, **options)
        config.model.pfb.prune_ratio = 0.0
        train(config)
        (file,) = tmp_path.glob('*/vis_data/config.py')
        arguments = [file, tmp_path / 'iter_250.pth', '--device', 'cpu', '--images', 0]
        arguments += ['--criterion', 'hard', '--out', tmp_path / 'out']
        assert tool('browse_selection.py', monkeypatch, *arguments) == 0
        found, infos = ranking(tmp_path / 'out')[1], ImageSet(config).infos
        wrong = np.array([found[info['img_path']] for info in infos if 'labels_of' in info])
        right = np.array([found[info['img_path']] for info in infos if 'labels_of' not in info])
        assert len(wrong) == 30
        # Area under the ROC curve; by chance 0.5 with a standard deviation of 0.06.
        assert (wrong[:, None] > right).mean() > 0.7


class TestScores:
    def test_are_the_auxiliary_head_s_loss_of_each_image_alone(self, runs):
        config, checkpoint = runs('random')
        found = scores(config, checkpoint, 'hard')
        torch.testing.assert_close(found, scores(config, checkpoint, 'hard', 3))
        scanner = Scanner(Config.fromfile(config), checkpoint, criterion='hard')
        model, images = scanner.model, ImageSet(Config.fromfile(config))
        for place, loss in enumerate(found):
            image, labels = images.load(place)
            image = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float()
            mean, std = (getattr(model.data_preprocessor, name) for name in ('mean', 'std'))
            with torch.no_grad():
                features = model.backbone(((image - mean) / std)[None])[2]
                features = F.avg_pool2d(features, model.pfb.exit.pool)
                logits = model.auxiliary_head([features] * 3)
            step = 64 // logits.shape[-1]
            labels = torch.from_numpy(labels.astype(int))[step // 2 :: step, step // 2 :: step]
            pixels = F.cross_entropy(logits, labels[None], ignore_index=255, reduction='none')
            weight = model.auxiliary_head.loss_decode.loss_weight
            assert loss == pytest.approx(weight * pixels.mean().item(), rel=1e-3)

    def test_labels_are_laid_over_images_that_were_resized_and_padded(self, runs):
        """Each label over its own pixels: as if image and labels had been made so beforehand."""
        config, checkpoint = runs('random')
        changed = Config.fromfile(config)
        for loader in (changed.test_dataloader, changed.val_dataloader):
            loader.dataset.pipeline.insert(1, dict(type='Resize', scale=(96, 96)))
        changed.model.data_preprocessor.test_cfg = dict(size=(128, 160))
        scanner = Scanner(changed, checkpoint, criterion='loss_topk')
        infos = ImageSet(changed).infos[:3]
        found = scanner.score(scanner.observe(infos))
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

    def test_an_exit_of_its_own_comes_from_the_checkpoint(self, runs):
        config, checkpoint = runs('hard', exit='own')
        scanner = Scanner(Config.fromfile(config), checkpoint)
        weights = torch.load(checkpoint, weights_only=False)['state_dict']
        for name, value in scanner.model.pfb.exit.state_dict().items():
            assert torch.equal(value, weights[f'pfb.exit.{name}']), name
        assert scores(config, checkpoint).isfinite().all()
