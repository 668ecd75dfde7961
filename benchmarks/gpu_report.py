"""Measure on a GPU what wants one: ``python -m benchmarks.gpu_report`` (or ``make gpu-report``).

Calls the benchmarks one after the other. Each leaves what it found in a file, so that the same
command goes on where it was interrupted, and ends with ``report.md`` and ``report.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import mmseg
import torch

from pfb_mmseg.report.versions import installed_versions, this_code

ROOT = Path(__file__).resolve().parents[1]
ZOO = Path(mmseg.__file__).parent / '.mim/configs'
DEEPLAB = 'configs/cityscapes/deeplabv3_r50-d8_4xb2-36k_cityscapes-512x1024.py'
UPERNET = ZOO / 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
SEGFORMER = ZOO / 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'
DEMO = 'configs/demo/fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64.py'
CAMVID = 'benchmarks/configs/camvid/deeplabv3_r50-d8_pfb-p50_1xb8-2k_camvid-360x480.py'
PFB = ['-m', 'pfb_mmseg.commands']


def steps(
    smoke: bool, config: str | Path, criterion: str, *options: str, compiled: bool = False
) -> list[str]:
    """Arguments that time full and blocked steps of a model."""
    command = [*PFB, 'benchmark', DEMO if smoke else str(config), *options]
    if smoke:
        command += ['--device', 'cpu', '--batch-size', '2', '--crop', '64', '64']
        command += ['--steps', '1', '--ratios', '0.5']
    else:
        command += ['--batch-size', '8', '--crop', '512', '1024', '--steps', '10']
    command += ['--out', '{out}', '--cfg-options', f'model.pfb.criterion={criterion}']
    backend = 'eager' if smoke else 'inductor'
    return [*command, *([f'compile.backend={backend}'] if compiled else [])]


def training(smoke: bool) -> list[str]:
    """Arguments that train the demo's model in a process group, on a GPU with SyncBN and NCCL."""
    iters, norm = ('4', 'BN') if smoke else ('200', 'SyncBN')
    options = [f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}']
    options += ['val_dataloader.dataset.length=4', 'default_hooks.checkpoint.interval=-1']
    parts = ('backbone', 'decode_head', 'auxiliary_head')
    options += [f'model.{part}.norm_cfg.type={norm}' for part in parts]
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
    command += ['1'] if smoke else ['gpu']
    command += [*PFB, 'train', DEMO, '--launcher', 'pytorch', '--work-dir', '{folder}']
    return [*command, '--cfg-options', *options]


def camvid(data: Path) -> list[str]:
    """Arguments that train on CamVid by several methods."""
    command = [*PFB, 'compare', CAMVID, '--methods', 'full', 'small', 'random', 'hard', '--iters']
    command += ['300', '--ratios', '0.5', '--seeds', '0', '--work-dir', '{folder}', '--cfg-options']
    command += [f'{part}_dataloader.dataset.data_root={data}' for part in ('train', 'val', 'test')]
    command += ['model.pretrained=None', 'optim_wrapper.type=AmpOptimWrapper']
    return [*command, 'default_hooks.checkpoint.save_last=False']


def jobs(smoke: bool, data: Path | None) -> dict[str, list[str]]:
    """What Python is called with, by name; ``{out}`` and ``{folder}`` are filled in."""
    pace = ['--seconds', '0.01' if smoke else '1']
    amp = [] if smoke else ['--amp']
    found = {
        'decision': ['-m', 'benchmarks.decision', '--no-growth', *pace, '--out', '{out}'],
        'deeplab-rare': steps(smoke, DEEPLAB, 'rare', *amp),
        'deeplab-hard': steps(smoke, DEEPLAB, 'hard', *amp),
        'deeplab-compiled': steps(smoke, DEEPLAB, 'hard', *amp, compiled=True),
        'upernet-hard': steps(smoke, UPERNET, 'hard', *amp),
        'segformer-hard': steps(smoke, SEGFORMER, 'hard', *amp),
        'training': training(smoke),
        'tests': ['-m', 'pytest', 'tests/test_no_sync.py' if smoke else 'tests', '-m', 'cuda'],
    }
    if data:
        found['camvid'] = camvid(data.resolve())
    return found


def run(name: str, arguments: Sequence[str], work_dir: Path, seconds: float, code: str) -> dict:
    """Call Python unless this code has done the job before; what came of it, plain data."""
    done, log = work_dir / f'{name}.done.json', work_dir / f'{name}.log'
    command = [
        one.format(out=work_dir / f'{name}.json', folder=work_dir / name) for one in arguments
    ]
    if done.is_file() and (earlier := json.loads(done.read_text()))['code'] == code:
        return earlier
    print(f'{name} ...', flush=True)
    started = time.monotonic()
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '120', 'PYTHONWARNINGS': 'ignore'}
    with open(log, 'w') as file:
        try:
            status = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=env,
                stdout=file,
                stderr=file,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            status = f'ended after {seconds:.0f} s'
    found = {'command': shlex.join(['python', *command]), 'status': status, 'code': code}
    found |= {'seconds': round(time.monotonic() - started), 'log': log.read_text()[-5000:]}
    if status == 0:
        done.write_text(json.dumps(found))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.gpu_report', description=__doc__)
    parser.add_argument('--camvid', type=Path, metavar='FOLDER', help='train on CamVid, too')
    parser.add_argument('--only', nargs='+', choices=jobs(False, Path()), help='default: all')
    parser.add_argument('--minutes', type=float, default=12, help='that this call may take')
    parser.add_argument('--smoke', action='store_true', help='on the CPU, to try the script')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/gpu_report'))
    args = parser.parse_args(argv)
    if not args.smoke and not torch.cuda.is_available():
        parser.error('torch finds no GPU; --smoke tries the script on the CPU')
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    code, made = this_code()['version'], datetime.now(timezone.utc).isoformat(timespec='minutes')
    made_by = {'made': made, 'code': code, **installed_versions(), 'CUDA': torch.version.cuda}
    found = {}
    for name, arguments in jobs(args.smoke, args.camvid).items():
        if args.only is None or name in args.only:
            found[name] = run(name, arguments, work_dir, max(1.0, ends - time.monotonic()), code)
    (work_dir / 'report.json').write_text(json.dumps({**made_by, 'jobs': found}, indent=1) + '\n')
    lines = ['# GPU report', '', *(f'- {name}: {value}' for name, value in made_by.items())]
    for name, one in found.items():
        what = 'done' if one['status'] == 0 else f'failed: {one["status"]}'
        lines += ['', f'## {name}: {what}, {one["seconds"]} s', '', f'`{one["command"]}`']
        lines += ['', '```', one['log'].strip(), '```']
    (work_dir / 'report.md').write_text('\n'.join(lines) + '\n')
    print(f'report.md and report.json: {work_dir}/')


if __name__ == '__main__':
    main()
