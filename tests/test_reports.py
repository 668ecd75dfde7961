"""What the report, the ranking and the check of a data set tell, on small runs and data sets."""

import json
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from demo_runs import ROOT, demo_config, train
from mmengine.config import Config

from pfb_mmseg.convert.apply import remove_pfb
from pfb_mmseg.report import SelectionRecord
from pfb_mmseg.report.browse import write_ranking
from pfb_mmseg.report.images import ImageSet
from pfb_mmseg.report.report import write_report


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run on demo scenes, whose images are no files."""
    work_dir = tmp_path_factory.mktemp('runs') / '<b>run</b> & more'
    options = {
        'train_cfg.val_interval': 20,
        'default_hooks.checkpoint.interval': 10,
        'default_hooks.logger.interval': 5,
    }
    hooks = [dict(type='PFBHook', begin=2, end=1.0)]
    train(demo_config(work_dir, max_iters=20, custom_hooks=hooks, **options))
    return work_dir


def tool(name, monkeypatch, *arguments):
    """Run tools/<name> in this process; returns its exit status."""
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
    except SystemExit as stop:
        return stop.code
    return 0


class _Page(HTMLParser):
    VOID = {'meta', 'img', 'br'}

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ('src', 'href')]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


class TestReport:
    def test_is_one_page_that_needs_no_other_file(self, run, tmp_path):
        text = write_report(run, tmp_path, 3).read_text()
        page = _Page(text)
        words = ' '.join(page.words)
        assert all(source.startswith('data:image/') for source in page.sources)
        assert 'http' not in re.sub(r'<pre>.*?</pre>', '', text, flags=re.S)
        for heading in (
            'Over the run', 'Scores of the images', 'Classes in kept and dropped images',
            'Most often kept', 'Most often dropped', 'The run',
        ):  # fmt: skip
            assert heading in words
        assert 'Logged up to iteration 20 of 20' in words and 'PFBEncoderDecoder' in words
        assert len(page.sources) == 2 + 2 * 3  # two plots, two galleries of three

    def test_the_share_kept_is_that_of_the_steps_in_which_images_were_dropped(self, run, tmp_path):
        """Half of each batch; the first and last intervals of the log are mixed."""
        words = _Page(write_report(run, tmp_path, 0).read_text()).words
        assert words[words.index('Share of the images kept while pruning') + 1] == '50%'

    @pytest.mark.parametrize(
        ('score_name', 'heading', 'order'),
        [('exit_loss', 'Scores of the images: loss at the exit', 'the hardest among them first'),
         ('grad_norm', 'Scores of the images: grad norm', 'the highest among them first')],
    )  # fmt: skip
    def test_speaks_of_the_score_that_decided(self, run, tmp_path, score_name, heading, order):
        shutil.copytree(run, tmp_path / 'run')
        record = SelectionRecord(['a'])
        paths = ['demo/train/easy', 'demo/train/hard', 'demo/train/middle']
        for _ in range(4):
            kept = np.array([False, True, True])
            record.add(paths, kept, np.array([0.0, 2.5, 0.7]), score_name=score_name)
        record.save(tmp_path / 'run' / 'pfb_record.npz')
        text = write_report(tmp_path / 'run', tmp_path / 'out', 3).read_text()
        words = _Page(text).words
        assert heading in words and any(order in sentence for sentence in words)
        assert 'log density' not in text
        most_kept = text[text.index('Most often kept') : text.index('Most often dropped')]
        assert most_kept.index('train/hard') < most_kept.index('train/middle')
        label = {'exit_loss': 'loss at the exit', 'grad_norm': 'grad norm'}[score_name]
        assert f'{label} 2.5' in most_kept

    def test_of_a_run_that_scored_nothing_speaks_of_no_score(self, run, tmp_path):
        shutil.copytree(run, tmp_path / 'run')
        record = SelectionRecord(['a'])
        record.add(['demo/train/x', 'demo/train/y'], np.array([False, True]))
        record.save(tmp_path / 'run' / 'pfb_record.npz')
        text = write_report(tmp_path / 'run', tmp_path / 'out', 3).read_text()
        assert 'Most often kept' in text and 'among them first' not in text
        assert len(_Page(text).sources) == 1  # the plot over the run

    def test_escapes_what_comes_from_names(self, run, tmp_path):
        text = write_report(run, tmp_path, num_images=0).read_text()
        assert '<b>run' not in text and '&lt;b&gt;run&lt;/b&gt; &amp; more' in text

    def test_of_a_run_before_its_first_checkpoint_says_what_is_missing(self, run, tmp_path):
        for part in run.glob('*/vis_data/*'):
            target = tmp_path / part.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = part.read_text().splitlines(keepends=True)
            target.write_text(''.join(lines[:1] if part.name == 'scalars.json' else lines))
        words = ' '.join(_Page(write_report(tmp_path).read_text()).words)
        assert 'Logged up to iteration 5 of 20' in words
        assert 'There is no pfb_record.npz yet' in words and 'Over the run' in words

    def test_survives_a_log_that_is_being_written(self, run, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        (log,) = tmp_path.glob('*/vis_data/scalars.json')
        log.write_text(log.read_text() + '{"loss": 1, "st')
        assert 'Logged up to iteration 20 of 20' in write_report(tmp_path, num_images=0).read_text()

    def test_without_the_images_says_so(self, run, tmp_path, monkeypatch):
        def gone(*args):
            raise FileNotFoundError('data/camvid')

        monkeypatch.setattr('pfb_mmseg.report.report.ImageSet', gone)
        words = ' '.join(_Page(write_report(run, tmp_path).read_text()).words)
        assert 'run the report where the training was run' in words
        assert 'Most often dropped' in words

    def test_refuses_a_run_without_pfb_and_a_folder_without_a_run(
        self, tmp_path, monkeypatch, capsys
    ):
        folder = tmp_path / 'run' / '1' / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(json.dumps(dict(loss=1, step=1)))
        assert tool('pruning_report.py', monkeypatch, tmp_path / 'run') == 2
        assert 'was PFBHook in its config?' in capsys.readouterr().err
        assert tool('pruning_report.py', monkeypatch, tmp_path) == 2
        assert 'is it the work dir of a run' in capsys.readouterr().err


def ranking(folder):
    head, *rows = (folder / 'ranking.csv').read_text().splitlines()
    assert head == 'rank,index,path,log_density'
    rows = [row.split(',') for row in rows]
    return [(int(rank), path, float(value)) for rank, _, path, value in rows]


class TestBrowse:
    @pytest.fixture
    def config(self, run):
        (file,) = run.glob('*/vis_data/config.py')
        return file

    def test_ranks_every_image_rarest_first_the_same_way_each_time(
        self, run, config, tmp_path, monkeypatch
    ):
        arguments = [config, run / 'iter_20.pth', '--images', 4]
        for folder, size in (('a', 8), ('b', 5)):
            options = ['--out', tmp_path / folder, '--batch-size', size]
            assert tool('browse_selection.py', monkeypatch, *arguments, *options) == 0
        rows = ranking(tmp_path / 'a')
        assert [rank for rank, _, _ in rows] == list(range(1, 25))
        assert sorted(path for _, path, _ in rows) == sorted(
            ImageSet(Config.fromfile(config)).paths
        )
        values = [value for _, _, value in rows]
        assert values == sorted(values) and values[0] < values[-1]
        other = {path: value for _, path, value in ranking(tmp_path / 'b')}
        np.testing.assert_allclose([other[path] for _, path, _ in rows], values, atol=0.01)
        page = _Page((tmp_path / 'a' / 'index.html').read_text())
        assert len(page.sources) == 8

    def test_learns_the_density_where_the_checkpoint_has_none(
        self, run, config, tmp_path, monkeypatch, capsys
    ):
        weights = torch.load(run / 'iter_20.pth', weights_only=False)['state_dict']
        plain = {k: v for k, v in weights.items() if not k.startswith('pfb.')}
        torch.save({'state_dict': plain}, tmp_path / 'plain.pth')
        plain_config = Config.fromfile(config)
        remove_pfb(plain_config)
        plain_config.train_dataloader.dataset.length = 70  # for 64 centroids
        plain_config.dump(tmp_path / 'plain.py')
        arguments = [tmp_path / 'plain.py', tmp_path / 'plain.pth', '--out', tmp_path / 'out']
        assert tool('browse_selection.py', monkeypatch, *arguments) == 0
        assert 'trained without PFB' in capsys.readouterr().out
        values = [value for _, _, value in ranking(tmp_path / 'out')]
        assert len(values) == 70 and np.isfinite(values).all()

    def test_by_a_loss_the_hardest_come_first(self, config, tmp_path):
        images = ImageSet(Config.fromfile(config))
        losses = torch.rand(len(images.infos))
        losses[3] = torch.nan
        write_ranking(images, losses, tmp_path, 2, 'exit_loss')
        head, *rows = (tmp_path / 'ranking.csv').read_text().splitlines()
        assert head == 'rank,index,path,exit_loss'
        values = [float(row.split(',')[3]) for row in rows]
        assert values[:-1] == sorted(values[:-1], reverse=True) and np.isnan(values[-1])
        words = ' '.join(_Page((tmp_path / 'index.html').read_text()).words)
        assert 'Hardest' in words and f'loss at the exit {values[0]:.3g}' in words

    def test_refuses_a_checkpoint_of_another_model(self, config, tmp_path, monkeypatch, capsys):
        torch.save({'state_dict': {'x': torch.zeros(1)}}, tmp_path / 'other.pth')
        assert tool('browse_selection.py', monkeypatch, config, tmp_path / 'other.pth') == 2
        assert 'is no checkpoint of this config' in capsys.readouterr().err


def write(path, size=(8, 6), label=None):
    """An image of random pixels, or a label map of one value, or of the values given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if label is None:
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    else:
        pixels = np.full(size, label, np.uint8)
    assert cv2.imwrite(str(path), pixels)


def dataset_config(root, kind='BaseSegDataset', **options):
    dataset = dict(
        type=kind,
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=[],
        **options,
    )
    return Config(dict(train_dataloader=dict(dataset=dataset)))


TWO = dict(metainfo=dict(classes=('a', 'b')), img_suffix='.png')


def test_the_picture_of_an_unlabelled_image_is_the_image(tmp_path):
    write(tmp_path / 'images' / 'a.png', size=(32, 32))
    for prefix in (dict(img_path='images', seg_map_path='labels'), dict(img_path='images')):
        config = dataset_config(tmp_path, **TWO)
        config.train_dataloader.dataset.data_prefix = prefix
        images = ImageSet(config)
        image, labels = images.load(0)
        assert image.shape == (32, 32, 3) and labels is None
        assert images.picture(0).startswith(b'\xff\xd8')


def test_the_picture_of_an_image_shows_its_labels_and_leaves_ignored_pixels_bare(tmp_path):
    write(tmp_path / 'images' / 'a.png', size=(32, 32))
    labels = np.zeros((32, 32), np.uint8)
    labels[16:] = 255
    Path(tmp_path / 'labels').mkdir()
    cv2.imwrite(str(tmp_path / 'labels' / 'a.png'), labels)
    metainfo = dict(classes=('a',), palette=[[255, 0, 0]])
    config = dataset_config(tmp_path, metainfo=metainfo, img_suffix='.png')
    images = ImageSet(config)
    jpeg = np.frombuffer(images.picture(0, width=64), np.uint8)
    red = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., 2].astype(int)
    assert red.shape == (64, 64)
    assert red[:28].mean() > red[36:].mean() + 40
