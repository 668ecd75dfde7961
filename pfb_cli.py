"""The command `pfb`, which answers before it imports torch and MMSegmentation.

To import any module of pfb_mmseg is to run ``pfb_mmseg/__init__.py`` first, which imports torch and
takes seconds. Help, mistakes, completion and ``--version`` need nothing of it, and the latter has
to answer where it fails: here the package is there from the start, but it is run only once the
command line has been understood.
"""

import sys
from importlib.util import find_spec, module_from_spec


def main() -> None:
    """Does what the command line asks for."""
    _do('read')


def call(name: str) -> None:
    """Does what the command line of a file in ``tools/`` asks for, which is one command alone."""
    _do('read_alone', name)


def _do(read: str, *arguments: str) -> None:
    if 'pfb_mmseg' in sys.modules:  # in the process of another, a test for one
        from pfb_mmseg.commands import main

        getattr(main, read)(*arguments)()
        return
    spec = find_spec('pfb_mmseg')
    package = sys.modules['pfb_mmseg'] = module_from_spec(spec)
    from pfb_mmseg import quiet
    from pfb_mmseg.commands import main

    quiet.ignore_known_warnings()
    try:
        run = getattr(main, read)(*arguments)
    except Exception:  # a command had to import something that is missing or does not fit
        spec.loader.exec_module(package)
        raise
    spec.loader.exec_module(package)
    run()
