"""The schedule, the log and the checks before training. Never touches features."""

from .pfb_hook import PFBHook

__all__ = ['PFBHook']
