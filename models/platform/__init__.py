"""Foundations without a subject of their own: the error tree, ids, encryption, atomic files, and how processes start and die.

Modules here import only settings from this project.
"""
