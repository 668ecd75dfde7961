"""What methods save where steps wait for the data loader: ``python -m benchmarks.loader``.

The loader's work is that of mmseg's Cityscapes pipeline on files of 2048x1024. How long a step
takes beside it is set by the size to which the finished crops are scaled down for the network: on
small ones it waits for the loader, on large ones it does not. Finished runs are kept: after an
interruption, start it again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmseg.datasets import CityscapesDataset
from rich.progress import Progress

from pfb_mmseg.commands.arguments import ToolParser, seed_number, share, whole
from pfb_mmseg.compare import rows
from pfb_mmseg.compare.comparison import made_by
from pfb_mmseg.compare.lengths import full_iters
from pfb_mmseg.compare.methods import PRUNING_METHODS
from pfb_mmseg.compare.runs import run_all, run_folder
from pfb_mmseg.demo.scenes import CLASSES, IGNORE, draw_scene
from pfb_mmseg.report import read_scalars
from pfb_mmseg.report.record import write_atomically
from pfb_mmseg.shipped import find_config

# The network, and the pipeline that its images come through.
NETWORK = 'fcn_r18-d8_pfb-p50_1xb16-300i_demo-64x64'
PIPELINE = 'deeplabv3_r50-d8_4xb2-36k_cityscapes-512x1024'
REFERENCE = 'full'

_FILE_SIZE = (2048, 1024)  # (width, height), as Cityscapes'
# Twice enlarged, the scenes' noise compresses about as badly as a camera's.
_DRAWN_SIZE = (512, 1024)  # (height, width)
_CITYSCAPES = CityscapesDataset.METAINFO['classes']
_PREFETCHED = 2  # batches that a worker loads ahead, PyTorch's default


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        methods: that prune, to be set beside full data.
        ratios: that each of them leaves out, in (0, 1).
        seeds: of each run.
        heights: of the images that the network gets, twice as wide; a bench each, in [8, 512].
        images: of the data set.
        iters: of full data.
        batch_size: images of a step.
        workers: of the loader; 0: the training process loads by itself.
    """

    methods: Sequence[str]
    ratios: Sequence[float]
    seeds: Sequence[int]
    heights: Sequence[int]
    images: int
    iters: int
    batch_size: int
    workers: int

    @property
    def uncounted(self) -> int:
        """First iterations of a run that are not measured: the first one is slow, the next may
        find batches that the workers loaded before it began, and two_stage looks at each image once
        before it leaves any out."""
        return 1 + _PREFETCHED * self.workers + -(-self.images // self.batch_size)


@dataclass(frozen=True)
class Line:
    """A row of a bench, means over its seeds.

    Attributes:
        row: its name.
        iterations: of its runs.
        loaded: images that the data loader handed out.
        seconds: wall clock of all iterations, at the pace of those that are counted.
        saved: 1 - seconds / seconds of full data with the same seed; None for full data.
        wait: seconds that an iteration waited for the loader.
        share: of the wall clock that is.
    """

    row: str
    iterations: float
    loaded: float
    seconds: float
    saved: float | None
    wait: float
    share: float


def write_images(folder: Path, num_images: int, progress: Progress) -> None:
    """Street scenes of the demo and their labels as files, with Cityscapes' names and places; those
    that are there already stay.

    Args:
        folder: root of the data set.
        num_images: of the data set; the first ones are the same for any number.
        progress: shows the images.
    """
    for index in progress.track(range(num_images), num_images, description='images'):
        _write_image(folder, index)


def _write_image(folder: Path, index: int) -> None:
    name = f'demo/demo_{index:06d}_000000'
    image_file = folder / f'leftImg8bit/train/{name}_leftImg8bit.png'
    label_file = folder / f'gtFine/train/{name}_gtFine_labelTrainIds.png'
    if image_file.is_file() and label_file.is_file():
        return
    image, labels = draw_scene('street', 'train', index, _DRAWN_SIZE)
    image = cv2.resize(image, _FILE_SIZE, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(_train_ids()[labels], _FILE_SIZE, interpolation=cv2.INTER_NEAREST)
    for file, pixels in ((image_file, image), (label_file, labels)):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, cv2.imencode('.png', pixels)[1].tobytes())


def _train_ids() -> np.ndarray:
    """(256,) uint8: Cityscapes' label of each of the demo's; 255 for what is no class there."""
    names = ['vegetation' if name == 'tree' else name for name in CLASSES]
    table = np.full(256, IGNORE, dtype=np.uint8)
    for label, name in enumerate(names):
        if name in _CITYSCAPES:
            table[label] = _CITYSCAPES.index(name)
    return table


def plan(request: Request, folder: Path) -> dict[int, list[rows.Row]]:
    """The rows of each bench, by its height.

    Args:
        request: what is to be measured.
        folder: root of the data set, whose files are there.

    Raises:
        TypeError, ValueError: a method does not fit, or its run would be too short to be measured.
    """
    methods = (REFERENCE, *request.methods)
    benches = {
        height: rows.plan(
            config_of(request, folder, height),
            methods,
            request.ratios,
            iters=request.iters,
        )
        for height in request.heights
    }
    for row in next(iter(benches.values())):
        iters = full_iters(row.config)
        if iters <= request.uncounted:
            raise ValueError(
                f'--iters {request.iters}: {row.name} takes {iters} iterations, of which the first '
                f'{request.uncounted} are not counted with {request.workers} worker(s); raise '
                '--iters or lower --workers'
            )
    return benches


def config_of(request: Request, folder: Path, height: int) -> Config:
    """A run that prunes from its beginning to its end, validates nothing and saves nothing."""
    config = Config.fromfile(find_config(NETWORK))
    config.model.data_preprocessor.size = (height, 2 * height)
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.num_classes = len(_CITYSCAPES)
    # The first batch seeds all centroids.
    estimator = dict(num_centroids=request.batch_size)
    config.model.pfb.criterion = dict(type='rare', estimator=estimator)
    config.custom_hooks = [dict(type='PFBHook', begin=0, end=1.0)]

    loader = Config.fromfile(find_config(PIPELINE)).train_dataloader
    loader.update(
        batch_size=request.batch_size,
        num_workers=request.workers,
        persistent_workers=request.workers > 0,
    )
    loader.dataset.update(data_root=str(folder), indices=request.images)
    # Behind all that the loader does elsewhere, before PackSegInputs.
    loader.dataset.pipeline.insert(-1, dict(type='Resize', scale=(2 * height, height)))
    config.train_dataloader = loader

    config.val_dataloader = config.val_evaluator = config.val_cfg = None
    config.default_hooks.checkpoint.update(interval=-1, save_last=False)
    # Each iteration has an entry of its own in the log.
    config.default_hooks.logger.interval = 1
    config.log_processor = dict(by_epoch=False, window_size=1)
    return config


def measure(
    bench: Sequence[rows.Row], request: Request, root: Path, progress: Progress
) -> list[Line]:
    """Train what is not finished yet, and read what the runs logged.

    Args:
        bench: rows of :func:`plan`, full data first.
        request: what they were planned from.
        root: folder of the runs and their configs.
        progress: shows the runs and their iterations.
    """
    outcomes = run_all(bench, request.seeds, root, progress)
    lines: list[Line] = []
    full: list[float] = []
    for row in bench:
        own = [outcome for outcome in outcomes if outcome.row == row.name]
        logs = [read_scalars(run_folder(root, row.name, outcome.seed))[0] for outcome in own]
        # PFBHook writes an entry of its own where the run ends between two of the logger's.
        logs = [[entry for entry in log if 'time' in entry][request.uncounted :] for log in logs]
        waits = [statistics.fmean(entry['data_time'] for entry in log) for log in logs]
        paces = [statistics.fmean(entry['time'] for entry in log) for log in logs]
        seconds = [pace * one.iterations for pace, one in zip(paces, own, strict=True)]
        full = full or seconds
        saved = [1 - mine / whole for mine, whole in zip(seconds, full, strict=True)]
        lines.append(
            Line(
                row=row.name,
                iterations=statistics.fmean(outcome.iterations for outcome in own),
                loaded=statistics.fmean(outcome.loaded for outcome in own),
                seconds=statistics.fmean(seconds),
                saved=statistics.fmean(saved) if row.name != REFERENCE else None,
                wait=statistics.fmean(waits),
                share=statistics.fmean(w / pace for w, pace in zip(waits, paces, strict=True)),
            )
        )
    return lines


HEADINGS = {
    'iterations': 'iters',
    'loaded': 'images loaded',
    'saved': 'wall clock saved',
    'seconds': 'wall clock [s]',
    'wait': 'wait [s/iter]',
    'share': 'share waited',
}


def tables(benches: Mapping[int, Sequence[Line]]) -> str:
    """A Markdown table for each bench.

    Args:
        benches: its lines, full data's first, by the height of the images.
    """
    text = ''
    for height, lines in benches.items():
        text += (
            f'## Crops scaled to {height}x{2 * height}\n\n'
            f'Full data waits for the loader in {lines[0].share:.0%} of the wall clock.\n\n'
            f'| method | {" | ".join(HEADINGS.values())} |\n'
            f'| --- |{" ---: |" * len(HEADINGS)}\n'
        )
        for line in lines:
            saved = '-' if line.saved is None else f'{line.saved:.1%}'
            text += (
                f'| {line.row} | {line.iterations:,.0f} | {line.loaded:,.0f} | {saved} '
                f'| {line.seconds:.1f} | {line.wait:.3f} | {line.share:.0%} |\n'
            )
        text += '\n'
    return text


def write(
    benches: Mapping[int, Sequence[Line]],
    request: Request,
    folder: Path,
    made_by: Mapping[str, Any],
) -> str:
    """Leaves ``loader.md`` and ``loader.json`` in a folder; returns the tables."""
    text = tables(benches)
    (folder / 'loader.md').write_text(text)
    everything = {
        **made_by,
        **asdict(request),
        'benches': {height: [asdict(line) for line in lines] for height, lines in benches.items()},
    }
    (folder / 'loader.json').write_text(json.dumps(everything, indent=1) + '\n')
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = ToolParser('python -m benchmarks.loader', description=__doc__)
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=PRUNING_METHODS,
        default=['rare', 'hard', 'two_stage', 'infobatch'],
        help='beside full',
    )
    parser.add_argument('--ratios', nargs='+', type=share, default=[0.5, 0.7], metavar='P')
    parser.add_argument('--seeds', nargs='+', type=seed_number, default=[0])
    about = 'of the images that the network gets, twice as wide; a table each'
    parser.add_argument('--heights', nargs='+', type=whole(8, 513), default=[32, 160], help=about)
    for name, low, default, about in (
        ('images', 1, 24, 'files'),
        ('iters', 1, 50, 'iterations of full data'),
        ('batch-size', 1, 4, 'images of a step'),
        ('workers', 0, 1, 'processes of the loader; 0: the training process loads'),
    ):
        parser.add_argument(f'--{name}', type=whole(low), default=default, help=about)
    parser.add_argument('--work-dir', type=Path, default='work_dirs/loader')
    args = parser.parse_args(argv)
    root = args.work_dir
    try:
        request = Request(**{one.name: getattr(args, one.name) for one in fields(Request)})
        with Progress() as progress:
            write_images(root / 'cityscapes', request.images, progress)
            benches = plan(request, root / 'cityscapes')
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    with Progress() as progress:
        lines = {
            height: measure(bench, request, root / f'height{height}', progress)
            for height, bench in benches.items()
        }
    print(write(lines, request, root, made_by()))
    print(f'loader.md and loader.json: {root}/')


if __name__ == '__main__':
    main()
