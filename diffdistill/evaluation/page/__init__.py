"""A sweep as one self-contained page: `report.html_report` draws what `read.read_sweep` has checked."""
