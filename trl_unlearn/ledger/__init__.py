"""Deletion requests, one after another: a list of them, and an adapter for each."""
