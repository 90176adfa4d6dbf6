"""The description of a route for the OpenAPI document.

The descriptions stand beside the views, in each package's routes.py.
"""
