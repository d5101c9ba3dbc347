"""Train with accelerate: `accelerate launch train/teacher.py [--config CONFIG] [--key value ...]`."""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.train import main

sys.exit(guard(lambda: main(sys.argv[1:], default_config="configs/emoji_teacher.yaml")))
