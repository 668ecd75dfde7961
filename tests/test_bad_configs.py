"""Wrong values, types, combinations and misspelt keys: each ends before the first iteration.

The sentence names the option and the value, what is allowed and, for a misspelling, what was meant.
"""

import re
import runpy
from pathlib import Path

import pytest
import tiny
from demo_runs import demo_config, train
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, HOOKS, init_default_scope
from mmseg.registry import MODELS

from pfb_mmseg import apply_pfb

ROOT = Path(__file__).resolve().parents[1]
NAN = float('nan')
RATIO = 'a number in [0, 1)'
COUNT = 'an integer >= 1'

# option, values that are refused, what the sentence says is allowed
PFB_VALUES = [
    ('prune_ratio', [1, 30, -0.1, NAN, '0.3', None, True, [0.3]], RATIO),
    ('strategy', ['', None, 1, ['two_pass']], "one of 'two_pass', 'single_pass'"),
    ('block_after', ['layer3', 'backbone.', 'decode_head.conv_seg', 3, True], 'a module inside'),
    ('criterion', ['hardest', None], "one of 'rare', 'common', "),
    ('exploration', [-1, NAN, float('inf'), 'x', None, True], 'a number in [0, inf)'),
    ('exploration_space', ['log', None], "one of 'density', 'log_density'"),
    ('estimator', ['default', [], 0, False], 'a dict'),
    ('min_keep', [0, -1, 1.5, '2', True], COUNT),
    ('score_scale', [0, -1, 1.5, NAN, 'half', None, True], 'a number in (0, 1]'),
    ('score_statistics', ['mean', None], "one of 'batch', 'running'"),
    ('score_dtype', ['half', 'int8', 16], "one of 'float16', 'bfloat16'"),
    ('input_shape', [3, '3,64,64', (3, 64), (3, 0, 64), (3.0, 64, 64)], '3 integers >= 1'),
    ('seed', [-1, 1.5, None, '0', True], 'an integer >= 0'),
    ('selection_scope', ['all', None], "one of 'rank', 'global'"),
]
ESTIMATOR_VALUES = [
    ('num_centroids', [0, -4, 1.5, '64', None, True], COUNT),
    ('dim', [0, 8.0, '8'], COUNT),
    ('bandwidth', [1.0, None, 'median'], "one of 'silverman', 'scott', 'identity'"),
    ('weighted', [1, 'yes', None], 'True or False'),
    ('momentum', [1, -1, NAN, 'a', None, False], RATIO),
    ('update_rule', ['sum', None], "one of 'normalized', 'literal', 'mean'"),
    ('revive_after', [0, -1, 1.5, 'never'], COUNT),
]
MOMENT = 'a fraction of the run (float in [0, 1]) or an iteration (int >= 0)'
HOOK_VALUES = [
    ('begin', [-1, -0.5, 1.5, NAN, 'early', None, True], MOMENT),
    ('end', [-1, 1.01, NAN, 'late', None, False, [0.9]], MOMENT),
    ('interval', [0, -5, 1.5, '10', True], COUNT),
]
INFOBATCH_VALUES = [
    ('ScoreSamplerHook', 'full_iters', [0, 1.5, '9'], COUNT),
    ('InfoBatchSampler', 'delta', [-0.1, 1.5, 'late', None], 'a number in [0, 1]'),
    ('InfoBatchSampler', 'prune_ratio', [1, -1, '0.5', None], RATIO),
    ('InfoBatchSampler', 'percentile', [-1, 101, 'mean'], 'a number in [0, 100]'),
    ('InfoBatchSampler', 'seed', [-1, 0.5], 'an integer >= 0'),
]
# what was written, what was meant: as a key of pfb, of its estimator, of the hook; or as a value
MISSPELT = [
    (dict(prune_rato=0.3), 'prune_ratio'),
    (dict(stratgy='two_pass'), 'strategy'),
    (dict(estimater=dict()), 'estimator'),
    (dict(minkeep=1), 'min_keep'),
    (dict(score_scales=0.5), 'score_scale'),
    (dict(blockafter='backbone.layer3'), 'block_after'),
    (dict(strategy='twopass'), 'two_pass'),
    (dict(criterion='Rare'), 'rare'),
    (dict(exploration_space='logdensity'), 'log_density'),
    (dict(score_dtype='bf16loat'), 'bfloat16'),
    (dict(block_after='backbone.layr3'), 'layer3'),
    (dict(estimator=dict(bandwith='scott')), 'bandwidth'),
    (dict(estimator=dict(num_centroid=6)), 'num_centroids'),
    (dict(estimator=dict(bandwidth='silvermann')), 'silverman'),
    (dict(estimator=dict(update_rule='normalised')), 'normalized'),
]
COMBINATIONS = [
    (dict(strategy='single_pass', score_scale=0.5), "score_scale.*use strategy='two_pass'"),
    (dict(strategy='single_pass', score_dtype='bfloat16'), "score_dtype.*use strategy='two_pass'"),
    (dict(strategy='single_pass', score_statistics='running'), 'score_statistics'),
    (dict(estimator=dict(dim=33)), r'dim=33 is more than the 32 channels.*dim=32'),
    (dict(score_scale=1e-6), r'score_scale=1e-06: ResNetV1c cannot take images of 0x0 pixels'),
    (dict(input_shape=(1, 64, 128)), r'blank image of shape \(1, 64, 128\).*Set input_shape='),
]


def cases(table):
    return [
        pytest.param(name, value, allowed, id=f'{name}={value!r}')
        for name, values, allowed in table
        for value in values
    ]


def build(**changes):
    init_default_scope('mmseg')
    return MODELS.build({**tiny.model_cfg(), **changes})


def refused(sentence, name, value, allowed):
    return f'{name}={value!r}: expected ' in sentence and allowed in sentence


@pytest.mark.parametrize(('name', 'value', 'allowed'), cases(PFB_VALUES))
def test_a_wrong_value_of_pfb_is_refused(name, value, allowed):
    with pytest.raises((TypeError, ValueError)) as error:
        build(pfb={name: value})
    assert refused(str(error.value), name, value, allowed)


@pytest.mark.parametrize(('name', 'value', 'allowed'), cases(ESTIMATOR_VALUES))
def test_a_wrong_value_of_the_estimator_is_refused(name, value, allowed):
    with pytest.raises((TypeError, ValueError)) as error:
        build(pfb=dict(estimator={name: value}))
    assert refused(str(error.value), name, value, allowed)


@pytest.mark.parametrize(('name', 'value', 'allowed'), cases(HOOK_VALUES))
def test_a_wrong_value_of_the_hook_is_refused(name, value, allowed):
    with pytest.raises((TypeError, ValueError)) as error:
        HOOKS.build({'type': 'PFBHook', name: value})
    assert refused(str(error.value), name, value, allowed)


def build_infobatch(kind, **options):
    if kind == 'ScoreSamplerHook':
        return HOOKS.build({'type': kind, **options})
    return DATA_SAMPLERS.build({'type': kind, 'dataset': range(8), **options})


@pytest.mark.parametrize(
    ('kind', 'name', 'value', 'allowed'),
    [(*row[:2], value, row[3]) for row in INFOBATCH_VALUES for value in row[2]],
    ids=str,
)
def test_a_wrong_value_of_infobatch_is_refused(kind, name, value, allowed):
    with pytest.raises((TypeError, ValueError)) as error:
        build_infobatch(kind, **{name: value})
    assert refused(str(error.value), name, value, allowed)


@pytest.mark.parametrize(('pfb', 'meant'), MISSPELT, ids=str)
def test_what_a_misspelling_in_pfb_is_likely_to_mean_is_named(pfb, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        build(pfb=pfb)


@pytest.mark.parametrize(('written', 'meant'), [('beginn', 'begin'), ('intervall', 'interval')])
def test_what_a_misspelling_in_the_hook_is_likely_to_mean_is_named(written, meant):
    with pytest.raises(ValueError, match=f"PFBHook has no option '{written}'.*'{meant}'"):
        HOOKS.build({'type': 'PFBHook', written: 1})


@pytest.mark.parametrize(('pfb', 'sentence'), COMBINATIONS, ids=str)
def test_options_that_do_not_go_together_or_with_the_model_are_refused(pfb, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(pfb=pfb).pfb.prepare()


@pytest.mark.parametrize('pfb', [3, [], 'rare'])
def test_pfb_itself_must_be_a_dict(pfb):
    with pytest.raises(TypeError, match=r'pfb=.*: expected a dict'):
        build(pfb=pfb)


def test_a_model_without_pfb_is_told_what_it_needs():
    with pytest.raises(TypeError, match=r'needs pfb, for example pfb=dict\(prune_ratio=0.3\)$'):
        build(pfb=None)


def test_pfb_itself_may_be_misspelt():
    cfg = tiny.model_cfg()
    cfg['pbf'] = cfg.pop('pfb')
    with pytest.raises(TypeError, match="'pbf' was given, did you mean 'pfb'"):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(custom_hooks=[dict(type='PFBHook', begin=12, end=20)]), 'begin=12 .* of 12'),
        (dict(custom_hooks=[dict(type='PFBHook', begin=0.9, end=2)]), 'begin must come before end'),
        (dict(custom_hooks=[dict(type='PFBHook')] * 2), 'has 2 of PFBHook: expected one'),
        ({'train_dataloader.batch_size': 1}, r'1 image\(s\).*raise train_dataloader.batch_size'),
        ({'model.pfb.min_keep': 4}, r'at least 4 to be kept, nothing can ever be pruned'),
    ],
    ids=str,
)
def test_a_schedule_that_does_not_fit_the_run_ends_it_before_the_first_iteration(
    tmp_path, options, sentence
):
    with pytest.raises(ValueError, match=sentence):
        train(demo_config(tmp_path, **options))
    assert not list(tmp_path.rglob('scalars.json'))
    assert not (tmp_path / 'pfb_record.npz').exists()


def test_a_run_too_short_to_seed_the_centroids_is_warned_of(tmp_path):
    options = {'model.pfb.estimator.num_centroids': 99}
    train(demo_config(tmp_path, max_iters=4, **options))
    (log,) = tmp_path.glob('*/*.log')
    assert 'Nothing will be pruned: seeding 99 centroids' in log.read_text()


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(model=dict(type='EncoderDecoder', pfb=3)), 'model.pfb=3: expected a dict'),
        (dict(custom_hooks={'0': dict(begin=1)}), 'custom_hooks=.*expected a list of dicts'),
        (dict(model=dict(type='EncoderDecodr')), "'EncoderDecodr' is not registered"),
    ],
    ids=str,
)
def test_turning_pfb_on_in_a_broken_config_is_refused(options, sentence):
    cfg = Config({**dict(model=dict(type='EncoderDecoder')), **options})
    with pytest.raises((TypeError, ValueError), match=sentence):
        apply_pfb(cfg, 0.3)


CONFIG = "model = dict(type='EncoderDecoder')\ntrain_dataloader = dict(batch_size=4)\n"
TOOLS = [
    ('train.py absent.py', "config 'absent.py' is not a file"),
    ('train.py .', "config '.' is not a file"),
    ('train.py broken.py', "config 'broken.py' cannot be read"),
    ('train.py orphan.py', "config 'orphan.py' cannot be read: .*nobody.py"),
    ('train.py stray.py', "config 'stray.py' cannot be read: .*nowhere_to_be_found"),
    ('train.py empty.py', "config 'empty.py' has no model"),
    ('train.py good.py --prune-ratio 1', r'prune_ratio=1.0: expected a number in \[0, 1\)'),
    ('train.py good.py --prune-ratio nan', r'prune_ratio=nan: expected a number in \[0, 1\)'),
    ('train.py good.py --prune-ratio much', "--prune-ratio: invalid float value: 'much'"),
    ('train.py good.py --prune_rato=0.3', r'--prune_rato=0.3 \(did you mean --prune-ratio\?\)'),
    ('train.py good.py --cfg-options model.pfb', "'model.pfb': expected KEY=VALUE"),
    ('train.py good.py --cfg-options =3', "'=3': expected KEY=VALUE"),
    ('train.py good.py --cfg-options custom_imports.imports=nobody', 'Failed to import nobody'),
    ('train.py good.py --launcher torchrun', "invalid choice: 'torchrun' .*'pytorch'"),
    ('test.py good.py absent.pth', "checkpoint 'absent.pth' is not a file"),
    ('test.py empty.py good.py', "config 'empty.py' has no model"),
    ('test.py good.py good.py --tat', r'--tat \(did you mean --tta\?\)'),
    ('benchmark.py empty.py', "config 'empty.py' has no model"),
    ('benchmark.py good.py --ratios 0.3 1', r'--ratios 1: expected numbers in \(0, 1\)'),
    ('benchmark.py good.py --steps 0', '--steps 0: expected an integer >= 1'),
    ('benchmark.py good.py --crop 64 0', '--crop 0: expected an integer >= 1'),
    ('benchmark.py good.py --strategies both', "invalid choice: 'both'"),
    ('benchmark.py good.py --strategy-s both', r'did you mean --strategies\?'),
    ('compare.py absent.py --variants a', "config 'absent.py' is not a file"),
    ('compare.py good.py --variants a:x', "'x': expected KEY=VALUE"),
    ('compare.py good.py --variants a:x=1 a:x=2', '--variants a:x=2: expected a name of its own'),
    ('compare.py good.py --variants ../a', '--variants ../a: expected a name of its own'),
    ('compare.py good.py --variants a --seeds -1', "'-1': expected an integer in"),
    ('compare.py good.py --variants a --seed 1.5', "'1.5': expected an integer in"),
    ('coverage.py --out table.csv', '--out table.csv: expected a file that ends in .md or .json'),
    ('coverage.py --jobs 0', '--jobs 0: expected at least 1'),
    ('coverage.py --quik', r'--quik \(did you mean --quick\?\)'),
    ('evidence.py --config absent.py', "config 'absent.py' is not a file"),
    ('evidence.py --config empty.py', "config 'empty.py' has no model"),
    ('evidence.py --config good.py --seeds x', "'x': expected an integer in"),
    ('demo.py --iters 0', '--iters 0: expected an integer >= 1'),
    ('demo.py --seed -1', "'-1': expected an integer in"),
]


@pytest.mark.parametrize(('command', 'sentence'), TOOLS, ids=[command for command, _ in TOOLS])
def test_a_mistake_on_the_command_line_is_told_in_a_sentence(
    tmp_path, monkeypatch, capsys, command, sentence
):
    (tmp_path / 'good.py').write_text(CONFIG)
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    (tmp_path / 'orphan.py').write_text("_base_ = 'nobody.py'\n")
    (tmp_path / 'stray.py').write_text("custom_imports = dict(imports=['nowhere_to_be_found'])\n")
    (tmp_path / 'empty.py').write_text('a = 1\n')
    monkeypatch.chdir(tmp_path)
    tool, *arguments = command.split()
    monkeypatch.setattr('sys.argv', [tool, *arguments])
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    assert stop.value.code == 2
    output = capsys.readouterr().err.replace('\n', ' ')
    assert re.search(sentence, output), output
