"""Alternate answers for AltPO: written by a model, checked, drawn again where they are no good; or "I do not know"."""
