"""A stand-in for the package: the same server, methods, messages and evaluation, with one app in place of nine."""
