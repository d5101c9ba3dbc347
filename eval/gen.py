"""`accelerate launch eval/gen.py ...`: the same as `diffdistill eval gen`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["gen", *sys.argv[1:]])))
