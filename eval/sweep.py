"""`accelerate launch eval/sweep.py ...`: the same as `diffdistill eval sweep`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["sweep", *sys.argv[1:]])))
