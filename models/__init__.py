"""The state of the system: tables and their transitions, settings, errors and prices. Imports no other package of this project."""
