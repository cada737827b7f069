"""Output for others: small copies of runs for git, reports, and HTML pages.

export.py  `export_run`: a small copy of a finished run, with a model card (template model_card.md)
deploy.py  `export_model`: a network as programs that run without this library (programs.py: ONNX and torch.export)
hub.py     `push_run`: uploads a run to the Hugging Face Hub
report.py  `write_report`: an HTML file about one or several runs
pages/     HTML files that need no kernel and no network, and the JavaScript of pages and explorers
"""
