"""tools/ablation.py: which runs it takes, their table, and a whole one that is interrupted."""

import copy
import json
import runpy
from pathlib import Path

import pytest
from demo_runs import DEMO_CONFIG
from mmengine.config import Config
from test_compare import VALIDATION, outcome
from test_tools import CONFIG, write_data

from benchmarks.ablation import ABLATIONS, Line, Plan, plan, tables
from pfb_mmseg.compare import runs

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / 'tools/ablation.py'


@pytest.fixture(scope='module')
def config():
    return Config.fromfile(DEMO_CONFIG)


def planned(config, *names):
    return plan(copy.deepcopy(config), names, 0.5)


def changes(config, other):
    """Where two configs differ, as dotted keys, with the other's values."""

    def leaves(value, path=()):
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from leaves(inner, (*path, key))
        else:
            yield '.'.join(path), value

    before, after = (dict(leaves(one.to_dict())) for one in (config, other))
    return {key: value for key, value in after.items() if before.get(key) != value}


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('exploration', {'exploration': {0.001, 0.1, 1.0, 10.0}}),
        ('num_centroids', {'estimator.num_centroids': {16, 256}}),
        ('weighted', {'estimator.weighted': {False}}),
        ('bandwidth', {'estimator.bandwidth': {'identity', 'scott'}}),
        ('dim', {'estimator.dim': {32, 64}}),
    ],
)
def test_a_run_differs_from_the_configs_own_in_one_setting(config, name, expected):
    """Its own settings are the paper's, and all 128 channels are taken."""
    base = copy.deepcopy(config)
    base.model.pfb.estimator = dict()
    found = planned(base, name)
    own, *others = found.rows
    seen = {}
    for row in others:
        ((key, value),) = changes(own.config, row.config).items()
        seen.setdefault(key.removeprefix('model.pfb.'), set()).add(value)
    assert seen == expected
    settings = [line.setting for line in found.lines[name]]
    assert len(settings) == len(others) + 1
    assert [line.row for line in found.lines[name]].count(own.name) == 1
    assert {line.beside for line in found.lines[name]} == {own.name}


def test_images_are_blocked_behind_the_stem_and_each_stage_but_the_last(config):
    lines = planned(config, 'location').lines['location']
    rows = {row.name: row for row in planned(config, 'location').rows}
    places = {line.setting: rows[line.row].config.model.pfb.get('block_after') for line in lines}
    assert places.pop('stage 3') is None  # the config's own, without a word
    assert places == {
        'stem': 'backbone.maxpool',
        'stage 1': 'backbone.layer1',
        'stage 2': 'backbone.layer2',
    }


def test_batches_of_another_size_see_as_many_images_and_are_compared_with_their_like(config):
    found = planned(config, 'batch_size', 'weighted')
    rows = {row.name: row for row in found.rows}
    size, iters = config.train_dataloader.batch_size, config.train_cfg.max_iters
    assert len(rows) == 1 + 5 + 1
    for line in found.lines['batch_size']:
        run, beside = rows[line.row].config, rows[line.beside].config
        assert line.setting.startswith(f'{run.train_dataloader.batch_size}, ')
        assert run.train_dataloader.batch_size == beside.train_dataloader.batch_size
        assert run.train_cfg.max_iters * run.train_dataloader.batch_size == size * iters
        assert 'pfb' not in beside.model
        assert ('pfb' in run.model) == line.setting.endswith('PFB')


def test_own_settings_that_the_paper_did_not_try_stand_in_the_table_too(config):
    base = copy.deepcopy(config)
    base.model.pfb.estimator.num_centroids = 48
    lines = planned(base, 'num_centroids').lines['num_centroids']
    assert [line.setting for line in lines] == ['16', '64', '256', 'another']


def test_what_does_not_fit_is_refused_before_the_first_run(config):
    base = copy.deepcopy(config)
    base.pop('val_dataloader')
    with pytest.raises(ValueError, match='no val_dataloader'):
        plan(base, ['weighted'], 0.5)


def test_differences_are_paired_by_seed():
    lines = {
        'weighted': [Line('False', 'w', 'own'), Line('True', 'own', 'own')],
        'batch_size': [Line('8, all images', 'f', 'f'), Line('8, PFB', 'own', 'f')],
    }
    outcomes = [
        outcome(row, seed, score, 1.0)
        for row, scores in dict(own=(50, 60), w=(48, 61), f=(52, 62)).items()
        for seed, score in enumerate(scores)
    ]
    text = tables(Plan([], lines), outcomes)
    assert '| False | 54.50 ± 9.19 | -0.50 ± 2.12 |' in text
    assert "| True (the config's own) | 55.00 ± 7.07 | - |" in text
    assert '| 8, all images | 57.00 ± 7.07 | - |' in text
    assert '| 8, PFB | 55.00 ± 7.07 | -2.00 ± 0.00 |' in text
    for name in lines:
        assert ABLATIONS[name].source in text and ABLATIONS[name].finding in text


TRAIN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
logs = folder / '20260101_000000/vis_data'
logs.mkdir(parents=True)
identity = "bandwidth='identity'" in pathlib.Path(sys.argv[1]).read_text()
scores = dict(step=4, mIoU=40.0 if identity else 50.0)
(logs / 'scalars.json').write_text(json.dumps(scores) + chr(10))
books = dict.fromkeys(['candidates', 'loaded', 'shallow', 'deep', 'backward', 'iterations'], 4)
(folder / 'budget.json').write_text(json.dumps(dict(books, seconds=1.0, peak_memory_mib=1.0)))
"""


class TestCalls:
    """From the command line, twice, with a second thing to vary in the second call."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        (tmp_path / 'small.py').write_text(CONFIG + VALIDATION)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv('COLUMNS', '200')

    def call(self, monkeypatch, capsys, *vary):
        arguments = ['small.py', '--seeds', '0', '--work-dir', 'out', '--vary', *vary]
        monkeypatch.setattr('sys.argv', [str(TOOL), *arguments])
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr().out

    def check(self, root, monkeypatch, capsys):
        self.call(monkeypatch, capsys, 'weighted')
        output = self.call(monkeypatch, capsys, 'weighted', 'bandwidth')
        for name in ('own', 'weighted-False'):
            assert f'{name} seed 0: reused' in output
        found = json.loads((root / 'ablation.json').read_text())
        assert {run['row'] for run in found['runs']} == {
            'own',
            'weighted-False',
            'bandwidth-identity',
            'bandwidth-scott',
        }
        text = (root / 'ablation.md').read_text()
        assert text.count("(the config's own)") == 2
        assert text.count('\n| ') == 2 * 2 + 2 + 3
        model = Config.fromfile(root / 'configs/weighted-False_seed0.py').model
        assert model.pfb.estimator.weighted is False and model.pfb.prune_ratio == 0.5
        return text

    def test_it_writes_tables_and_goes_on_where_it_stopped(self, tmp_path, monkeypatch, capsys):
        """What trains is a stub, to which the identity is worth 10 mIoU less."""
        (tmp_path / 'train.py').write_text(TRAIN)
        monkeypatch.setattr(runs, 'TRAIN', (str(tmp_path / 'train.py'),))
        text = self.check(tmp_path / 'out/small', monkeypatch, capsys)
        assert '| identity | 40.00 | -10.00 |' in text

    @pytest.mark.slow
    def test_its_runs_train(self, tmp_path, monkeypatch, capsys):
        write_data(tmp_path)
        self.check(tmp_path / 'out/small', monkeypatch, capsys)


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        (['--ratio', '1'], '--ratio 1: expected a number in (0, 1)'),
        (['--seeds', '0', '0'], '--seeds 0 0: a seed stands there twice'),
        (['--jobs', '0'], '--jobs 0: expected an integer >= 1'),
        (['--vary', 'colour'], "invalid choice: 'colour'"),
        (['nowhere.py'], 'nowhere.py'),
    ],
)
def test_mistakes_are_told_at_once(monkeypatch, capsys, arguments, complaint):
    monkeypatch.setattr('sys.argv', [str(TOOL), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err
