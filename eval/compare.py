"""`python eval/compare.py ...`: the same as `diffdistill eval compare`."""

import sys

from diffdistill.cli.eval import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["compare", *sys.argv[1:]])))
