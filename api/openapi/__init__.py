"""How one route is described in the OpenAPI document.

The descriptions stand beside the views, in each package's routes.py.
"""
