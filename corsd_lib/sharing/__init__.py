"""What leaves the machine: small copies of runs for git, reports, and the pages that reports are.

export.py  `export_run`: a finished run made small enough for git, and its model card
report.py  `write_report`: one HTML file about a run or several
pages/     an HTML file that needs no kernel and no network, and the one script of pages and explorers
"""
