"""The loop without a framework: on CIFAR-10 as published and in tar files, with torch alone."""

import ast
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'tools' / 'plain_loop.py'
# Nothing of these can be imported by the script, whether it is installed or not.
HIDDEN = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'torchvision', 'cv2', 'matplotlib')


@pytest.fixture
def images():
    """(256, 32, 32, 3): of two classes, dark and bright, in turn."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (256, 32, 32, 3), dtype=np.uint8)
    images[1::2] += 150
    return images


@pytest.fixture
def published(images, tmp_path):
    rows = images.transpose(0, 3, 1, 2).reshape(256, 3072)
    parts = {f'data_batch_{i + 1}': range(50 * i, 50 * i + 50) for i in range(5)}
    for name, which in {**parts, 'test_batch': range(200, 256)}.items():
        labels = np.array([[i % 2] for i in which], dtype=np.uint8)
        np.hstack([labels, rows[which]]).tofile(tmp_path / f'{name}.bin')
    return tmp_path


@pytest.fixture
def tar_files(images, tmp_path):
    for split, which in {'train': range(250), 'val': range(200, 256)}.items():
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            for i in which:
                file = io.BytesIO()
                Image.fromarray(images[i]).save(file, 'jpeg')
                member = tarfile.TarInfo(f'{("dark", "bright")[i % 2]}/{i:04}.jpg')
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)
    return tmp_path


def train(folder, *options):
    """Loss of the last step and accuracy in percent; mmseg and the like are hidden from it."""
    hide = f'import sys, runpy; sys.modules.update(dict.fromkeys({HIDDEN}));'
    script = f'sys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name="__main__")'
    run = subprocess.run(
        [sys.executable, '-c', hide + script, folder, '--width', '4', *options],
        # In one thread, since the network is as narrow as can be: see `one_thread` in conftest.py.
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    found = re.fullmatch(
        r'trained in \d+ s, loss (\d+\.\d{3})\naccuracy (\d+\.\d\d)%\n', run.stdout
    )
    assert found, run.stdout
    return map(float, found.groups())


def functions():
    """What the script defines, without running it."""
    tree = ast.parse(SCRIPT.read_text())
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    tree.body = [statement for statement in tree.body if isinstance(statement, kinds)]
    names = {}
    exec(compile(tree, str(SCRIPT), 'exec'), names)
    return names


@pytest.mark.parametrize('layout', ['published', 'tar_files'])
def test_it_reads_both_layouts_and_trains_with_torch_alone(layout, request):
    folder = request.getfixturevalue(layout)
    images, labels = functions()['read_cifar10'](folder, 'train')
    assert images.shape == (250, 3, 32, 32) and -2 <= images.min() and images.max() <= 2
    dark = images.mean(dim=(1, 2, 3)) < 0
    names = {'published': [0, 1], 'tar_files': [1, 0]}[layout]  # of folders: in alphabetical order
    assert labels.tolist() == [names[0] if is_dark else names[1] for is_dark in dark]
    loss, accuracy = train(folder, '--epochs', '2')
    assert 0 < loss < 10 and 0 <= accuracy <= 100


def test_crops_and_mirrors_keep_most_of_an_image():
    torch.manual_seed(0)
    images = torch.rand(64, 3, 32, 32) + 1
    changed = functions()['augment'](images)
    assert changed.shape == images.shape
    left = (changed > 0).float().mean(dim=(1, 2, 3))
    assert (left >= (28 / 32) ** 2 - 1e-6).all()
    inner, whole = images[:, :, 4:28, 4:28].sum(dim=(1, 2, 3)), images.sum(dim=(1, 2, 3))
    total = changed.sum(dim=(1, 2, 3))
    assert ((inner < total) & (total <= whole * (1 + 1e-6))).all()


@pytest.mark.parametrize('options', [['--prune-ratio', '0'], ['--criterion', 'random']])
def test_it_trains_on_all_images_and_on_a_random_part(options, published):
    loss, accuracy = train(published, '--epochs', '2', *options)
    assert 0 < loss < 10 and 0 <= accuracy <= 100


def test_it_is_short():
    assert len(SCRIPT.read_text().splitlines()) <= 100
