"""Distil with accelerate: `accelerate launch train/distill.py --config CONFIG [--key value ...]`."""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.train import main

sys.exit(guard(lambda: main(sys.argv[1:])))
