"""The schedule, the log, the record and the checks before training. Never touches features."""

from .pfb_hook import PFBHook
from .pfb_log_hook import PFBLogHook
from .pfb_record_hook import PFBRecordHook

__all__ = ['PFBHook', 'PFBLogHook', 'PFBRecordHook']
