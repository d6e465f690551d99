"""The tests. A package, so that every suite can say `from tests.tools import ...`."""
