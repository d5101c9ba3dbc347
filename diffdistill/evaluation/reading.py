"""Pictures as evaluation reads them: what `data` gives, under one name."""

from diffdistill.data.decode import CorruptPictureError, decode
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source

__all__ = ["CorruptPictureError", "Source", "decode", "open_source"]
