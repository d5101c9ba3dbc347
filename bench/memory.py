"""Peak memory of measuring few and many images: one pass over PNG files, each count in a process of its own.

    python bench/memory.py --n 1000 20000

Runs `eval ref --statistics`, mean and scatter alone, over links to one thousand drawn images; prints the peak
resident set of each process and the ratio of the last to the first. About 12 ms an image on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from same_numbers import write_pictures

WORK = """
import resource, sys
from diffdistill.cli.main import main
code = main(["eval", "ref", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform != "darwin" else 1024), file=sys.stderr)
sys.exit(code)
"""
DRAWN = 1000


def peak_mib(folder: Path, out: Path) -> float:
    options = ["--images", str(folder), "--statistics", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", WORK, *options], check=True, capture_output=True, text=True)
    return int(done.stderr.split()[-1]) / 1024


def measure(counts: list[int], side: int) -> dict[str, Any]:
    peaks = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        drawn = sorted(write_pictures(root / "drawn", DRAWN, side, seed=0).iterdir())
        for n in counts:
            folder = root / str(n)
            folder.mkdir()
            for i in range(n):
                os.link(drawn[i % DRAWN], folder / f"{i:06d}.png")
            peaks[str(n)] = round(peak_mib(folder, root / f"{n}.safetensors"), 1)
            print(f"{n} images: {peaks[str(n)]} MiB", file=sys.stderr, flush=True)
    values = list(peaks.values())
    return {"side": side, "peak_mib": peaks, "ratio": round(values[-1] / values[0], 4)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--side", type=int, default=64)
    o = parser.parse_args()
    print(json.dumps(measure(o.n, o.side), indent=1))
