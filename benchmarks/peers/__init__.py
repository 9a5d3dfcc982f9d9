"""Other libraries that deliver rows of an array, each in every access mode that might be its fastest.

A module `with_<library>` has `prepare(folder, source)`: it writes the source's rows into `folder` as the library
likes them best, and returns its ways of reading them by name.
"""


class Skipped(Exception):  # noqa: N818 - not an error
    """A peer that can't be measured here, and why."""
