"""Environments, and the sandboxes in them, in the workers of a Ray cluster. Needs the extra `ray`."""
