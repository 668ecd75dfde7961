"""Wrong values, types, combinations and misspelt keys: each ends before the first iteration.

The sentence names the option and the value, what is allowed and, for a misspelling, what was meant.
"""

import re
import runpy

import pytest
import tiny
from demo_runs import ROOT, demo_config, train
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, HOOKS, init_default_scope
from mmseg.registry import MODELS

from pfb_mmseg import apply_pfb
from pfb_mmseg.core.checks import (
    check_bool,
    check_choice,
    check_dict,
    check_integer,
    check_number,
    check_sizes,
)
from pfb_mmseg.models.pfb import PartialForwardBlocking

NAN = float('nan')
# A check with what it is given, values that it refuses and what it says is allowed.
CHECKS = [
    (
        lambda value: check_number('x', value, 0, 1, open_high=True),
        [1, 30, -0.1, NAN, '0.3', None, True, [0.3]],
        'a number in [0, 1)',
    ),
    (
        lambda value: check_number('x', value, 0, 1, open_low=True),
        [0, -1, 1.5, NAN, 'half'],
        'a number in (0, 1]',
    ),
    (
        lambda value: check_integer('x', value, low=1),
        [0, -1, 1.5, '2', None, True],
        'an integer >= 1',
    ),
    (lambda value: check_bool('x', value), [1, 'yes', None], 'True or False'),
    (lambda value: check_choice('x', value, ('a', 'b')), ['', None, 1, ['a']], "one of 'a', 'b'"),
    (lambda value: check_dict('x', value), ['default', [], 0, None, False], 'a dict'),
    (
        lambda value: check_sizes('x', value, num=3),
        [3, '3,64,64', (3, 64), (3, 0, 64), (3.0, 64, 64)],
        '3 integers >= 1',
    ),
]
# One wrong value of each option.
PFB_VALUES = [
    (dict(prune_ratio=1), r'prune_ratio=1: expected a number in \[0, 1\)'),
    (dict(criterion='hardest'), "criterion='hardest': expected one of 'rare', 'common', "),
    (dict(exit_loss_weight=-1), r'exit_loss_weight=-1: expected a number in \[0, inf\)'),
    (dict(exit='any'), "exit='any': expected one of 'auxiliary', 'own'"),
    (dict(exit='own'), "exit='own': .*leave exit out, set exit_loss_weight=1 or use"),
    (dict(strategy='both'), "strategy='both': expected one of 'two_pass', 'single_pass'"),
    (dict(block_after='layer3'), "block_after='layer3': .*a module inside the backbone"),
    (dict(block_after='backbone.'), "block_after='backbone.': .*a module inside the backbone"),
    (dict(block_after=3), 'block_after=3: .*a module inside the backbone'),
    (dict(min_keep=0), 'min_keep=0: expected an integer >= 1'),
    (dict(score_scale=0), r'score_scale=0: expected a number in \(0, 1\]'),
    (dict(input_shape=(3, 64)), r'input_shape=\(3, 64\): expected 3 integers >= 1'),
    (dict(seed=-1), 'seed=-1: expected an integer >= 0'),
    (dict(process_group=2), 'process_group=2: expected '),
]
HOOK_VALUES = [
    (dict(begin=-1), r'begin=-1: expected a fraction of the run \(float in \[0, 1\]\) or an iter'),
    (dict(begin=1.5), r'begin=1\.5: expected a fraction of the run'),
    (dict(begin='early'), "begin='early': expected a fraction of the run"),
    (dict(end=NAN), 'end=nan: expected a fraction of the run'),
    (dict(end=True), 'end=True: expected a fraction of the run'),
    (dict(by_epoch=1), 'by_epoch=1: expected True or False'),
    (dict(begin=0.5, end=0.5), r'begin=0\.5 must come before end=0\.5'),
    (dict(beginn=1), "unexpected keyword argument 'beginn'"),
]
INFOBATCH_VALUES = [
    (HOOKS, 'InfoBatchHook', dict(full_iters=0), 'full_iters=0: expected an integer >= 1'),
    (DATA_SAMPLERS, 'InfoBatchSampler', dict(prune_ratio=1), 'prune_ratio=1: expected a number'),
    (DATA_SAMPLERS, 'InfoBatchSampler', dict(percentile=101), 'percentile=101: expected a number'),
    (DATA_SAMPLERS, 'InfoBatchSampler', dict(seed=0.5), r'seed=0\.5: expected an integer >= 0'),
]
# What was written, and what was meant: as an option, or as its value.
MISSPELT = [
    (dict(prune_rato=0.3), 'prune_ratio'),
    (dict(exit_loss_wieght=1), 'exit_loss_weight'),
    (dict(blockafter='backbone.layer3'), 'block_after'),
    (dict(strategy='twopass'), 'two_pass'),
    (dict(criterion='Rare'), 'rare'),
    (dict(block_after='backbone.layr3'), 'layer3'),
    (dict(criterion=dict(type='rare', estimator=dict(bandwith='scott'))), 'bandwidth'),
    (dict(criterion=dict(type='rare', estimator=dict(bandwidth='silvermann'))), 'silverman'),
]
COMBINATIONS = [
    (dict(strategy='single_pass', score_scale=0.5), "score_scale.*use strategy='two_pass'"),
    (
        dict(criterion=dict(type='rare', estimator=dict(dim=33))),
        r'dim=33 is more than the 32 channels.*dim=32',
    ),
    (dict(score_scale=1e-6), r'score_scale=1e-06: ResNetV1c cannot take images of 0x0 pixels'),
    (dict(input_shape=(1, 64, 128)), r'blank image of shape \(1, 64, 128\).*Set input_shape='),
]


@pytest.mark.parametrize(('check', 'values', 'allowed'), CHECKS, ids=[c[2] for c in CHECKS])
def test_a_check_refuses_wrong_types_and_values(check, values, allowed):
    for value in values:
        with pytest.raises((TypeError, ValueError)) as error:
            check(value)
        assert str(error.value).startswith(f'x={value!r}: expected ')
        assert allowed in str(error.value)


def build(**changes):
    init_default_scope('mmseg')
    return MODELS.build({**tiny.model_cfg(), **changes})


@pytest.fixture(scope='module')
def plain():
    init_default_scope('mmseg')
    return MODELS.build(tiny.model_cfg('EncoderDecoder'))


@pytest.mark.parametrize(('options', 'sentence'), PFB_VALUES, ids=str)
def test_a_wrong_value_of_pfb_is_refused(plain, options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        PartialForwardBlocking(plain, **options)


@pytest.mark.parametrize(('options', 'sentence'), HOOK_VALUES, ids=str)
def test_a_wrong_value_of_the_hook_is_refused(options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        HOOKS.build(dict(type='PFBHook', **options))


@pytest.mark.parametrize(('registry', 'kind', 'options', 'sentence'), INFOBATCH_VALUES, ids=str)
def test_a_wrong_value_of_infobatch_is_refused(registry, kind, options, sentence):
    dataset = dict(dataset=range(8)) if registry is DATA_SAMPLERS else {}
    with pytest.raises((TypeError, ValueError), match=sentence):
        registry.build(dict(type=kind, **dataset, **options))


@pytest.mark.parametrize(('pfb', 'meant'), MISSPELT, ids=str)
def test_what_a_misspelling_in_pfb_is_likely_to_mean_is_named(pfb, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        build(pfb=pfb)


@pytest.mark.parametrize(('pfb', 'sentence'), COMBINATIONS, ids=str)
def test_options_that_do_not_go_together_or_with_the_model_are_refused(plain, pfb, sentence):
    with pytest.raises(ValueError, match=sentence):
        PartialForwardBlocking(plain, **pfb).prepare()


def test_pfb_itself_must_be_a_dict():
    with pytest.raises(TypeError, match=r"pfb='rare': expected a dict"):
        build(pfb='rare')


def test_a_model_without_pfb_is_told_what_it_needs():
    cfg = tiny.model_cfg()
    cfg['pbf'] = cfg.pop('pfb')
    with pytest.raises(TypeError, match="required keyword-only argument: 'pfb'"):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(custom_hooks=[dict(type='PFBHook', begin=12, end=20)]), 'begin=12 .* of 12'),
        (dict(custom_hooks=[dict(type='PFBHook', begin=0.9, end=2)]), 'begin must come before end'),
        (dict(custom_hooks=[dict(type='PFBHook')] * 2), 'has 2 of PFBHook: expected one'),
        (dict(custom_hooks=[dict(type='PFBLogHook')] * 2), 'has 2 of PFBLogHook'),
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
    options = {'model.pfb.criterion.estimator.num_centroids': 99}
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
    ('train.py .', "config '.' is not a file"),
    ('train.py broken.py', "config 'broken.py' cannot be read"),
    ('train.py orphan.py', "config 'orphan.py' cannot be read: .*nobody.py"),
    ('train.py stray.py', "config 'stray.py' cannot be read: .*nowhere_to_be_found"),
    ('train.py empty.py', "config 'empty.py' has no model"),
    ('train.py good.py --prune-ratio nan', r'prune_ratio=nan: expected a number in \[0, 1\)'),
    ('train.py good.py --prune-ratio much', "--prune-ratio: invalid float value: 'much'"),
    ('train.py good.py --prune_rato=0.3', r'--prune_rato=0.3 \(did you mean --prune-ratio\?\)'),
    ('train.py good.py --cfg-options =3', "'=3': expected KEY=VALUE"),
    ('train.py good.py --cfg-options custom_imports.imports=nobody', 'Failed to import nobody'),
    ('train.py good.py --launcher torchrun', "invalid choice: 'torchrun' .*'pytorch'"),
    ('compare.py good.py --variants a --seeds -1', "'-1': expected an integer in"),
    ('demo.py --iters 0', "--iters: '0': expected an integer >= 1"),
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
