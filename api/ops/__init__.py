"""The routes of operators: lists, actions, the audit log and the operators' page.

Each action is one transaction with its entry in the audit log.
"""
