"""The OpenAPI document at /openapi.json and the page that shows it.

It is made from the descriptions of all routes.
"""
