"""Constrained output: what a text must be (JSON schema, regex, choice, grammar), compiled to allowed token ids.

`compiler.ConstraintCompiler` needs the optional package llguidance; naming a constraint does not.
"""

from __future__ import annotations

from phlite.constrained.constraint import Constraint, JSONModel

__all__ = ["Constraint", "JSONModel"]
