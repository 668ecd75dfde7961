"""A backbone that MMSegmentation does not bring, and an example of how to bring your own."""

from .efficientnet_lite import EfficientNetLite

__all__ = ['EfficientNetLite']
