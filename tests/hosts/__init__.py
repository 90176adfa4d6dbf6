"""Several hosts on one machine: each part in a network namespace of its own, and links between them that are cut, slowed and made lossy."""
