"""Which page is where. Names that no account can have come first: see `RESERVED`."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from console.pages import account, billing, entry, keys, overview, usage
from console.pages.frame import page, serve_static

ROUTES: tuple[BaseRoute, ...] = (
    *entry.ROUTES,
    Route("/console/static/{name}", serve_static),
    page("", overview.show),
    page("/usage", usage.show),
    page("/usage/{request_id}", usage.show_request),
    page("/keys", keys.show, keys.FORMS),
    page("/keys/{key_id}", keys.show_key, keys.KEY_FORMS),
    page("/models", account.show_models),
    page("/billing", billing.show, billing.FORMS, action="billing.read"),
    page("/plan", account.show_plan, account.PLAN_FORMS),
    page("/members", account.show_members, account.MEMBER_FORMS),
    page("/audit", account.show_audit, action="audit.read"),
    page("/integrations", account.show_integrations, account.INTEGRATION_FORMS),
    page("/errors", account.show_errors),
    page("/settings", account.show_settings, account.SETTINGS_FORMS),
)
