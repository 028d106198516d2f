"""One machine: its containers, and the service that keeps them ready."""
