"""The paper's ablations of the density estimate: one setting varied, the others the config's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from pfb_mmseg.blocking.stages import stage_names
from pfb_mmseg.compare.by_iteration import count_iterations
from pfb_mmseg.compare.comparison import Outcome, spread, summarise
from pfb_mmseg.compare.methods import apply_method, full_iters, set_iters
from pfb_mmseg.compare.rows import Row
from pfb_mmseg.convert.apply import add_import

Options = dict[str, Any]
OWN = "the config's own"  # what a row is called that differs in nothing


@dataclass(frozen=True)
class Ablation:
    """One thing that the paper varies.

    Attributes:
        source: where in the paper.
        finding: what it found there, in words.
        settings: model with PFB -> options of the config for each setting, by what it is called.
    """

    source: str
    finding: str
    settings: Callable[[nn.Module], dict[str, Options]]


def _values(key: str, *values: Any) -> Callable[[nn.Module], dict[str, Options]]:
    return lambda model: {str(value): {key: value} for value in values}


def _locations(model: nn.Module) -> dict[str, Options]:
    """Behind what comes before the first stage, and behind each stage but the last."""
    stages = stage_names(model.backbone)
    children = [name for name, _ in model.backbone.named_children()]
    first = children.index(stages[0].partition('.')[0])
    places = {'stem': children[first - 1]} if first else {}
    places |= {f'stage {i + 1}': stage for i, stage in enumerate(stages[:-1])}
    return {name: {'model.pfb.block_after': f'backbone.{place}'} for name, place in places.items()}


def _dims(model: nn.Module) -> dict[str, Options]:
    """A quarter, a half and all of the channels at the blocking point."""
    channels = model.pfb.point.num_channels
    values = sorted({max(1, channels // part) for part in (4, 2, 1)})
    return {str(value): {'model.pfb.estimator.dim': value} for value in values}


BATCH_SIZES = (0.5, 1, 2)  # times the config's
ABLATIONS = {
    'location': Ablation(
        'Fig. 3 (a), ImageNet',
        'ResNet-50 loses a good deal if blocked behind its stem; behind stage 1 and later all is '
        'well',
        _locations,
    ),
    'exploration': Ablation(
        'Fig. 3 (b), CIFAR-100',
        'the accuracy is stable for b from 0.001 to 1, lower and less certain at 10',
        _values('model.pfb.exploration', 0.001, 0.01, 0.1, 1.0, 10.0),
    ),
    'num_centroids': Ablation(
        'Fig. 3 (c), CIFAR-100',
        'robust within a normal range',
        _values('model.pfb.estimator.num_centroids', 16, 64, 256),
    ),
    'dim': Ablation('Fig. 3 (f), CIFAR-100', 'robust within a normal range', _dims),
    'weighted': Ablation(
        'Table S1, CIFAR-100',
        'at 50 % 78.4 without weights, 78.8 with them',
        _values('model.pfb.estimator.weighted', False, True),
    ),
    'bandwidth': Ablation(
        'Table S2, CIFAR-100',
        'at 50 % 76.5 with the identity, 78.8 by either rule',
        _values('model.pfb.estimator.bandwidth', 'identity', 'scott', 'silverman'),
    ),
    'batch_size': Ablation(
        'Fig. 3 (d), ImageNet',
        'the trend of PFB is that of full data: it is not sensitive to the batch size',
        lambda model: {},
    ),
}


@dataclass(frozen=True)
class Line:
    """A line of an ablation's table: a row, set beside another one.

    Attributes:
        setting: what it is called.
        row: name of the row that holds its runs.
        beside: name of the row that it is compared with.
    """

    setting: str
    row: str
    beside: str


@dataclass(frozen=True)
class Plan:
    """Rows to train, each once, and the lines of each ablation's table."""

    rows: list[Row]
    lines: dict[str, list[Line]]


def plan(base: Config, names: Sequence[str], prune_ratio: float) -> Plan:
    """Which runs the ablations take. A setting that is the config's own takes none of its own.

    Runs of other batch sizes see as many images; their learning rate stays what it is.

    Args:
        base: what is trained, with PFB; is changed.
        names: of :data:`ABLATIONS`.
        prune_ratio: of all runs, in (0, 1).

    Raises:
        TypeError, ValueError: an argument is outside its range, or does not fit the config.
    """
    for needed, what in (('val_dataloader', 'accuracy to compare'), ('model', 'model to train')):
        if base.get(needed) is None:
            raise ValueError(f'the config has no {needed}: there would be no {what}')
    count_iterations(base)
    add_import(base)
    base.custom_hooks = [*(base.get('custom_hooks') or []), dict(type='BudgetHook')]
    full = copy.deepcopy(base)
    apply_method(full, 'full')
    apply_method(base, 'pfb', prune_ratio)
    model = _build(base)
    model.pfb.prepare()
    rows = {OWN: Row('own', 'own', prune_ratio, base)}
    lines: dict[str, list[Line]] = {}
    for name in dict.fromkeys(names):
        if name == 'batch_size':
            lines[name] = _batch_sizes(base, full, prune_ratio, rows)
            continue
        lines[name] = []
        for setting, options in ABLATIONS[name].settings(model).items():
            config = copy.deepcopy(base)
            config.merge_from_dict(options)
            of = _row_of(f'{name}-{setting}', config, prune_ratio, rows)
            lines[name].append(Line(setting, of, rows[OWN].name))
        if rows[OWN].name not in [line.row for line in lines[name]]:
            lines[name].append(Line('another', rows[OWN].name, rows[OWN].name))
    return Plan(list(rows.values()), lines)


def _row_of(name: str, config: Config, prune_ratio: float | None, rows: dict[str, Row]) -> str:
    """Name of the row that trains a config, which is a new one unless there is one already."""
    for row in rows.values():
        if _settled(row.config) == _settled(config):
            return row.name
    row = Row(name.replace(' ', ''), name, prune_ratio, config)
    _build(config)
    rows[name] = row
    return row.name


def _settled(config: Config) -> tuple:
    """What a run of a config does: the model as it is built, and all that is beside it."""
    rest = {key: value for key, value in config.to_dict().items() if key != 'model'}
    model = _build(config)
    if not hasattr(model, 'pfb'):
        return repr(model), rest
    model.pfb.prepare()
    return model.pfb.point.path, repr(model.pfb), rest


def _batch_sizes(
    base: Config, full: Config, prune_ratio: float, rows: dict[str, Row]
) -> list[Line]:
    lines = []
    for factor in BATCH_SIZES:
        size = max(1, round(base.train_dataloader.batch_size * factor))
        found = []
        for kind, config, ratio in (('full', full, None), ('pfb', base, prune_ratio)):
            resized = copy.deepcopy(config)
            resized.train_dataloader.batch_size = size
            set_iters(resized, max(1, round(full_iters(config) / factor)))
            found.append(_row_of(f'batch_size-{size}-{kind}', resized, ratio, rows))
        lines += [Line(f'{size}, all images', found[0], found[0])]
        lines += [Line(f'{size}, PFB', found[1], found[0])]
    return lines


def _build(config: Config) -> nn.Module:
    init_default_scope(config.get('default_scope', 'mmseg'))
    return MODELS.build(copy.deepcopy(config.model))


def tables(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """A Markdown table for each ablation, with what the paper found.

    Args:
        plan: what was trained.
        outcomes: of all rows with the same seeds.
    """
    of: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of.setdefault(outcome.row, []).append(outcome)
    text = ''
    for name, lines in plan.lines.items():
        ablation = ABLATIONS[name]
        metric, seeds = outcomes[0].metric, len(of[lines[0].row])
        text += f'## {name}\n\nThe paper ({ablation.source}): {ablation.finding}.\n\n'
        text += f'| {name} | {metric} [%], mean ± std of {seeds} seed(s) | paired difference |\n'
        text += '| --- | ---: | ---: |\n'
        for line in lines:
            if line.row == line.beside:
                (found,) = summarise(of[line.row], line.row)
                own = '' if name == 'batch_size' else f' ({OWN})'
                difference = '-'
            else:
                _, found = summarise([*of[line.beside], *of[line.row]], line.beside)
                own, difference = '', spread(found.difference, found.difference_std, '+')
            score = spread(found.score, found.score_std)
            text += f'| {line.setting}{own} | {score} | {difference} |\n'
        text += '\n'
    return text


def write(plan: Plan, outcomes: Sequence[Outcome], folder: Path, made_by: Mapping[str, Any]) -> str:
    """Leaves ``ablation.md`` and ``ablation.json`` in a folder; returns the tables."""
    text = tables(plan, outcomes)
    (folder / 'ablation.md').write_text(text)
    everything = {**made_by, 'runs': [asdict(outcome) for outcome in outcomes]}
    (folder / 'ablation.json').write_text(json.dumps(everything, indent=1) + '\n')
    return text
