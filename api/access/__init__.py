"""Who is calling: keys, visitors of the chat page, operators, and the limit on new keys of one address.

Views call this package before they do anything else.
"""
