"""The forward pass as data: nodes with their operations' parameters, stages, roles. No torch."""

from __future__ import annotations

from aprtui.graph.node import Absent, Axis, Graph, Node
from aprtui.graph.role import Role

__all__ = ["Absent", "Axis", "Graph", "Node", "Role"]
