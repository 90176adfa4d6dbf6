"""One HTTP call to an upstream: request, proxy, connection, compression, body, and the memory budget of bodies.

workers/answers classifies the answers.
"""
