"""What is left when our own processes and servers die, freeze or forget at the worst moment."""
