"""Failure groups as people see them, and replay plans with their items."""

from dlq.models.group import FailureGroup
from dlq.models.plan import PlanItem, ReplayPlan

__all__ = ["FailureGroup", "PlanItem", "ReplayPlan"]
