"""What a GPU report says: the aims and whether they are met, a table for each part, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_report import CRITERIA, PARTS, RECIPES, Setting
from benchmarks.jobs import Done
from pfb_mmseg.report.files import write_atomically

OF_IDEAL = 0.97  # saved / ideal, at least
RARE_SHARE = 0.002  # of a full step for the decision of 'rare', at most
HARD_MORE = 0.015  # of a full step that 'hard' may take more than 'rare'
MORE_MEMORY = 0.05  # share of the full step's peak above the share of the images that is kept
LAUNCHES = 45  # kernels, copies and fills of a decision, at most

Found = Mapping[str, Any]
_SHORT = ' **short**'


@dataclass(frozen=True)
class Aim:
    """What a measurement is held against.

    Attributes:
        name: what is measured.
        wanted: in words.
        found: in words, with the worst of all.
        met: None if nothing was measured.
    """

    name: str
    wanted: str
    found: str
    met: bool | None


def aims(parts: Mapping[str, Sequence[Done]]) -> list[Aim]:
    """All of them, measured or not.

    Args:
        parts: what was run, see :func:`benchmarks.gpu_report.by_part`.
    """
    found = {
        part: {one.name: one.found for one in done if one.done} for part, done in parts.items()
    }
    reports = [
        (f'{name}, {row["name"]}', row, report['results'][0])
        for name, report in [*found['steps'].items(), *found['models'].items()]
        for row in report['results'][1:]
    ]
    launches = [one['launches'].get('cuda') for one in found['core'].values()]
    return [
        _at_least(
            'saved / ideal, with AMP',
            OF_IDEAL,
            [(name, row['of_ideal']) for name, row, _ in reports],
        ),
        _at_most(
            "decision of 'rare', of a step",
            RARE_SHARE,
            [(n, r['estimator_share']) for n, r in _of_criterion(found, 'rare')],
            '.2%',
        ),
        _at_most(
            "decision of 'hard', more than 'rare'",
            HARD_MORE,
            list(_hard_more(found)),
            '.2%',
        ),
        _at_most(
            'calls that wait for the GPU, more than the full step',
            0,
            [(name, _more(row['syncs'], full['syncs'])) for name, row, full in reports],
            '.0f',
        ),
        _at_most(
            'peak memory above the model, of the full step, more than the share kept',
            MORE_MEMORY,
            [(name, _memory_more(row, full)) for name, row, full in reports],
            '.1%',
        ),
        _at_most('kernels of a decision', LAUNCHES, [('', number) for number in launches], '.1f'),
    ]


def write(
    folder: Path,
    setting: Setting,
    about: Mapping[str, str],
    absent: Mapping[str, Sequence[str]],
    parts: Mapping[str, Sequence[Done]],
) -> None:
    """Write ``gpu_report.md``, see :func:`markdown`, and everything in ``gpu_report.json``."""
    everything = {
        'about': about,
        'missing': absent,
        'aims': [asdict(aim) for aim in aims(parts)],
        'parts': {name: [asdict(one) for one in done] for name, done in parts.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    page = markdown(setting, about, absent, parts)
    write_atomically(folder / 'gpu_report.md', page.encode())
    write_atomically(folder / 'gpu_report.json', (json.dumps(everything, indent=1) + '\n').encode())


def markdown(
    setting: Setting,
    about: Mapping[str, str],
    absent: Mapping[str, Sequence[str]],
    parts: Mapping[str, Sequence[Done]],
) -> str:
    """The report.

    Args:
        setting: on what, and at which size.
        about: device, driver, versions, command, by name.
        absent: what is missing and the parts left out for it.
        parts: what was run.
    """
    lines = ['# GPU report', '']
    lines += [f'- Missing: {what}. Left out: {", ".join(out)}.' for what, out in absent.items()]
    if setting.toy:
        lines += ['- Toy size, on a CPU: the numbers say that the command works and nothing else.']
    elif setting.device == 'cpu':
        lines += ['- On a CPU: what follows says nothing of a GPU.']
    lines += [''] if lines[-1] else []
    lines += _table(['', ''], [[name, value] for name, value in about.items()])
    lines += ['', '## Aims', '']
    met = {True: 'yes', False: '**no**', None: 'not measured'}
    rows = [[aim.name, aim.wanted, aim.found, met[aim.met]] for aim in aims(parts)]
    lines += _table(['', 'wanted', 'worst found', 'met'], rows)
    for part, done in parts.items():
        if done:
            lines += ['', f'## {part}: {PARTS[part].about}', '']
            for one in done:
                lines += _section(one)
            if part == 'recipes':
                lines += _recipes(done)
    return '\n'.join(lines).rstrip() + '\n'


def _section(one: Done) -> list[str]:
    lines = [f'**{one.name}**', '', f'`{one.command}` ({one.seconds:.0f} s)', '']
    if not one.done:
        return [*lines, f'Not measured: {one.status}.', '']
    if 'results' in one.found:
        return [*lines, *_steps(one.found), '']
    if 'costs' in one.found:
        return [*lines, *_core(one.found), '']
    if 'table' in one.found:
        return [*lines, one.found['table'], '']
    if 'summary' in one.found:
        return [*lines, one.found['summary'], '']
    numbers = [[name, f'{value:.4g}'] for name, value in sorted(one.found.items())]
    return [*lines, *_table(['at the end of the run', ''], numbers), '']


def _steps(report: Found) -> list[str]:
    """A row for each kind of step; what falls short of an aim is marked."""
    full, rows = report['results'][0], []
    for row in report['results']:
        of_ideal, memory = row['of_ideal'], _ratio(row['peak_memory'], full['peak_memory'])
        more_syncs, more_memory = _more(row['syncs'], full['syncs']), _memory_more(row, full)
        rows.append(
            [
                row['name'],
                f'{row["kept_share"]:.0%}',
                f'{1e3 * row["step"]["median"]:.1f}',
                f'{row["saved"]:.1%}',
                f'{row["ideal"]:.1%}',
                _cell(of_ideal, '.1%', of_ideal is not None and of_ideal < OF_IDEAL),
                _cell(row['peak_memory'] and row['peak_memory'] / 2**30, '.2f', False),
                _cell(memory, '.0%', more_memory is not None and more_memory > MORE_MEMORY),
                _cell(row['syncs'], '.0f', bool(more_syncs and more_syncs > 0)),
            ]
        )
    headings = ['step', 'kept', 'median [ms]', 'saved', 'ideal', 'saved / ideal', 'peak [GiB]']
    headings += ['of full', 'calls that wait']
    setting = report['setting']
    return [
        *_table(headings, rows),
        '',
        f'{setting["batch"]}; {setting["precision"]}; {setting["steps"]}. s, the scoring pass: '
        f'{report["shallow_share"]:.2%} of a full step; the decision: '
        f'{report["estimator_share"]:.3%}. Notes: {setting["notes"]}',
    ]


def _core(found: Found) -> list[str]:
    lines = []
    for device, costs in found['costs'].items():
        rows = [[name, f'{median:.3f}', f'{best:.3f}'] for name, (median, best) in costs.items()]
        what = 'kernels, copies and fills' if device == 'cuda' else 'operators that call no other'
        rows.append([f'{what} of a decision', f'{found["launches"][device]:.1f}', ''])
        lines += [*_table([f'{device}, {found["size"]}; ms', 'median', 'best'], rows), '']
    return lines


def _recipes(done: Sequence[Done]) -> list[str]:
    """The recipes side by side: what each does to the full step, and what PFB saves on top."""
    found = {one.name: one.found for one in done if one.done}
    reports = {name: found[name] for name in RECIPES if name in found}
    if not reports:
        return []
    base = next(iter(reports.values()))
    rows = []
    for name, report in reports.items():
        full = report['results'][0]['step']['median']
        faster = base['results'][0]['step']['median'] / full
        for row in report['results'][1:]:
            step, like = row['step']['median'], _row(base, row['name'])
            rows.append(
                [
                    name,
                    row['name'],
                    f'{1e3 * full:.1f}',
                    f'{faster:.2f}',
                    f'{1e3 * step:.1f}',
                    f'{row["saved"]:.1%}',
                    _cell(row['of_ideal'], '.1%', False),
                    _cell(_ratio(row['saved'], like and like['saved']), '.0%', False),
                ]
            )
    headings = ['recipe', 'blocked step', 'full [ms]', 'times as fast as the first']
    headings += ['blocked [ms]', 'saved', 'saved / ideal', 'saved, of what the first saves']
    return ['**Side by side**', '', *_table(headings, rows), '']


def _of_criterion(found: Found, criterion: str) -> Iterable[tuple[str, Found]]:
    for name, report in [*found['steps'].items(), *found['models'].items()]:
        if name.endswith(criterion):
            yield name, report


def _hard_more(found: Found) -> Iterable[tuple[str, float]]:
    rare, hard = (dict(_of_criterion(found, criterion)) for criterion in CRITERIA)
    for name, report in hard.items():
        like = rare.get(f'{name.removesuffix("hard")}rare')
        if like is not None:
            yield name, report['estimator_share'] - like['estimator_share']


def _memory_more(row: Found, full: Found) -> float | None:
    share = _ratio(row['peak_memory'], full['peak_memory'])
    return None if share is None else share - row['kept_share']


def _row(report: Found, name: str) -> Found | None:
    return next((row for row in report['results'] if row['name'] == name), None)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _more(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _at_least(name: str, low: float, values: Sequence[tuple[str, float | None]]) -> Aim:
    values = [(where, value) for where, value in values if value is not None]
    if not values:
        return Aim(name, f'≥ {low:.0%}', '–', None)
    where, worst = min(values, key=lambda one: one[1])
    return Aim(name, f'≥ {low:.0%}', f'{worst:.1%} ({where})', worst >= low)


def _at_most(name: str, high: float, values: Sequence[tuple[str, float | None]], form: str) -> Aim:
    values = [(where, value) for where, value in values if value is not None]
    wanted = f'≤ {format(high, form)}'
    if not values:
        return Aim(name, wanted, '–', None)
    where, worst = max(values, key=lambda one: one[1])
    return Aim(name, wanted, f'{worst:{form}}' + (f' ({where})' if where else ''), worst <= high)


def _cell(value: float | None, form: str, falls_short: bool) -> str:
    return '–' if value is None else f'{value:{form}}{_SHORT * falls_short}'


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [headings, ['---', *['---:'] * (len(headings) - 1)], *rows]
    return [
        '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in row) + ' |' for row in lines
    ]
