"""The API process: health, heartbeat, metrics, CORS, host check, URL rewriting and the gunicorn worker.

The configuration of gunicorn is api/serve.py.
"""
