"""Authentication: keys, operators, visitors of the chat page, and the limit on new keys of one address.

Views authenticate before they do anything else.
"""
