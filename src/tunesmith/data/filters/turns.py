"""Filters by the form of a conversation: who speaks when, and how often."""

from __future__ import annotations

from itertools import pairwise

from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import AlternateRolesOptions, MinTurnsOptions
from tunesmith.types import Conversation


def alternate_roles(_options: AlternateRolesOptions, _ctx: FilterContext) -> Filter:
    """Reason roles. A system message may stand first; a tool's answers stand between a call and the turn that uses them."""

    def judge(row: Conversation) -> Verdict:
        roles = [message.role for message in row.messages]
        roles = roles[1:] if roles[:1] == ["system"] else roles
        if roles[:1] != ["user"]:
            return "roles", f"the first turn is the {roles[0]}'s, not the user's" if roles else "there is no turn"
        allowed = {
            ("user", "assistant"),
            ("assistant", "user"),
            ("assistant", "tool"),
            ("tool", "tool"),
            ("tool", "assistant"),
        }
        for number, pair in enumerate(pairwise(roles), start=2):
            if pair not in allowed:
                return "roles", f"turn {number} is the {pair[1]}'s after the {pair[0]}'s"
        return None

    return judge


def min_turns(options: MinTurnsOptions, _ctx: FilterContext) -> Filter:
    """Reason turns. OpenChat needs two messages."""

    def judge(row: Conversation) -> Verdict:
        number = sum(message.role != "system" for message in row.messages)
        wanted = options.min_messages
        return ("turns", f"the row has {number} messages, at least {wanted} are wanted") if number < wanted else None

    return judge
