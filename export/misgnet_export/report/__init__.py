"""Presents the evidence: an HTML report, tables for the terminal, and JUnit XML for build servers."""

from misgnet_export.report.html import ReportData, render
from misgnet_export.report.junit import junit_xml
from misgnet_export.report.pictures import pick_tiles
from misgnet_export.report.tables import parity_table, stage_table, throughput_table

__all__ = [
    "ReportData", "junit_xml", "parity_table", "pick_tiles", "render", "stage_table", "throughput_table",
]  # fmt: skip
