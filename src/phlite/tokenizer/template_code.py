"""The Python code that Jinja writes for a template, with the calls into it that keep account of work and memory."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser

__all__ = ["GenerationBlock", "LimitedCodeGenerator"]

_COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "gt": ">",
    "gteq": ">=",
    "lt": "<",
    "lteq": "<=",
    "in": "in",
    "notin": "not in",
}


class LimitedCodeGenerator(CodeGenerator):
    """Writes calls to the environment's limits into the code of a template."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Write a block of statements that first pays for all of them."""
        block = list(nodes)
        # An If inside a loop is paid with the loop's body and once more by itself: cheaper than telling them apart.
        self.writeline(f"environment.budget.spend({sum(map(_steps_of, block))})")
        super().blockvisit(block, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """Write `a ~ b`."""
        self._write_call("joined", node.nodes, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        """Write `[a, b]`."""
        self._write_call("listed", node.items, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        """Write `(a, b)`, except as the target of an assignment."""
        if node.ctx == "load":
            self._write_call("tupled", node.items, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """Write `{a: b}`."""
        self._write_call("paired", [part for pair in node.items for part in (pair.key, pair.value)], frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        """Write `a[b]` and `a[b:c]`."""
        if isinstance(node.arg, nodes.Slice):
            none = nodes.Const(None)
            bounds = [bound or none for bound in (node.arg.start, node.arg.stop, node.arg.step)]
            self._write_call("sliced", [node.node, *bounds], frame)
        else:
            self._write_call("getitem", [node.node, node.arg], frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        """Write `a == b < c`, `a in b`."""
        self.write("(")
        self._write_call("compared", [node.expr], frame)
        for operand in node.ops:
            self.write(f" {_COMPARISONS[operand.op]} ")
            self._write_call("searched" if "in" in operand.op else "compared", [operand.expr], frame)
        self.write(")")

    def _write_call(self, method: str, arguments: Iterable[nodes.Expr], frame: Frame) -> None:
        self.write(f"environment.{method}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


def _steps_of(node: nodes.Node) -> int:
    """Return the steps of running a node once: one for each node in it, more for long constants."""
    steps, waiting = 0, [node]
    while waiting:
        part = waiting.pop()
        text = getattr(part, "data", None) or getattr(part, "value", None)
        steps += 1 + (len(text) >> 6 if isinstance(text, str) else 0)
        waiting.extend(part.iter_child_nodes())
    return steps


class GenerationBlock(Extension):
    """`{% generation %}` marks what the model said, for training; for a prompt it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja's class has

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the statements between the tags as a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)
