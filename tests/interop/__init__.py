"""The real academy-py 1.0.0 plays one of the sides, over plain REST and event streams."""
