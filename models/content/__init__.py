"""The content of requests and answers: endpoints, chat messages, images, files, and the estimate of their tokens.

Nothing here knows of jobs or queues.
"""
