"""Several hosts on one machine: a network namespace for each service, and links that can be cut, slowed and made lossy."""
