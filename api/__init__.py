"""What a caller sees: the HTTP API and the command line. Imports models and, of workers, only workers.channels.notify."""
