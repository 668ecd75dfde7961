"""What was pruned and what it saved. Reads and writes files of a run; knows no model."""

from .record import SelectionRecord

__all__ = ['SelectionRecord']
