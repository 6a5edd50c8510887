"""HTTP side of `msrec serve`: connections, bodies of requests, metrics, worker processes."""
