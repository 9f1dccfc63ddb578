"""For whoever looks at a running coalesce, or asks something of it. The server knows nothing of it.

`http.py` (connections), `access.py` (who may ask), `routes.py` (what can be asked), `figures.py` (one look at a
server), `process.py` (what the kernel says of the process), `metrics.py` and `status.py` (all that as text and as
JSON), `wrong.py` (what is wrong, in words), `page/` (the status page).
"""
