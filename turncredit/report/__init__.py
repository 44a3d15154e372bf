"""What people see of a run: one self-contained HTML page."""

from turncredit.report.page import write_report, write_report_of
from turncredit.report.runs import RecordedRun, open_recorded_run

__all__ = ["RecordedRun", "open_recorded_run", "write_report", "write_report_of"]
