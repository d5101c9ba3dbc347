"""A one-step diffusion image codec with a file format.

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.codec.bitstream import CodecError
    from diffdistill.codec.codec import Codec

__all__ = ["Codec", "CodecError"]

_MODULES = {"bitstream": ("CodecError",), "codec": ("Codec",)}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
