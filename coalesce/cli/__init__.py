"""How coalesce is told what to do.

`command_line.py`, `options.py` (every setting, declared once), `config_file.py` (TOML), `run.py` (a server with its
admin), `embedded.py` (a private upstream); and the other commands: `check.py`, `ask.py` (those that ask a running one),
`top.py`.
"""
