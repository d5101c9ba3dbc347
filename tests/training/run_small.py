"""Train the small method, as a script that a launcher starts: run_small.py FOLDER SAMPLES."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from small_method import train

train(Path(sys.argv[1]), samples=int(sys.argv[2]))
