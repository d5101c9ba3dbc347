"""Names of codecs and numbers in words."""

from __future__ import annotations

from diffdistill.evaluation.rate.crops import ORIGINAL
from diffdistill.evaluation.rate.measures import OURS, Metric

NAMES = {OURS: "this codec", "jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL", ORIGINAL: "the original"}
DECIMALS = {"psnr_db": 2, "ms_ssim": 4, "block_grid": 2}


def name_of(codec: str) -> str:
    """A codec's name in a sentence."""
    return NAMES.get(codec, codec)


def number(key: str, value: float | None) -> str:
    """A metric's value, or a dash where there is none."""
    return "–" if value is None else f"{value:.{DECIMALS.get(key, 3)}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A difference in bytes with its sign, such as "−12 %".

    >>> percent(-12.4), percent(3.0), percent(0.2), percent(None)
    ('−12 %', '+3 %', '0 %', '–')
    """
    if value is None:
        return "–"
    whole = round(value)
    return f"{'+' if whole > 0 else '−' if whole < 0 else ''}{abs(whole):,} %"


def bytes_needed(value: float | None) -> str:
    """A difference in bytes in words.

    >>> bytes_needed(-12.4), bytes_needed(0.3), bytes_needed(None)
    ('12 % fewer bytes', 'as many bytes', 'too little quality in common')
    """
    if value is None:
        return "too little quality in common"
    whole = round(value)
    return "as many bytes" if whole == 0 else f"{abs(whole):,} % {'more' if whole > 0 else 'fewer'} bytes"


def rates(size: int, bpp: float) -> str:
    """Bytes and bits a pixel of a file."""
    return f"{size:,} bytes, {bpp:.3f} bits a pixel"


def metric_label(metric: Metric) -> str:
    """A metric's label, with "trained on" where the codec's training used it."""
    return f"{metric.label} ({metric.trained_on})" if metric.trained_on else metric.label
