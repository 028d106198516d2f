"""One machine: its containers, and the service that keeps each of them ready for a dump."""
