"""Clients that wait for a job: one waiter per connection, and the few threads that serve all waiters of this process.

Also the threads that send notifications and record disconnects.
"""
