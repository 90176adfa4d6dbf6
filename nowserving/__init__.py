"""The entry point of the installed command `nowserving`, and the one name under which the wheel installs everything.

The packages api, cli, deploy, models and workers are beside this file in the wheel, and beside this folder in a clone.
"""
