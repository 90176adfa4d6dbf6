"""The OpenAPI document at /openapi.json and the page that shows it.

It is built from the descriptions of all routes.
"""
