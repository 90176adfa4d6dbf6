"""The forms of all tokens and keys that pass through here, in one place: what is accepted where, and what the log strikes out."""

from __future__ import annotations

# Of callers, made by `nowserving keys create`.
ISSUED = "ns-"
# Of operators, made by `nowserving operators create`.
OPERATOR = "nsop-"
# Of webhook secrets, in the form of Standard Webhooks.
SIGNING = "whsec_"
OURS = (ISSUED, OPERATOR, SIGNING)
# Of upstream keys, which are callers' own keys as well.
UPSTREAM = ("sk-", "gw-")
# Under these names clients put a key into a URL: refused, and struck out of the log.
QUERY_NAMES = ("api_key", "apikey", "apiKey", "access_token", "key", "token")
# And under these, URLs of ours and of servers have a secret.
SECRET_NAMES = ("signature", "password", "sentinel_password")
