"""Measure everything that wants a GPU; needs a clone of the repository.

Leaves gpu_report.md and gpu_report.json in the work dir, with what falls short of its aim marked.
After an interruption the same command goes on where it stopped. What is missing is said first, and
the rest is measured.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from pfb_mmseg.commands.arguments import ToolParser

NEEDS_MMSEG = False


def add_arguments(parser: ToolParser) -> None:
    from benchmarks.gpu_report import PARTS

    parser.epilog = 'parts:\n' + '\n'.join(
        f'  {name:<8} {part.about}' for name, part in PARTS.items()
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=PARTS,
        default=list(PARTS),
        metavar='PART',
        help='what is measured; all by default',
    )
    parser.add_argument(
        '--minutes', type=float, default=20, help='that this call may take (default: %(default)s)'
    )
    parser.add_argument(
        '--camvid', type=Path, metavar='FOLDER', help='with train, trainannot, val and valannot'
    )
    parser.add_argument(
        '--pretrained',
        metavar='WEIGHTS',
        help='of the backbone on CamVid: a file, or open-mmlab://resnet50_v1c, which is downloaded '
        '(default: none, from scratch)',
    )
    parser.add_argument('--toy', action='store_true', help='on the CPU in seconds, to try it out')
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/gpu_report, or gpu_report_toy'
    )


def run(parser: ToolParser, args: argparse.Namespace) -> None:
    if not args.minutes > 0:
        parser.error(f'--minutes {args.minutes:g}: expected a number > 0')
    if args.toy:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    from benchmarks import gpu_page, gpu_report
    from benchmarks.jobs import Jobs
    from pfb_mmseg.report.versions import installed_versions, this_code

    folder = (args.work_dir or Path(f'work_dirs/gpu_report{"_toy" * args.toy}')).resolve()
    camvid = args.camvid and args.camvid.resolve()
    setting = gpu_report.find_setting(args.toy, camvid, args.pretrained)
    absent = gpu_report.missing(setting, args.parts)
    for what, parts in absent.items():
        print(f'Missing: {what}. Left out: {", ".join(parts)}.')
    code, environment = this_code(), gpu_report.environment(setting)
    made_by = environment | installed_versions() | {'code': code['digest'], 'size': setting.size}
    about = environment | installed_versions() | {'code': code['version']}
    about |= {'made': datetime.now(timezone.utc).isoformat(timespec='minutes')}
    about |= {'command': shlex.join(['python', *sys.argv])}
    jobs = Jobs(folder, made_by, args.minutes)

    def write() -> None:
        gpu_page.write(folder, setting, about, absent, gpu_report.by_part(jobs.all))

    try:
        gpu_report.measure(setting, jobs, args.parts, write)
    finally:
        write()
    print(f'The report: {folder / "gpu_report.md"}')
