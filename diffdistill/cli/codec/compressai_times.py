"""Times CompressAI's models: `python compressai_times.py WIDTH HEIGHT RUNS THREADS`, where that package is installed.

Weights are random, so files are larger or smaller than real ones, and so is the share of entropy coding. `bench` runs
this file by its path, with another interpreter. It must import nothing of this package.
"""

import json
import sys
import time
from statistics import median

MODELS = ("bmshj2018_hyperprior", "cheng2020_anchor")


def main() -> None:
    """Print one JSON list, with a dict for each model."""
    import compressai
    import torch
    from compressai import zoo

    width, height, runs, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = []
    image = torch.rand(1, 3, -(-height // 64) * 64, -(-width // 64) * 64)
    for name in MODELS:
        model = getattr(zoo, name)(quality=3, pretrained=False).eval()
        model.update()
        times = []
        with torch.inference_mode():
            for _ in range(runs + 1):
                begin = time.perf_counter()
                coded = model.compress(image)
                middle = time.perf_counter()
                model.decompress(coded["strings"], coded["shape"])
                times.append((middle - begin, time.perf_counter() - middle))
        encode, decode = (median(column) for column in zip(*times[1:], strict=True))
        size = sum(len(each) for part in coded["strings"] for each in part)
        found.append({"codec": name, "bytes": size, "encode_s": encode, "decode_s": decode,
                      "version": compressai.__version__})  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
