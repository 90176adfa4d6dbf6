"""A fake OpenAI API: the same protocol and limits, misbehaviour on demand, and a journal of all calls.

`python -m tests.upstream --port 0` runs it. `tests.upstream.client.FakeUpstream` starts it and controls it. The
product never imports it.
"""
