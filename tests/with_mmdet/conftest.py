"""Models that need MMDetection. MMSegmentation looks for it once, when it is imported: these tests
have a process of their own, see the Makefile, and are left out where MMDetection is not found."""

from importlib.util import find_spec

from .compiled import stand_in

if find_spec('mmdet') is None:
    collect_ignore_glob = ['test_*.py']
else:
    stand_in()
