"""An OpenAI API that is not OpenAI's: same wire, same limits, worse manners on demand, and it remembers every call.

`python -m tests.upstream --port 0` runs it; `tests.upstream.client.FakeUpstream` starts it and asks it. The product never imports it.
"""
