"""`accelerate launch eval/calc.py ...`: the same as `diffdistill eval calc`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["calc", *sys.argv[1:]])))
