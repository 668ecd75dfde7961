"""The command lines: one module for each, which says what can be asked for and calls who does it.

A command is a module of this package with

- a docstring, which ``--help`` shows;
- ``add_arguments(parser)``, which tells an ``arguments.ToolParser`` what the command takes;
- ``NEEDS_MMSEG = False`` if it can do without MMSegmentation; else what is missing is said first;
- ``run(parser, args)``, which does it. What the user got wrong ends in ``parser.error(sentence)``,
  anything else that went wrong in ``sys.exit(status)`` or an exception.

The module imports nothing heavy at its top (no torch, no MMEngine, no other room of pfb_mmseg): it
does so in ``run``, so that help, mistakes and completion are quick; in ``add_arguments`` only where
an option's choices are known nowhere else. Arguments that several commands have stand in
:mod:`.arguments`; what they do with a config before a run, in :mod:`.launch`.

To become ``pfb NAME``, a command needs a line in the table ``COMMANDS`` of :mod:`.main`. The files
in ``tools/`` call the same modules by name.
"""
