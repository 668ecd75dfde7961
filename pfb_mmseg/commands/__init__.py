"""The command lines: one module for each, which says what can be asked for and calls who does it.

A command is a line in the table ``COMMANDS`` of :mod:`.main` and a module of that name with

- a docstring, which ``--help`` shows;
- ``add_arguments(parser)``, which tells an ``arguments.ToolParser`` what the command takes;
- ``run(parser, args)``, which does it. What the user got wrong ends in ``parser.error(sentence)``.
"""
