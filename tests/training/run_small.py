"""Train the small method: run_small.py FOLDER SAMPLES PAUSE; a process that tests kill or launch twice.

Prints the samples it begins from, before the first step; PAUSE is in seconds, before each step.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from small_method import Small

from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

run, samples, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
run.mkdir(parents=True, exist_ok=True)


class Slow(Small):
    def batch(self, records, random):
        time.sleep(pause)
        return super().batch(records, random)


settings = TrainingSettings(samples, batch_size=8, checkpoint_every=16, log_every=1, cpu=True, ema_decay=0.9)
trainer = Trainer(Slow(), settings, run, resume="latest")
print(trainer.samples, flush=True)
trainer.fit()
