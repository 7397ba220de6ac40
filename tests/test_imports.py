"""No module imports, through others, itself; imports inside functions and for type checking count too."""

import grimp
import networkx

PACKAGES = ("proxytune", "neft", "benchmarks")


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules each of which imports, through others, every other one of its group."""
    graph = networkx.DiGraph((module, other) for module, others in imports.items() for other in others)
    return [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]


def test_no_import_circles() -> None:
    """In our three packages every module can be read before those that import it."""
    graph = grimp.build_graph(*PACKAGES)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100
    assert circles(imports) == []


def test_that_a_circle_is_found() -> None:
    """Three modules in a ring are one circle, and a chain is none."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}}) == []
