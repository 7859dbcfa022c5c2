"""Failure groups as people see them, and replay plans with their items."""

from dlq.models.group import FailureGroup
from dlq.models.plan import PlanFailure, PlanItem, ReplayPlan

__all__ = ["FailureGroup", "PlanFailure", "PlanItem", "ReplayPlan"]
