"""`python eval/probe.py ...`: the same as `diffdistill eval probe`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["probe", *sys.argv[1:]])))
