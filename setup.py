"""Builds the package; what describes it stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


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


setup(cmdclass={'build_py': BuildWithMIM})
