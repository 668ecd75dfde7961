"""Repeat the paper's ablations: ``python -m benchmarks.ablation``.

A config is trained with PFB by 'rare', one setting of it varied at a time: blocking location, upper
bound b of the random term, number of centroids N_C, dimensions D, kernel weights, bandwidth and
batch size (Fig. 3, Tables S1 and S2). Finished runs are kept: after an interruption, start it
again. Differences are paired by seed: to the config's own setting, and for a batch size to all
images in batches of that size.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from rich.progress import Progress
from torch import nn

from pfb_mmseg.blocking.stages import stage_names
from pfb_mmseg.commands.arguments import ToolParser, add_config_options, seed_number, share
from pfb_mmseg.commands.launch import named_config
from pfb_mmseg.compare.comparison import Outcome, made_by, summarise
from pfb_mmseg.compare.lengths import full_iters, set_iters
from pfb_mmseg.compare.methods import apply_method
from pfb_mmseg.compare.rows import Row, measure_by_iteration
from pfb_mmseg.compare.runs import run_all
from pfb_mmseg.core import AdaptiveDensityEstimator
from pfb_mmseg.core.criteria import Rare

CONFIG = 'benchmarks/configs/cifar10/resnet18-small_pfb-p50_1xb128-15e_cifar10tenth-jpeg.py'
OWN = "the config's own"  # what a row is called that differs in nothing


@dataclass(frozen=True)
class Ablation:
    """One thing that the paper varies.

    Attributes:
        source: where in the paper.
        finding: what it found there, in words.
        key: the option, below ``model.pfb``; empty for the batch size.
        settings: model with PFB -> values of the option, by what each is called.
    """

    source: str
    finding: str
    key: str
    settings: Callable[[nn.Module], dict[str, Any]]


def _values(*values: Any) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda model: {str(value): value for value in values}


def _locations(model: nn.Module) -> dict[str, str]:
    """Behind what comes before the first stage, and behind each stage but the last."""
    stages = stage_names(model.backbone)
    children = [name for name, _ in model.backbone.named_children()]
    first = children.index(stages[0].partition('.')[0])
    places = {'stem': children[first - 1]} if first else {}
    places |= {f'stage {i + 1}': stage for i, stage in enumerate(stages[:-1])}
    return {name: f'backbone.{place}' for name, place in places.items()}


def _dims(model: nn.Module) -> dict[str, int]:
    """A quarter, a half and all of the channels at the blocking point."""
    channels = model.pfb.point.num_channels
    return {str(max(1, channels // part)): max(1, channels // part) for part in (4, 2, 1)}


BATCH_SIZES = (0.5, 1, 2)  # times the config's
ABLATIONS = {
    'location': Ablation(
        'Fig. 3 (a), ImageNet',
        'ResNet-50 loses a good deal if blocked behind its stem; behind stage 1 and later all is '
        'well',
        'block_after',
        _locations,
    ),
    'exploration': Ablation(
        'Fig. 3 (b), CIFAR-100',
        'the accuracy is stable for b from 0.001 to 1, lower and less certain at 10',
        'criterion.exploration',
        _values(0.001, 0.01, 0.1, 1.0, 10.0),
    ),
    'num_centroids': Ablation(
        'Fig. 3 (c), CIFAR-100',
        'robust within a normal range',
        'criterion.estimator.num_centroids',
        _values(16, 64, 256),
    ),
    'dim': Ablation(
        'Fig. 3 (f), CIFAR-100', 'robust within a normal range', 'criterion.estimator.dim', _dims
    ),
    'weighted': Ablation(
        'Table S1, CIFAR-100',
        'at 50 % 78.4 without weights, 78.8 with them',
        'criterion.estimator.weighted',
        _values(False, True),
    ),
    'bandwidth': Ablation(
        'Table S2, CIFAR-100',
        'at 50 % 76.5 with the identity, 78.8 by either rule',
        'criterion.estimator.bandwidth',
        _values('identity', 'scott', 'silverman'),
    ),
    'batch_size': Ablation(
        'Fig. 3 (d), ImageNet',
        'the trend of PFB is that of full data: it is not sensitive to the batch size',
        '',
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
    measure_by_iteration(base)
    full = copy.deepcopy(base)
    apply_method(full, 'full')
    apply_method(base, 'pfb', prune_ratio)
    model = _build(base)
    model.pfb.prepare()
    own = _own_settings(base, model)
    rows = {OWN: Row('own', 'own', prune_ratio, base)}
    lines: dict[str, list[Line]] = {}
    for name in dict.fromkeys(names):
        if name == 'batch_size':
            lines[name] = _batch_sizes(base, full, prune_ratio, rows)
            continue
        lines[name] = []
        for setting, value in ABLATIONS[name].settings(model).items():
            row = rows[OWN]
            if value != own[name]:
                config = copy.deepcopy(base)
                config.merge_from_dict({f'model.pfb.{ABLATIONS[name].key}': value})
                row = _add(f'{name}-{setting}', config, prune_ratio, rows)
            lines[name].append(Line(setting, row.name, rows[OWN].name))
        if rows[OWN].name not in [line.row for line in lines[name]]:
            lines[name].append(Line('another', rows[OWN].name, rows[OWN].name))
    return Plan(list(rows.values()), lines)


def _own_settings(base: Config, model: nn.Module) -> dict[str, Any]:
    """What the config itself sets, by the name of the ablation; its criterion becomes a dict."""
    found = base.model.pfb.get('criterion', 'rare')
    criterion = dict(found) if isinstance(found, dict) else dict(type=found)
    if criterion['type'] != 'rare':
        raise ValueError(f"criterion {criterion['type']!r}: the paper's ablations are of 'rare'")
    base.model.pfb.criterion = criterion
    defaults = {
        name: parameter.default
        for owner in (AdaptiveDensityEstimator, Rare)
        for name, parameter in inspect.signature(owner).parameters.items()
    }
    defaults['dim'] = min(defaults['dim'], model.pfb.point.num_channels)
    own = {**defaults, **criterion, **criterion.get('estimator', {})}
    return {**own, 'location': model.pfb.point.path}


def _add(name: str, config: Config, prune_ratio: float | None, rows: dict[str, Row]) -> Row:
    """A new row, whose model can be built."""
    _build(config)
    row = Row(name.replace(' ', ''), name, prune_ratio, config)
    rows[row.name] = row
    return row


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
            same = kind == 'pfb' and factor == 1
            name = f'batch_size-{size}-{kind}'
            found.append(rows[OWN] if same else _add(name, resized, ratio, rows))
        lines += [Line(f'{size}, all images', found[0].name, found[0].name)]
        lines += [Line(f'{size}, PFB', found[1].name, found[0].name)]
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
            else:
                _, found = summarise([*of[line.beside], *of[line.row]], line.beside)
                own = ''
            cells = found.cell('score'), found.cell('difference')
            text += f'| {line.setting}{own} | {" | ".join(cells)} |\n'
        text += '\n'
    return text


def write(plan: Plan, outcomes: Sequence[Outcome], folder: Path, made_by: Mapping[str, Any]) -> str:
    """Leaves ``ablation.md`` and ``ablation.json`` in a folder; returns the tables."""
    text = tables(plan, outcomes)
    (folder / 'ablation.md').write_text(text)
    everything = {**made_by, 'runs': [asdict(outcome) for outcome in outcomes]}
    (folder / 'ablation.json').write_text(json.dumps(everything, indent=1) + '\n')
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser('python -m benchmarks.ablation', description=__doc__)
    about = 'config file with PFB, or the name of one of pfb_mmseg (default: %(default)s)'
    parser.add_argument('config', nargs='?', default=CONFIG, help=about)
    parser.add_argument('--vary', nargs='+', choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument('--ratio', type=share, default=0.5, metavar='P', help='share left out')
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0, 1, 2])
    add_config_options(parser)
    parser.add_argument('--work-dir', default='work_dirs/ablation')
    args = parser.parse_args(argv)
    config = named_config(parser, args)
    root = Path(args.work_dir) / Path(config.filename).stem
    try:
        planned = plan(config, args.vary, args.ratio)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    with Progress() as progress:
        outcomes = run_all(planned.rows, [*dict.fromkeys(args.seeds)], root, progress)
    print(write(planned, outcomes, root, made_by()))
    print(f'ablation.md and ablation.json: {root}/')


if __name__ == '__main__':
    main()
