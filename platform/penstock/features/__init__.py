"""Table -> feature table -> training set; entity -> online row. The only room that knows Feast."""

from penstock.features import lean_feast

# Must come before the first `import feast` of the process, and every way to it leads through here.
lean_feast.install()
