"""Measures everything that wants a GPU: `python tools/gpu_report.py`, or `make gpu-report`.

Leaves gpu_report.md and gpu_report.json in the work dir, with what falls short of its aim marked.
After an interruption the same command goes on where it stopped. What is missing is said first, and
the rest is measured.
"""

import argparse
import json
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from dataclasses import asdict  # noqa: E402

from pfb_mmseg.measure import gpu_page, gpu_report  # noqa: E402
from pfb_mmseg.measure.jobs import Jobs  # noqa: E402
from pfb_mmseg.reporting.files import write_atomically  # noqa: E402
from pfb_mmseg.reporting.versions import installed_versions, this_code  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='parts:\n'
        + '\n'.join(f'  {name:<8} {part.about}' for name, part in gpu_report.PARTS.items()),
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=gpu_report.PARTS,
        default=list(gpu_report.PARTS),
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
    args = parser.parse_args()
    if not args.minutes > 0:
        parser.error(f'--minutes {args.minutes:g}: expected a number > 0')
    if args.toy:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
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
        parts = gpu_report.by_part(jobs.all)
        page = gpu_page.markdown(setting, about, absent, parts)
        everything = {
            'about': about,
            'missing': absent,
            'aims': [asdict(aim) for aim in gpu_page.aims(parts)],
            'parts': {name: [asdict(one) for one in done] for name, done in parts.items()},
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / 'gpu_report.md', page.encode())
        write_atomically(
            folder / 'gpu_report.json', (json.dumps(everything, indent=1) + '\n').encode()
        )

    try:
        gpu_report.measure(setting, jobs, args.parts, write)
    finally:
        write()
    print(f'The report: {folder / "gpu_report.md"}')


if __name__ == '__main__':
    main()
