"""A checkpoint and a config without a trace of PFB, for where pfb_mmseg is not installed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, Registry, init_default_scope
from mmengine.runner import CheckpointLoader

from .apply import imports_of, remove_pfb, type_name

PACKAGE = __name__.partition('.')[0]
# What predictions and tests need of a config. The rest is of the run that trained.
KEPT = (
    *('default_scope', 'env_cfg', 'custom_imports', 'visualizer', 'vis_backends'),
    *('model', 'data_preprocessor', 'tta_model', 'tta_pipeline', 'test_pipeline'),
    *('test_dataloader', 'test_cfg', 'test_evaluator'),
)
# Transforms of ours that stand where MMSegmentation's would, with those.
TRANSFORMS = {'LoadDemoScene': 'LoadImageFromFile', 'LoadDemoLabels': 'LoadAnnotations'}


class Exported(NamedTuple):
    """What :func:`export` wrote.

    Attributes:
        checkpoint: weights, and the config and the data set's classes in ``meta``.
        config: config file.
        changes: a sentence for each thing that was changed or left out.
    """

    checkpoint: Path
    config: Path
    changes: list[str]


def export(
    checkpoint: str | Path,
    out: str | Path,
    config: str | Path | Config | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a checkpoint and a config that need MMSegmentation, or MMPretrain, alone.

    Predictions stay the same, bit for bit; where EMAHook averaged the weights, they are the
    averages, as MMEngine saves them. Left out is what only training needs: data, hooks, optimizer,
    schedule and log, and the state of PFB, an exit of its own included.

    Args:
        checkpoint: that MMEngine saved; path or URL. It may hold objects: read what you trust.
        out: file that ends in ``.pth``, beside which the config is put; or a folder for both.
        config: of the model; None takes the one that is kept in the checkpoint.
        overwrite: whether files that are there already may be replaced.

    Raises:
        FileExistsError: a file is there already.
        ValueError: there is no config, the model needs a part of this package at inference, or
            config and weights do not belong together.
    """
    out, source = Path(out), Path(checkpoint)
    weights = out if out.suffix == '.pth' else out / f'{source.stem}.pth'
    written = weights.with_suffix('.py')
    if weights.resolve() == source.resolve():
        raise FileExistsError(f'{weights} is the checkpoint itself: name another file')
    if out != weights and out.exists() and not out.is_dir():
        raise FileExistsError(f'{out} is a file: name a folder, or a file that ends in .pth')
    for path in (weights, written):
        if path.exists() and not overwrite:
            raise FileExistsError(
                f'{path} is there already: name another place, or let overwrite replace it'
            )

    loaded = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
    if not isinstance(loaded, dict) or 'state_dict' not in loaded:
        raise ValueError(f'{checkpoint} has no state_dict: expected a checkpoint saved by MMEngine')
    cfg = _find_config(checkpoint, loaded, config)
    changes = plain_config(cfg)
    plain, left_out = _plain_checkpoint(loaded, cfg)
    _check_fit(cfg, plain['state_dict'])

    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(plain, weights)
    cfg.dump(written)
    return Exported(weights, written, changes + left_out)


def plain_config(cfg: Config) -> list[str]:
    """Reduce a config in place to what predictions and tests need, without a part of this package.

    Where the test data are of this package, their pipeline stays, which MMSegmentation's and
    MMPretrain's inferencers look for.

    Returns:
        A sentence for each change.

    Raises:
        ValueError: the model has a part of this package that has no plain counterpart.
    """
    changes = []
    blocked = cfg.model.type
    remove_pfb(cfg)
    if cfg.model.type != blocked:
        changes.append(f'model.type: {type_name(blocked)} -> {type_name(cfg.model.type)}')
    if left_out := [entry for entry in [*cfg] if entry not in KEPT]:
        changes.append(f'{", ".join(left_out)} left out')
        for entry in left_out:
            cfg.pop(entry)
    changes += _plain_imports(cfg)
    for path, step, value in _leaves(cfg._cfg_dict):
        if path.endswith('.type') and type_name(value) in TRANSFORMS:
            step['type'] = TRANSFORMS[type_name(value)]
            changes.append(f'{path}: {type_name(value)} -> {step["type"]}')
    needed = {entry: cfg.get(entry) for entry in ('model', 'data_preprocessor', 'tta_model')}
    if found := _trace(needed):
        raise ValueError(
            f'{found} is a part of {PACKAGE} that the model needs at inference, and OpenMMLab has '
            f'none like it: install {PACKAGE} where the model is deployed'
        )
    tests = {entry: cfg.get(entry) for entry in KEPT if entry.startswith('test_')}
    if found := _trace(tests):
        changes.append(f'test data left out: {found}')
        pipeline = tests['test_dataloader']['dataset'].get('pipeline')
        for entry in tests:
            cfg.pop(entry, None)
        if pipeline and not _trace({'pipeline': pipeline}):
            cfg.test_pipeline = pipeline
            cfg.test_dataloader = dict(dataset=dict(pipeline=pipeline))
    return changes


def _plain_checkpoint(checkpoint: dict, cfg: Config) -> tuple[dict, list[str]]:
    """Weights and meta data alone, with the plain config; a sentence for what was left out."""
    changes = []
    found = checkpoint['state_dict']
    state_dict = _without_pfb(found)
    if hasattr(found, '_metadata'):  # torch keeps the version of each module beside the weights
        state_dict._metadata = _without_pfb(found._metadata)
    if num_own := len(found) - len(state_dict):
        changes.append(f'state_dict: {num_own} entries of PFB left out')
    others = [key for key in checkpoint if key not in ('meta', 'state_dict')]
    if others:
        changes.append(f'checkpoint: {", ".join(others)} left out')
    meta = {key: value for key, value in checkpoint.get('meta', {}).items() if key != 'hook_msgs'}
    return {'meta': {**meta, 'cfg': cfg.pretty_text}, 'state_dict': state_dict}, changes


def _without_pfb(entries: dict) -> dict:
    pairs = ((key, value) for key, value in entries.items() if 'pfb' not in key.split('.'))
    return type(entries)(pairs)


def _leaves(value: Any, path: str = '') -> Iterator[tuple[str, dict | list | tuple, str | type]]:
    """Every string and class in a nest of dicts and lists: its path, what holds it, and itself."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in [*pairs]:
        where = f'{path}.{key}' if path else str(key)
        if isinstance(inner, (str, type)):
            yield where, value, inner
        elif isinstance(inner, (dict, list, tuple)):
            yield from _leaves(inner, where)


def _trace(part: dict) -> str | None:
    """Path and value of the first that names a part of this package: a registered type, or a
    module in a path."""
    roots = [one for one in vars(mmengine.registry).values() if isinstance(one, Registry)]
    ours = {
        name
        for root in roots
        for registry in (root, *root.children.values())
        for name, found in registry.module_dict.items()
        if getattr(found, '__module__', '').partition('.')[0] == PACKAGE
    }
    for path, _, value in _leaves(part):
        module = getattr(value, '__module__', str(value))
        if type_name(value) in ours or module.partition('.')[0] == PACKAGE:
            return f'{path}={value!r}'
    return None


def _plain_imports(cfg: Config) -> list[str]:
    imports = imports_of(cfg)
    others = [name for name in imports if name.partition('.')[0] != PACKAGE]
    if others == imports:
        return []
    if others:
        cfg.custom_imports.imports = others
        return [f'custom_imports: {PACKAGE} left out; needed still: {", ".join(others)}']
    cfg.pop('custom_imports')
    return [f'custom_imports: {PACKAGE} left out']


def _find_config(
    checkpoint: str | Path, loaded: dict, config: str | Path | Config | None
) -> Config:
    if config is not None:
        return copy.deepcopy(config) if isinstance(config, Config) else Config.fromfile(config)
    text = loaded.get('meta', {}).get('cfg')
    if not text:
        raise ValueError(f'{checkpoint} keeps no config in meta: give it with config (--config)')
    return Config.fromstring(text, '.py')


def _check_fit(cfg: Config, state_dict: dict) -> None:
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    try:
        model = MODELS.build(copy.deepcopy(cfg.model))
    except KeyError as error:
        raise ValueError(
            f'the model cannot be built: {error.args[0]}. Name the module that registers it in '
            "the config's custom_imports, and let Python find it"
        ) from error
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise ValueError(
            'config and checkpoint do not belong together; export with the config that the model '
            f'was trained with. {error}'
        ) from error
