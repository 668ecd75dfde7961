"""Each script of benchmarks/, once and at toy size."""

import copy
import json
from pathlib import Path

import cv2
import pytest
from demo_runs import DEMO_CONFIG
from mmengine.config import Config
from rich.progress import Progress

from benchmarks import ablation, decision, evidence, gpu_report, loader

SHORT = [
    'train_cfg.max_iters=26',
    'train_dataloader.dataset.length=60',
    'train_dataloader.dataset.size=(32,32)',
    'model.data_preprocessor.size=(32,32)',
]
TINY = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.decode_head.in_channels': 64,
    'model.auxiliary_head.in_channels': 32,
    'model.pfb.criterion': dict(type='rare', estimator=dict(num_centroids=4, dim=16)),
    'train_cfg.max_iters': 6,
    'train_dataloader.batch_size': 4,
    'train_dataloader.dataset.length': 24,
    'val_dataloader.dataset.length': 4,
}


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield '.'.join(path), value


def changes(config, other):
    """Where two configs differ, as dotted keys, with the other's values."""
    before, after = (dict(leaves(one.to_dict())) for one in (config, other))
    return {key: value for key, value in after.items() if before.get(key) != value}


def test_decision_tells_what_each_part_takes(tmp_path, capsys):
    decision.main(['--seconds', '0.001', '--no-growth', '--out', str(tmp_path / 'out.json')])
    found = json.loads((tmp_path / 'out.json').read_text())
    costs = found['costs']['cpu']
    assert all(0 < best <= median for median, best in costs.values())
    assert '**all of it**: BatchPruner' in costs and found['launches']['cpu'] > 10
    assert '| update | ' in capsys.readouterr().out


def test_evidence_has_a_row_for_each_option_and_replays_what_it_recorded(tmp_path):
    arguments = ['--seeds', '0', '--work-dir', str(tmp_path), '--cfg-options', *SHORT]
    arguments += ['--vary', 'exploration', 'bandwidth', 'score_scale']
    evidence.main(arguments)
    table, stream = (tmp_path / 'evidence.md').read_text(), tmp_path / 'stream_0.npz'
    head, _, *body = [
        [cell.strip(' `*') for cell in line.split('|')] for line in table.splitlines()
    ]
    rows = {row[1]: dict(zip(head, row, strict=True)) for row in body}
    assert [*rows] == [
        'default',
        *('exploration=0', 'exploration=0.001', 'exploration=0.1'),
        *("bandwidth='scott'", "bandwidth='identity'", 'score_scale=0.5'),
    ]
    ranked = {name: float(row['as ranked (%)'].split(' ± ')[0]) for name, row in rows.items()}
    assert ranked['exploration=0'] == 100 > ranked['default']
    recorded = stream.stat().st_mtime_ns
    evidence.main(arguments)
    assert stream.stat().st_mtime_ns == recorded
    assert (tmp_path / 'evidence.md').read_text() == table


class TestAblation:
    def plan(self, *names):
        config = Config.fromfile(DEMO_CONFIG)
        config.model.pfb.criterion = 'rare'
        return ablation.plan(copy.deepcopy(config), names, 0.5)

    def test_a_run_differs_from_the_configs_own_in_one_setting(self):
        names = [name for name in ablation.ABLATIONS if name != 'batch_size']
        found = self.plan(*names)
        own, *others = found.rows
        seen = {}
        for row in others:
            ((key, value),) = changes(own.config, row.config).items()
            seen.setdefault(key.removeprefix('model.pfb.'), set()).add(value)
        assert seen == {
            'block_after': {'backbone.maxpool', 'backbone.layer1', 'backbone.layer2'},
            'criterion.exploration': {0.001, 0.1, 1.0, 10.0},
            'criterion.estimator.num_centroids': {16, 256},
            'criterion.estimator.dim': {32, 64},
            'criterion.estimator.weighted': {False},
            'criterion.estimator.bandwidth': {'identity', 'scott'},
        }
        for name in names:
            assert [line.row for line in found.lines[name]].count(own.name) == 1

    def test_batches_of_another_size_see_as_many_images(self):
        found = self.plan('batch_size')
        rows = {row.name: row.config for row in found.rows}
        for line in found.lines['batch_size']:
            run, beside = rows[line.row], rows[line.beside]
            size = run.train_dataloader.batch_size
            assert size == beside.train_dataloader.batch_size
            assert run.train_cfg.max_iters * size == 300 * 16
            assert 'pfb' not in beside.model
            assert ('pfb' in run.model) == line.setting.endswith('PFB')

    def test_another_criterion_is_refused(self):
        with pytest.raises(ValueError, match="'hard'"):
            ablation.plan(Config.fromfile(DEMO_CONFIG), ['weighted'], 0.5)

    @pytest.mark.slow
    def test_its_runs_train_once(self, tmp_path, capsys):
        config = Config.fromfile(DEMO_CONFIG)
        config.model.pfb.pop('criterion')
        config.merge_from_dict(TINY)
        config.dump(tmp_path / 'small.py')
        arguments = [str(tmp_path / 'small.py'), '--seeds', '0', '--vary', 'weighted']
        arguments += ['--work-dir', str(tmp_path)]
        ablation.main(arguments)
        ablation.main(arguments)
        assert 'weighted-False seed 0: reused' in capsys.readouterr().out
        found = json.loads((tmp_path / 'small/ablation.json').read_text())
        assert {run['row'] for run in found['runs']} == {'own', 'weighted-False'}
        assert "(the config's own)" in (tmp_path / 'small/ablation.md').read_text()


class TestLoader:
    def test_files_are_scenes_as_large_as_those_of_cityscapes(self, tmp_path):
        loader.write_images(tmp_path, 1, Progress(disable=True))
        image, labels = sorted(tmp_path.rglob('*.png'), key=lambda path: 'gtFine' in str(path))
        assert cv2.imread(str(image)).shape == (1024, 2048, 3)
        assert cv2.imread(str(labels), cv2.IMREAD_UNCHANGED).shape == (1024, 2048)

    @pytest.mark.slow
    def test_its_runs_are_measured_once(self, tmp_path, capsys):
        arguments = ['--methods', 'hard', 'infobatch', '--ratios', '0.5', '--heights', '32']
        arguments += ['--images', '6', '--batch-size', '2', '--iters', '21']
        loader.main([*arguments, '--work-dir', str(tmp_path)])
        found = json.loads((tmp_path / 'loader.json').read_text())
        lines = {line['row']: line for line in found['benches']['32']}
        assert list(lines) == ['full', 'hard-p50', 'infobatch-p50']
        for row, line in lines.items():
            budget = json.loads((tmp_path / 'height32' / row / 'seed0/budget.json').read_text())
            assert line['loaded'] == budget['loaded'] == 2 * line['iterations']
            assert 0 <= line['share'] <= 1
        assert lines['full']['loaded'] == lines['hard-p50']['loaded'] == 42
        assert lines['infobatch-p50']['loaded'] < 42
        capsys.readouterr()
        loader.main([*arguments, '--work-dir', str(tmp_path)])
        assert 'hard-p50 seed 0: reused' in capsys.readouterr().out


class TestGPUReport:
    def report(self, folder, *options):
        gpu_report.main(['--smoke', '--work-dir', str(folder), *options])
        return json.loads((folder / 'report.json').read_text())

    def test_a_job_is_done_once(self, tmp_path, capsys):
        first = self.report(tmp_path, '--only', 'decision')
        assert first['jobs']['decision']['status'] == 0
        assert first['torch'] and first['device'] and first['code']
        page = (tmp_path / 'report.md').read_text()
        assert '## decision: done' in page and '| update | ' in page
        assert 'decision ...' in capsys.readouterr().out
        assert self.report(tmp_path, '--only', 'decision')['jobs'] == first['jobs']
        assert 'decision ...' not in capsys.readouterr().out

    def test_what_it_names_is_there(self):
        for arguments in gpu_report.jobs(False, Path('camvid')).values():
            for argument in arguments:
                if argument.endswith('.py'):
                    assert (gpu_report.ROOT / argument).is_file()

    @pytest.mark.slow
    def test_every_job_runs(self, tmp_path):
        jobs = self.report(tmp_path)['jobs']
        assert {name: job['log'] for name, job in jobs.items() if job['status'] != 0} == {}
        assert set(jobs) == set(gpu_report.jobs(True, None))
