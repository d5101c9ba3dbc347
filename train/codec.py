"""Train the image codec: `accelerate launch train/codec.py --config configs/codec_small.yaml [--key value ...]`."""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.train import main

sys.exit(guard(lambda: main(sys.argv[1:])))
