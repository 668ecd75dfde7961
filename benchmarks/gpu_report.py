"""Every number that wants a GPU, in parts; each part is a few calls of the tools and the tests.

At toy size all of it but the training on CamVid runs on a CPU in seconds, and its numbers mean
nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import ROOT, Done, Job, Jobs
from pfb_mmseg.report.files import write_atomically

SIZES = ('full', 'moderate', 'toy')
DEEPLAB = 'configs/cityscapes/deeplabv3_r50-d8_4xb2-36k_cityscapes-512x1024.py'
SMALL_DEEPLAB = 'configs/camvid/deeplabv3_r18-d8_1xb8-300i_camvid-176x240.py'
DEMO = 'configs/demo/fcn_r18-d8_1xb16-300i_demo-64x64.py'
CAMVID = 'configs/camvid/deeplabv3_r50-d8_pfb-p50_1xb8-2k_camvid-360x480.py'
ZOO = {
    'Swin-T + UPerNet': 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_'
    'ade20k-512x512.py',
    'SegFormer-B0': 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
}
CRITERIA = ('rare', 'hard')
RECIPES: dict[str, tuple[str, ...]] = {
    'float32': (),
    'channels_last': ('--channels-last',),
    'bf16': ('--amp', 'bfloat16'),
    'compile': ('--compile',),
    'all three': ('--channels-last', '--amp', 'bfloat16', '--compile'),
}
CAMVID_METHODS = ('full', 'short', 'long', 'small', 'random', 'pfb', 'hard')
CAMVID_RATIOS = (0.5, 0.7)
# What a seed takes, in iterations of full data and in runs: full and, for each ratio, short, long,
# small with its pace, and the three that prune, taken as three quarters of full data.
_CAMVID_LENGTH = 1 + len(CAMVID_RATIOS) * (0.75 + 1 + 1.1 + 3 * 0.75)
_CAMVID_RUNS = 1 + len(CAMVID_RATIOS) * 7
_CAMVID_PILOT = 20  # iterations
_CAMVID_FEWEST = 60  # fewer would tell nothing
_CAMVID_MOST = 2000
_CAMVID_SEEDS = 10  # at most

# The narrowest networks that the configs allow, and centroids that one batch seeds.
_FEW = ('model.pfb.estimator.num_centroids=4', 'model.pfb.estimator.dim=8')
_NARROW = {
    DEMO: (
        'model.backbone.base_channels=8',
        'model.backbone.stem_channels=8',
        'model.decode_head.in_channels=64',
        'model.auxiliary_head.in_channels=32',
    ),
    ZOO['Swin-T + UPerNet']: (
        'model.backbone.embed_dims=12',
        'model.backbone.num_heads=[1,1,2,4]',
        'model.backbone.depths=[1,1,2,1]',
        'model.decode_head.in_channels=[12,24,48,96]',
        'model.decode_head.channels=8',
        'model.auxiliary_head.in_channels=48',
        'model.auxiliary_head.channels=8',
    ),
    ZOO['SegFormer-B0']: ('model.backbone.embed_dims=8', 'model.decode_head.channels=8')
    + ('model.decode_head.in_channels=[8,16,40,64]',),
}


@dataclass(frozen=True)
class Setting:
    """On what it is measured, and at which size.

    Attributes:
        size: ``'full'``: the README's, for a GPU; ``'moderate'``: what a CPU can do; ``'toy'``.
        device: ``'cuda'`` or ``'cpu'``.
        num_gpus: processes of a distributed run; one on a CPU.
        camvid: folder of the data set; None: there is none.
        pretrained: weights of the backbone on CamVid, a file or what MMEngine can fetch.
    """

    size: str
    device: str
    num_gpus: int = 1
    camvid: Path | None = None
    pretrained: str | None = None

    @property
    def toy(self) -> bool:
        return self.size == 'toy'


def find_setting(
    toy: bool = False, camvid: Path | None = None, pretrained: str | None = None
) -> Setting:
    """What this machine can do. The toy size runs on the CPU, wherever it is asked for."""
    cuda = torch.cuda.is_available() and not toy
    size = 'toy' if toy else 'full' if cuda else 'moderate'
    device, num_gpus = ('cuda', torch.cuda.device_count()) if cuda else ('cpu', 1)
    return Setting(size, device, num_gpus, camvid, pretrained)


@dataclass(frozen=True)
class Part:
    """Some of the numbers, to be had on their own.

    Attributes:
        about: what they are.
        weight: its share of the time, relative to the other parts'.
        measure: runs its jobs within so many seconds.
        needs: what must be there, see :data:`NEEDS`.
    """

    about: str
    weight: float
    measure: Callable[[Setting, Jobs, float], None]
    needs: Sequence[str] = ()


def missing(setting: Setting, parts: Sequence[str]) -> dict[str, list[str]]:
    """What is not there, in sentences, with the parts that therefore cannot be had."""
    found: dict[str, list[str]] = {}
    for need, check in NEEDS.items():
        concerned = [name for name in parts if need in PARTS[name].needs]
        if concerned and (sentence := check(setting)):
            found[sentence] = concerned
    return found


def measure(setting: Setting, jobs: Jobs, parts: Sequence[str], after: Callable[[], None]) -> None:
    """Run parts in their order, and share the time that is left between those to come.

    Args:
        setting: where.
        jobs: runs them and keeps what came of them.
        parts: names of :data:`PARTS`.
        after: called after each, to write down what is known so far.
    """
    out = {name for names in missing(setting, parts).values() for name in names}
    order = [name for name in PARTS if name in parts and name not in out]
    for place, name in enumerate(order):
        weights = [PARTS[later].weight for later in order[place:]]
        PARTS[name].measure(setting, jobs, jobs.seconds_left * weights[0] / sum(weights))
        after()


def environment(setting: Setting) -> dict[str, str]:
    """Device, driver and libraries, as far as torch and the driver tell."""
    if setting.device == 'cpu':
        return {'device': 'CPU', 'threads': str(torch.get_num_threads())}
    names = [torch.cuda.get_device_name(i) for i in range(setting.num_gpus)]
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    found = {'devices': ', '.join(names), 'memory of one': f'{memory:.0f} GiB', 'driver': _driver()}
    found |= {'CUDA': str(torch.version.cuda), 'cuDNN': str(torch.backends.cudnn.version())}
    if torch.distributed.is_nccl_available():
        found['NCCL'] = '.'.join(map(str, torch.cuda.nccl.version()))
    return found


# The parts


def tests(setting: Setting, jobs: Jobs, seconds: float) -> None:
    where = 'tests/test_no_sync.py' if setting.toy else 'tests'
    arguments = ('-m', 'pytest', where, '-m', 'cuda', '-q', '-rfE', '-p', 'no:cacheprovider')
    jobs.run(Job('tests', 'CUDA tests', arguments, result=_last_line), seconds)


def steps(setting: Setting, jobs: Jobs, seconds: float) -> None:
    config = _deeplab(setting)
    todo = [
        _benchmark(setting, 'steps', name, config, ['--amp', '--channels-last'], name)
        for name in CRITERIA
    ]
    _run_all(jobs, todo, seconds)


def models(setting: Setting, jobs: Jobs, seconds: float) -> None:
    todo = [
        _benchmark(setting, 'models', f'{model} {criterion}', config, ['--amp'], criterion)
        for model, config in ZOO.items()
        for criterion in CRITERIA
    ]
    _run_all(jobs, todo, seconds)


def core(setting: Setting, jobs: Jobs, seconds: float) -> None:
    pace = ('--seconds', '0.01') if setting.toy else ()
    jobs.run(Job('core', 'a decision', ('tools/benchmark_core.py', '--no-growth', *pace)), seconds)


def ranks(setting: Setting, jobs: Jobs, seconds: float) -> None:
    _run_all(jobs, [_distributed(setting, jobs, scope) for scope in ('rank', 'global')], seconds)


def compiled(setting: Setting, jobs: Jobs, seconds: float) -> None:
    options = ['--amp', '--channels-last', *_compiling(setting, ['--compile'])]
    config = _deeplab(setting)
    _run_all(jobs, [_benchmark(setting, 'compile', 'rare', config, options, half=True)], seconds)


def recipes(setting: Setting, jobs: Jobs, seconds: float) -> None:
    config, todo = _deeplab(setting), []
    for name, options in RECIPES.items():
        if '--compile' not in options or _no_compiler(setting) is None:
            options = _compiling(setting, options)
            todo.append(_benchmark(setting, 'recipes', name, config, options, half=True))
    _run_all(jobs, todo, seconds)


def camvid(setting: Setting, jobs: Jobs, seconds: float) -> None:
    """A pilot tells what an iteration and a start take; from these follows the length of the runs,
    and from the time of the first seed, how many others there are time for."""
    ends = jobs.seconds_left - seconds
    pilot = jobs.run(_compare(setting, jobs, 'pilot', ['full'], _CAMVID_PILOT, [0]), seconds)
    if not pilot.done:
        return
    iters = _camvid_iters(jobs, pilot, jobs.seconds_left - ends)
    seeds, took = 0, 0.0
    while seeds == 0 or (seeds < _CAMVID_SEEDS and jobs.seconds_left - ends > took):
        seeds += 1
        job = _compare(setting, jobs, 'methods', CAMVID_METHODS, iters, range(seeds))
        done = jobs.run(job, seconds)
        if not done.done:
            return
        took = done.seconds


PARTS: dict[str, Part] = {
    'tests': Part('the tests that need a CUDA device', 2, tests, ['gpu', 'pytest', 'mmseg']),
    'steps': Part('steps of DeepLabV3-R50, with AMP and channels_last', 3, steps, ['gpu', 'mmseg']),
    'models': Part(
        'steps of Swin-T + UPerNet and SegFormer-B0, with AMP', 4, models, ['gpu', 'mmseg', 'zoo']
    ),
    'core': Part('what a decision costs, and how many kernels it launches', 1, core),
    'ranks': Part(
        'training with SyncBN and NCCL, a process for each GPU (on a CPU BN and gloo)',
        2,
        ranks,
        ['mmseg'],
    ),
    'compile': Part(
        'the plain and the blocked step with torch.compile',
        2,
        compiled,
        ['gpu', 'mmseg', 'compiler'],
    ),
    'recipes': Part(
        'channels_last, bf16 and torch.compile: does PFB keep its share of the saving?',
        3,
        recipes,
        ['mmseg'],
    ),
    'camvid': Part(
        'DeepLabV3-R50 trained on CamVid at 360x480, by several methods',
        8,
        camvid,
        ['gpu', 'mmseg', 'camvid'],
    ),
}


# What must be there


def _no_gpu(setting: Setting) -> str | None:
    if setting.device == 'cuda' or setting.toy:
        return None
    return 'no NVIDIA GPU that torch can use (torch.cuda.is_available() is False)'


def _no_mmseg(setting: Setting) -> str | None:
    absent = [name for name in ('mmengine', 'mmcv', 'mmseg') if find_spec(name) is None]
    return f'{", ".join(absent)}: pip install -e ".[mmseg]"' if absent else None


def _no_zoo(setting: Setting) -> str | None:
    if _no_mmseg(setting) is not None or _zoo() is not None:
        return None
    return 'the model zoo of the installed mmseg (.mim/configs)'


def _no_pytest(setting: Setting) -> str | None:
    if find_spec('pytest') is None:
        return 'pytest: pip install -e ".[test]"'
    return None if (ROOT / 'tests').is_dir() else f'the folder tests beside {ROOT}'


def _no_compiler(setting: Setting) -> str | None:
    if setting.toy:
        return None
    if setting.device == 'cuda':
        return None if find_spec('triton') else 'triton, with which torch.compile makes kernels'
    found = shutil.which('g++') or shutil.which('clang++')
    return None if found else 'a C++ compiler, with which torch.compile works on a CPU'


def _no_camvid(setting: Setting) -> str | None:
    if setting.camvid is None:
        return 'CamVid: name its folder with --camvid FOLDER (train, trainannot, val, valannot)'
    if not (setting.camvid / 'trainannot').is_dir():
        return f'CamVid: there is no folder trainannot in {setting.camvid}'
    return None


NEEDS: dict[str, Callable[[Setting], str | None]] = {
    'gpu': _no_gpu,
    'mmseg': _no_mmseg,
    'zoo': _no_zoo,
    'pytest': _no_pytest,
    'compiler': _no_compiler,
    'camvid': _no_camvid,
}


# The jobs


def _run_all(jobs: Jobs, todo: Sequence[Job], seconds: float) -> None:
    """One after the other; what one of them does not use is for those behind it."""
    ends = jobs.seconds_left - seconds
    for place, job in enumerate(todo):
        jobs.run(job, max(0.0, jobs.seconds_left - ends) / (len(todo) - place))


def _deeplab(setting: Setting) -> str:
    return {'full': DEEPLAB, 'moderate': SMALL_DEEPLAB, 'toy': DEMO}[setting.size]


def _benchmark(
    setting: Setting,
    part: str,
    name: str,
    config: str,
    options: Sequence[str],
    criterion: str = 'rare',
    half: bool = False,
) -> Job:
    """A call of tools/benchmark.py.

    Args:
        config: of the checkout, or of the zoo.
        options: of the tool.
        criterion: of PFB.
        half: at p = 0.5 alone, scored at full size.
    """
    path = f'{_zoo()}/{config}' if config in ZOO.values() else config
    batch, crop, pace = {
        'full': ('8', ('512', '1024'), ('--steps', '20', '--warmup', '5')),
        'moderate': ('8', ('176', '240'), ('--steps', '20', '--warmup', '3')),
        'toy': ('4', ('64', '64'), ('--steps', '1', '--warmup', '0')),
    }[setting.size]
    settings = [f'model.pfb.criterion.type={criterion}'] if criterion != 'rare' else []
    if criterion == 'hard' and config in ZOO.values():
        # None of the two has an auxiliary head that could read the blocked stage.
        settings += ['model.pfb.criterion.exit=own', 'model.pfb.criterion.warmup=0']
    if setting.toy:
        settings += [*_NARROW[config], *_FEW]
    arguments = ['tools/benchmark.py', path, '--batch-size', batch, '--crop', *crop, *pace]
    arguments += ['--device', setting.device, *options]
    arguments += ['--ratios', '0.5'] if half else ['--score-scale', '1', '0.5']
    # In a process of its own for each kind of step: a CPU would take long over it.
    arguments += ['--no-memory'] * (setting.device == 'cpu')
    arguments += ['--cfg-options', *settings] if settings else []
    return Job(part, name, tuple(arguments), timed=not setting.toy)


def _compiling(setting: Setting, options: Sequence[str]) -> list[str]:
    """At toy size the backend that compiles nothing: inductor would take a minute."""
    backend = ['--compile', 'eager'] if setting.toy else ['--compile']
    return [word for option in options for word in (backend if option == '--compile' else [option])]


def _distributed(setting: Setting, jobs: Jobs, scope: str) -> Job:
    """A short training under torchrun on the demo's scenes, as large as the model wants them."""
    folder = jobs.folder_of('ranks', scope)
    folder.mkdir(parents=True, exist_ok=True)
    _distributed_config(setting, scope).dump(folder / 'config.py')
    arguments = ('-m', 'torch.distributed.run', '--standalone')
    arguments += ('--nproc_per_node', str(setting.num_gpus), 'tools/train.py')
    arguments += (str(folder / 'config.py'), '--launcher', 'pytorch')
    arguments += ('--work-dir', str(folder / 'run'))
    return Job('ranks', scope, arguments, result=_logged)


def _distributed_config(setting: Setting, scope: str):
    from mmengine.config import Config

    from pfb_mmseg.convert.apply import apply_pfb

    cfg = Config.fromfile(ROOT / _deeplab(setting))
    scenes = Config.fromfile(ROOT / DEMO).train_dataloader
    height, width = {'full': (512, 1024), 'moderate': (176, 240), 'toy': (64, 64)}[setting.size]
    resize = dict(type='Resize', scale=(width, height), keep_ratio=False)
    scenes.dataset.pipeline = [*scenes.dataset.pipeline[:-1], resize, scenes.dataset.pipeline[-1]]
    on_gpu = setting.device == 'cuda'
    iters, workers = (60, 8) if on_gpu else (20, 0)
    options: dict[str, Any] = {
        'model.pretrained': None,
        'model.data_preprocessor.size': (height, width),
        'model.decode_head.num_classes': 13,
        'model.auxiliary_head.num_classes': 13,
        'model.pfb.selection_scope': scope,
        'train_cfg': dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=iters),
        'default_hooks.logger.interval': iters // 10,
        'default_hooks.checkpoint': None,
        'optim_wrapper.type': 'AmpOptimWrapper' if on_gpu else 'OptimWrapper',
        'train_dataloader.batch_size': 4 if setting.toy else 8,
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': on_gpu,
    }
    if setting.toy:
        narrow = dict(option.split('=') for option in _NARROW[DEMO])
        options |= {name: int(value) for name, value in narrow.items()}
        options |= {'model.pfb.estimator.num_centroids': 4, 'model.pfb.estimator.dim': 8}
    norm = dict(type='SyncBN' if on_gpu else 'BN', requires_grad=True)
    for module in ('backbone', 'decode_head', 'auxiliary_head'):
        options[f'model.{module}.norm_cfg'] = norm
    for loop in ('val', 'test'):
        options |= {f'{loop}_{what}': None for what in ('dataloader', 'cfg', 'evaluator')}
    cfg.train_dataloader = scenes
    cfg.param_scheduler = []
    cfg.merge_from_dict(options)
    apply_pfb(cfg, 0.5)
    # Full steps first, for the log to compare the others with.
    cfg.custom_hooks = [dict(type='PFBHook', begin=0.5, end=1.0)]
    return cfg


def _logged(folder: Path) -> dict[str, Any]:
    """Of the last entry of a run's log: its pace, and what PFB says of itself."""
    from pfb_mmseg.report import read_scalars

    train, _ = read_scalars(folder / 'run')
    wanted = ('step', 'time', 'data_time', 'loss')
    return {k: v for k, v in train[-1].items() if k in wanted or k.startswith('pfb/')}


def _compare(
    setting: Setting,
    jobs: Jobs,
    name: str,
    methods: Sequence[str],
    iters: int,
    seeds: Sequence[int],
) -> Job:
    """A call of tools/compare.py, which reuses the runs that it has made."""
    folder = jobs.folder_of('camvid', name) / 'runs'
    settings = [f'{loader}_dataloader.dataset.data_root={setting.camvid}' for loader in _LOADERS]
    settings += [f'model.pretrained={setting.pretrained}', 'optim_wrapper.type=AmpOptimWrapper']
    # A gigabyte for every two runs, which nobody would read.
    settings += ['default_hooks.checkpoint.interval=-1', 'default_hooks.checkpoint.save_last=False']
    arguments = ['tools/compare.py', CAMVID, '--methods', *methods]
    arguments += ['--ratios', *map(str, CAMVID_RATIOS), '--iters', str(iters)]
    arguments += ['--seeds', *map(str, seeds), '--work-dir', str(folder)]
    arguments += ['--cfg-options', *settings]
    return Job('camvid', name, tuple(arguments), result=_compared)


_LOADERS = ('train', 'val', 'test')


def _compared(folder: Path) -> dict[str, Any]:
    (path,) = (folder / 'runs').glob('*/comparison.json')
    return {**json.loads(path.read_text()), 'table': (path.parent / 'table.md').read_text()}


def _camvid_iters(jobs: Jobs, pilot: Done, seconds: float) -> int:
    """Iterations of full data with which a seed takes so many seconds; once chosen, they stay."""
    path = jobs.folder_of('camvid', 'methods') / 'iters.json'
    if path.is_file():
        return json.loads(path.read_text())
    (run,) = pilot.found['runs']
    iters = camvid_iters(seconds, run['seconds'] / _CAMVID_PILOT, pilot.seconds - run['seconds'])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(iters).encode())
    return iters


def camvid_iters(seconds: float, iteration: float, start: float) -> int:
    """Iterations of full data with which all methods with one seed take about so many seconds.

    Args:
        seconds: there are.
        iteration: seconds of one.
        start: seconds of a run without its iterations: imports, validation.
    """
    left = seconds - _CAMVID_RUNS * start
    iters = math.floor(left / (_CAMVID_LENGTH * iteration))
    return min(max(iters, _CAMVID_FEWEST), _CAMVID_MOST)


def _last_line(folder: Path) -> dict[str, str]:
    lines = (folder / 'log.txt').read_text().splitlines()
    return {'summary': next(line for line in reversed(lines) if line.strip())}


def _zoo() -> Path | None:
    from benchmarks.zoo import zoo_root

    try:
        return zoo_root()
    except FileNotFoundError:
        return None


def _driver() -> str:
    query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return answer.stdout.split()[0]


def by_part(done: Sequence[Done]) -> Mapping[str, list[Done]]:
    """What was run, by part, in the order of :data:`PARTS`."""
    return {part: [one for one in done if one.part == part] for part in PARTS}
