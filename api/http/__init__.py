"""Reading requests and rendering responses, for every route alike: bodies, JSON, multipart, paging, errors.

Nothing here knows what a route is for.
"""
