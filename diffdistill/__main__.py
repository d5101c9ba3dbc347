"""`python -m diffdistill ...` is the command `diffdistill ...`."""

import sys

from diffdistill.cli.main import main

sys.exit(main())
