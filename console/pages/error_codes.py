"""What errors mean, and what to do: of requests to models, and of the console's API and tools.

Every code that anybody may be shown is here; a test compares with those in the code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One or several codes, in the order in which they are mostly met."""

    status: str
    code: str
    means: str
    remedy: str


OF_MODELS = (
    ErrorCode(
        "400",
        "invalid_request",
        "The body or a parameter is malformed, or the model's provider has no words for it.",
        "Read the message: it names the field.",
    ),
    ErrorCode(
        "400",
        "context_length_exceeded",
        "The conversation is longer than the model can read.",
        "Leave out older messages, or use a model with a larger context window.",
    ),
    ErrorCode(
        "401",
        "invalid_api_key",
        "The key is missing, unknown, expired or revoked.",
        "Make a new key; look whether the old one is listed as expired or revoked.",
    ),
    ErrorCode(
        "402",
        "insufficient_prepaid_balance, insufficient_credit",
        "The balance, or the budget of the key or project, does not cover what the request may "
        "cost at most. OpenAI's SDKs and the tools of MCP show the second name, as the code; the "
        "first is the type of the error everywhere.",
        "Add credit or raise the budget, or ask for fewer output tokens: the error says how many "
        "are affordable. Automatic top-ups keep it from happening.",
    ),
    ErrorCode(
        "403",
        "permission_denied",
        "The key may not use this model.",
        "Use another key, or change its models.",
    ),
    ErrorCode(
        "403", "account_suspended", "The account is suspended.", "Ask the operator of the gateway."
    ),
    ErrorCode(
        "404",
        "model_not_available",
        "No priced model of that name is served here.",
        "Compare the name with the list of models.",
    ),
    ErrorCode(
        "404, 405",
        "not_found",
        "There is no such path or stored answer, or the path knows another method.",
        "Compare the base URL with the page Integrations: most SDKs want it to end in /v1.",
    ),
    ErrorCode(
        "408, 415, 431",
        "invalid_request",
        "The request did not arrive in time, is compressed in a way that is not known here, or its "
        "head is too long.",
        "Look at what stands between the application and the gateway; send fewer headers.",
    ),
    ErrorCode(
        "409",
        "idempotency_key_in_use",
        "A request with this Idempotency-Key still runs.",
        "Wait for its answer, then ask again: it will be the same one.",
    ),
    ErrorCode(
        "409",
        "idempotent_answer_lost",
        "A request with this Idempotency-Key was made, but its answer could not be kept.",
        "Ask again with a new key: the first request may have been charged, see Usage.",
    ),
    ErrorCode(
        "413",
        "request_too_large",
        "The body is larger than this gateway takes.",
        "Send less, or refer to files by their address.",
    ),
    ErrorCode(
        "422",
        "idempotency_key_reused",
        "This Idempotency-Key belongs to another request.",
        "Use a new one for each request.",
    ),
    ErrorCode(
        "429",
        "rate_limit_exceeded",
        "A limit of the plan is reached; the message says which.",
        "Wait as long as retry-after says, as SDKs do by themselves; or ask for another plan.",
    ),
    ErrorCode(
        "500",
        "internal_error",
        "A fault of the gateway.",
        "Tell its operator the request id.",
    ),
    ErrorCode(
        "502, 503",
        "upstream_unavailable",
        "Every provider of the model has failed.",
        "Try again, or use another model. Nothing was charged.",
    ),
    ErrorCode(
        "503",
        "ledger_unavailable, overloaded",
        "The gateway cannot confirm credit at the moment, or has too much to do.",
        "Try again after a second.",
    ),
    ErrorCode(
        "504",
        "upstream_timeout",
        "The provider took too long.",
        "Stream long answers, or ask for shorter ones.",
    ),
)

OF_CONSOLE = (
    ErrorCode(
        "400",
        "invalid_request, refused, invalid_amount, unknown_model, unknown_tier",
        "A field is wrong.",
        "Read the message: it names the field and says what is possible.",
    ),
    ErrorCode(
        "400",
        "no_session",
        "A program's token is made from a session, and this is none.",
        "Sign in on a page of the console.",
    ),
    ErrorCode(
        "400", "bad_signature", "A call of the webhook is not from Stripe.", "Compare its secret."
    ),
    ErrorCode(
        "401",
        "not_signed_in, invalid_token, invalid_api_key",
        "The session or token is missing or has ended, or the API key of a tool is not valid.",
        "Sign in again. API keys are for models and /mcp, not for the console's API.",
    ),
    ErrorCode(
        "401, 403",
        "sign_in_link_invalid, sign_in_link_local_only",
        "The operator's link was used, is too old, or was opened on another machine.",
        "Print another with farebox console link, and open it on the gateway's machine.",
    ),
    ErrorCode(
        "403",
        "permission_denied",
        "It is not for this role, or this API key may not do it.",
        "Ask somebody with the role that the message names.",
    ),
    ErrorCode(
        "403",
        "other_email, no_email",
        "An invitation is for another address, or no address is known of who signed in.",
        "Sign in under the address that was invited.",
    ),
    ErrorCode(
        "403",
        "cross_origin",
        "A page of another site sent this request, or its origin is not known.",
        "Open the console under its public address.",
    ),
    ErrorCode(
        "404, 405",
        "not_found, method_not_allowed",
        "There is no such thing here, or not for you.",
        "Look at the list that it should be in.",
    ),
    ErrorCode(
        "409",
        "already_asked, already_decided, has_account, key_revoked, last_owner, member_already, "
        "payment_ended, sent_already",
        "It was done before, or something else was done since.",
        "Reload the page and look at how it is now.",
    ),
    ErrorCode(
        "409",
        "no_card_payments, no_saved_card, no_sign_in",
        "Something has to be set up first.",
        "The message says what, and who can do it.",
    ),
    ErrorCode(
        "409",
        "too_many_invitations, too_many_keys, too_many_projects, too_many_sessions",
        "The account, or who signed in, has as many as are possible: few keys before the first "
        "credit, and a thousand new keys or projects within 24 hours.",
        "Take some back, revoke or delete them, or sign out where they were asked from; add the "
        "first credit; or wait. The message says which.",
    ),
    ErrorCode("413", "request_too_large", "The request is too long.", "Send less."),
    ErrorCode(
        "422",
        "idempotency_key_reused",
        "This Idempotency-Key belongs to a credit of another amount or for another reason.",
        "Use a new one for each credit.",
    ),
    ErrorCode(
        "429",
        "too_many_sign_ins, too_many_tries",
        "Somebody tries to sign in too often, or to pay for this account.",
        "Wait for a minute.",
    ),
    ErrorCode(
        "500, 502, 503",
        "internal_error, payment_refused, payments_unavailable, sign_in_unavailable, "
        "database_unavailable, unavailable, console_unavailable, console_failed",
        "The console, or a service that it depends on, has failed. Requests to models go on.",
        "Try again in a moment, after a look whether a change was made; then tell the operator.",
    ),
)
