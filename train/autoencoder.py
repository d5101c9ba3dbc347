"""Train with accelerate: `accelerate launch train/autoencoder.py [--config CONFIG] [--key value ...]`."""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.train import main

arguments = sys.argv[1:]
if "--config" not in arguments:
    arguments = ["--config", "configs/emoji_autoencoder.yaml", *arguments]
sys.exit(guard(lambda: main(arguments)))
