"""Unlearned models to the Hub and back: results, card, recipe, push, load."""
