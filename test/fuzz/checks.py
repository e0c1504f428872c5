"""What Schemathesis cannot read from an OpenAPI document."""

import re

import schemathesis

# Refusals of requests that fit the schema: of what has no word in JSON Schema (a rule over several members, the
# state of the session, the clock). A refusal that is not here says that the document is too generous.
BEYOND_SCHEMAS = re.compile(
    "|".join(
        [
            "cursor was not given out",
            "must be later than from",
            "must be at most 367 days before to",
            "is not inside incarnation",
            "must be in the future",
            # What PostgreSQL takes of RFC 3339.
            "must have an offset of less than 16 hours",
            "must not be of the year 0",
            "must have at most 9 digits of a second",
            "must contain a word",
            "session with this id exists already",
            "answers the message before the last reply",
            "must be the name of one of the tools",
            "the history has not so many messages",
            "is not one of the present history",
            "is needed while the history is empty",
            "there is no message to answer",
            # A name that reaches into prototypes.
            "must not have a member __proto__",
            "may hold admin only for an operator",
            "must not be empty",
            "is not the owner of this id",
            "answers no open tool call",
            "is in the past",
            # Of texts, for the plain errors of the AI SDK.
            r"\d+ faults, of which",
            "is in use",
            "must not name a tool twice",
            r"must be an http\(s\) or a data: URL",
            # Where there are several cells, whose names the document does not have.
            "must be a cell",
        ]
    )
)
# Their bodies are described loosely on purpose: much of them goes on to the provider, whose API it is.
LOOSE = {"POST /openai/v1/chat/completions", "POST /openai/v1/responses"}
# What else may be said to a request that fits: what it is about is not there (any more) or has another version,
# state or owner, there is too much of it, or something that the service depends on is away.
ACCEPTED = {404, 409, 410, 412, 429, 502, 503, 504}


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """The phase that covers bounds takes the quotes of a header for those of a JSON text, and sends 0 for "0"."""
    headers = case.headers or {}
    if case.meta and case.meta.generation.mode.is_positive and headers.get("If-Match") == "0":
        headers["If-Match"] = '"0"'


@schemathesis.check
def accepts_what_fits(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    status = response.status_code
    if status < 400 or status in ACCEPTED:
        return
    text = response.content.decode(errors="replace")
    if status == 400 and (case.operation.label in LOOSE or BEYOND_SCHEMAS.search(text)):
        return
    raise AssertionError(f"a request that fits the document was answered {status}: {text[:500]}")
