"""`accelerate launch eval/pairs.py ...`: the same as `diffdistill eval pairs`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["pairs", *sys.argv[1:]])))
