"""Quick distances: `python eval/quick.py --images FOLDER [--reference FOLDER]`, the same as `diffdistill measure`."""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.measure import main

sys.exit(guard(lambda: main(sys.argv[1:])))
