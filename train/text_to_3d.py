"""Train a text-to-3D generator: `accelerate launch train/text_to_3d.py --config FILE.yaml [--key value ...]`.

The recipe's method is `TextTo3D`, which needs a multi-view prior; a recipe of `MultiViewDiffusion` trains one.
"""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.train import main

sys.exit(guard(lambda: main(sys.argv[1:])))
