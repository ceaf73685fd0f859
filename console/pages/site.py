"""Which page is where. Names that no account can have come first: see `RESERVED`."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from console.pages import (
    audit,
    billing,
    entry,
    integrations,
    keys,
    members,
    models,
    overview,
    plan,
    settings,
    usage,
)
from console.pages.frame import page, serve_static

ROUTES: tuple[BaseRoute, ...] = (
    *entry.ROUTES,
    Route("/console/static/{name}", serve_static),
    page("", overview.show),
    page("/usage", usage.show),
    page("/usage/{request_id}", usage.show_request),
    page("/keys", keys.show, keys.FORMS),
    page("/keys/{key_id}", keys.show_key, keys.KEY_FORMS),
    page("/models", models.show),
    page("/billing", billing.show, billing.FORMS, action="billing.read"),
    page("/plan", plan.show, plan.FORMS),
    page("/members", members.show, members.FORMS),
    page("/audit", audit.show, action="audit.read"),
    page("/integrations", integrations.show, integrations.FORMS),
    page("/errors", integrations.show_errors),
    page("/settings", settings.show, settings.FORMS),
)
