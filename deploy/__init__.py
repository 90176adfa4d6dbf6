"""Starts the stack on one machine: embedded servers, the supervisor of `up`, the local model, the demo."""
