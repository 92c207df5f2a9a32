"""A work folder, finished or not -> one self-contained HTML page that says whether to use the map, and why."""

from pipeline.report.page import write_report
from pipeline.report.sources import Citation, citations, methods_text
from pipeline.report.verdict import Verdict, judge

__all__ = ["Citation", "Verdict", "citations", "judge", "methods_text", "write_report"]
