"""One page to look at results with: phase diagram, LogitLens, attention, provenance; opened from disk, offline.

The numbers are those of a results folder (`analyses.results`); tables become rows here, rows become charts there, and
only `analyses.report.page` knows HTML.
"""

from analyses.report.assemble import IMAGES, Report, make_report

__all__ = ["IMAGES", "Report", "make_report"]
