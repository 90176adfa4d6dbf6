"""The prefixes of all tokens and keys, for authentication and for the redaction of logs."""

from __future__ import annotations

# Keys of callers, created by `nowserving keys create`.
ISSUED = "ns-"
# Tokens of operators, created by `nowserving operators create`.
OPERATOR = "nsop-"
# Webhook secrets, in the format of Standard Webhooks.
SIGNING = "whsec_"
OURS = (ISSUED, OPERATOR, SIGNING)
# Upstream keys, which can also be own keys of callers.
UPSTREAM = ("sk-", "gw-")
# Query parameters in which clients send a key: refused, and redacted in logs.
QUERY_NAMES = ("api_key", "apikey", "apiKey", "access_token", "key", "token")
# Query parameters with a secret in URLs of this system and of servers: redacted in logs.
SECRET_NAMES = ("signature", "password", "sentinel_password")
