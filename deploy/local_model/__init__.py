"""An OpenAI-compatible upstream on this machine, for use without an OpenAI account.

Start it with `python -m deploy.local_model --port N`.
"""
