"""A report as text, JSON, JUnit XML and one self-contained HTML page. Owns layout; decides nothing."""

from chaos.report.junit import junit
from chaos.report.matrix import bars_met, matrix
from chaos.report.text import as_dict, line, render, render_repeats
from chaos.report.write import write_all

__all__ = ["as_dict", "bars_met", "junit", "line", "matrix", "render", "render_repeats", "write_all"]
