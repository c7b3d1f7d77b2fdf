"""The one switch of all fast paths. Tests turn it off, to compare what they give with what the generic path gives."""

taken = True
