"""`python eval/text_to_3d.py ...`: the same as `diffdistill text3d eval`."""

import sys

from diffdistill.cli.main import guard
from diffdistill.cli.text3d.eval import main

sys.exit(guard(lambda: main(sys.argv[1:])))
