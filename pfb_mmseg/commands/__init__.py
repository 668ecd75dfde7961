"""The command lines: one module for each, which says what can be asked for and calls who does it.

A command is a module of this package with

- a docstring, which ``--help`` shows;
- ``add_arguments(parser)``, which tells an ``arguments.ToolParser`` what the command takes;
- ``run(parser, args)``, which does it. What the user got wrong ends in ``parser.error(sentence)``,
  anything else that went wrong in ``sys.exit(status)`` or an exception.

To become ``pfb NAME``, a command needs a line in the table ``COMMANDS`` of :mod:`.main`. The files
in ``tools/`` call the same modules by name. Arguments that several commands have stand in
:mod:`.arguments`; what they do with a config before a run, in :mod:`.launch`.
"""
