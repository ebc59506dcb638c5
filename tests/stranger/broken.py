"""It can't be imported."""

raise RuntimeError("the stranger's module\nfails")
