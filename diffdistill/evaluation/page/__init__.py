"""A sweep as one self-contained page: `report.html_report` draws what `record.read_sweep` has checked."""
