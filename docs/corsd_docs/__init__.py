"""The documentation site: what is made of the files of the repository before Sphinx reads them, and checks of the result.

files.py       where the files are, and writing only what has changed
staging.py     files of the repository as pages of the site; links between them
reference.py   pages of the API, from api.toml
methods.py     pages of the methods: options, cost and results; pictures.py draws them
explorers.py   live pages of committed runs
docstrings.py  docstrings, whose text is close to Markdown, as reStructuredText
mathml.py      formulas as MathML, which browsers draw without a script
links.py       links of the built site
"""
