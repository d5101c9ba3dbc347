"""`accelerate launch eval/ref.py ...`: the same as `diffdistill eval ref`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["ref", *sys.argv[1:]])))
