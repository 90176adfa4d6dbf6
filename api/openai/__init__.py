"""The routes of the OpenAI API: each request becomes a job, waits in the queue, and gets the upstream's own answer.

Also how an answer waits on its connection: keep-alive spaces, server-sent events, rate-limit headers.
"""
