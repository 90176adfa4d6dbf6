"""One HTTP call to an upstream: request, proxy, connection, compression, body, and the memory that bodies may take.

What an answer means is in workers/answers.
"""
