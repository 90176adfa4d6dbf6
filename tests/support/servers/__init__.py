"""Small servers that tests start on 127.0.0.1: upstreams, proxies, name servers, receivers.

Each stops with its test.
"""
