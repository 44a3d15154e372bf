"""The environment server of a stand-in for AppWorld: environment.py."""
