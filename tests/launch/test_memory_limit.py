"""A training that cannot fit the machine is refused with its largest parts, and others are not."""
