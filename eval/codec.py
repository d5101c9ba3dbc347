"""`accelerate launch eval/codec.py ...`: the same as `diffdistill codec eval`."""

import sys

from diffdistill.cli.codec import main
from diffdistill.cli.main import guard

sys.exit(guard(lambda: main(["eval", *sys.argv[1:]])))
