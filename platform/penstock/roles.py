"""Roles: what each may do, over HTTP as scopes of a key, on the command line as actions.

The table is the whole policy. On the command line it guards against mistakes, not against malice:
who may write the storage can change what lies there without asking anybody.
"""

from collections.abc import Mapping
from typing import get_args

from penstock.access_settings import Role
from penstock.errors import ForbiddenError
from penstock.settings import Settings

ROLES: tuple[Role, ...] = get_args(Role)
SCOPES: Mapping[Role, tuple[str, ...]] = {
    "viewer": ("read",),
    "data_scientist": ("read", "predict:*", "feedback"),
    "approver": ("read", "predict:*"),
    "operator": ("read", "predict:*", "push:*", "feedback"),
    "admin": ("admin",),
}
"""What a role opens over HTTP, in the grammar of API keys."""
ACTIONS: Mapping[str, tuple[Role, ...]] = {
    "approve": ("approver", "admin"),
    "promote": ("operator", "admin"),
    "deploy": ("operator", "admin"),
    "manage keys": ("admin",),
}
"""Who may do what changes things for all: roll back and undeploy are `deploy`, rejecting and
going back to an earlier champion are `promote`, API keys and signing keys are `manage keys`."""


def role_of(actor: str, declared: Mapping[str, Role]) -> Role:
    """Find an actor's role.

    Args:
        actor: `alice@host`, or what `settings.actor` says.
        declared: roles by actor, or by the name before the `@`; none: everybody is an admin.
            Who is not named is a viewer.
    """
    if not declared:
        return "admin"
    return declared.get(actor) or declared.get(actor.partition("@")[0]) or "viewer"


def check_may(settings: Settings, action: str) -> None:
    """Refuse an action that the role of whoever acts does not have.

    Raises:
        ForbiddenError: says which role has it.
    """
    role = role_of(settings.acting, settings.access.roles)
    if role not in ACTIONS[action]:
        raise ForbiddenError(
            f"{settings.acting} is {role}, who may not {action}",
            allowed=" or ".join(ACTIONS[action]),
            next_step=f"ask one of them, or have access.roles give {settings.acting} the role",
        )
